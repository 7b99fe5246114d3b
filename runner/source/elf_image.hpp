// The parts of an ELF library (x86-64 or arm64, little-endian) that decide whether it can be overlaid.
#pragma once

#include <elf.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "bundle.hpp"

namespace packager {

struct ElfImage {
    std::vector<Elf64_Phdr> segments;  // those to load
    std::uint64_t segments_offset = 0;     // of the program headers in the file
    std::uint16_t segment_count = 0;       // of all kinds
    std::uint64_t tables_end = 0;          // the bytes from the start of the file that have headers and tables
    std::uint64_t dynamic_offset = 0;      // in the file
    std::vector<Elf64_Dyn> dynamic;
    std::uint64_t init = 0, init_array = 0, init_array_size = 0;  // addresses, 0 if there are none
};

// Reads a library; nothing if its layout is not one that an overlay can be made for: little-endian, 64 bits, tables at
// the start, a dynamic section that can be written, nothing that calls the library's code while it is relocated.
std::optional<ElfImage> read_elf_image(Span library);

}  // namespace packager

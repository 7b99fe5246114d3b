// This file as data:
//
//     runner | zeros | onnxruntime's library | its notices | zeros | trailer | the bundle's ZIP
//
// The library and the ZIP start at multiples of 65536, the notices right after the library, and the trailer is the
// 256 bytes before the ZIP. So everything follows from the sizes, and padding is zero: an unlisted byte has no place.
// The trailer is found from the end of the file, through the end record of the ZIP. In little-endian:
//
//       0  magic, 16 bytes: "torch-packager", 0, 1
//      16  size of the runner, offset and size of the library, offset and size of the ZIP (u64 each)
//      56  machine of the ELF header (u32): 62 is x86-64, 183 is arm64; then a zero (u32)
//      64  SHA-256 of the runner, and of the library
//     128  onnxruntime's version: ASCII, zeros up to 32 bytes
//     160  offset and size of the notices (u64 each), and their SHA-256
//     208  16 zeros
//     224  SHA-256 of the 224 bytes before
#pragma once

#include <cstdint>
#include <string>

#include "bundle.hpp"

namespace packager {

// The executable, opened and mapped once, for as long as the process runs. Everything that is used comes from it.
struct Executable {
    std::string path;  // as the user sees it, for messages
    int descriptor = -1;
    Span content;
    Span runner, library, notices, archive;
    std::uint64_t library_offset = 0, archive_offset = 0;
    std::string runner_sha256, library_sha256, notices_sha256;  // as the trailer has them
    std::string onnxruntime_version;                            // as the trailer has it
};

// Opens /proc/self/exe, or the path from the auxiliary vector where there is no /proc. The trailer, the padding, the
// runner and the notices have their digests then; the library is checked by whoever uses it. Throws Error
// (standalone-refused, integrity-failed).
Executable open_executable();
// Opens any file in this format. Throws as above.
Executable open_executable(const std::string& path);
// Reads the layout of bytes in this format; for fuzzing. Throws as above.
Executable parse_executable(Span content, const std::string& path);
// Throws Error (integrity-failed) unless the library has its digest.
void check_library(const Executable& executable);
// Opens the bundle in it. Throws what the other open_bundle throws.
Bundle open_bundle(const Executable& executable);

}  // namespace packager

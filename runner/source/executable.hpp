// This file as data:
//
//     runner | zeros | onnxruntime's library | its notices | digests of pieces | zeros | trailer | the bundle's ZIP
//
// The library and the ZIP start at multiples of 65536, the notices right after the library, the digests right after
// the notices, and the trailer is the 256 bytes before the ZIP. So everything follows from the sizes, and padding is
// zero: an unlisted byte has no place. All bytes before the digests are digested in pieces of one size, a multiple of
// 65536 of at most 16 MiB; the last piece is shorter. The digests of the pieces are SHA-256, one after the other.
// The trailer is found from the end of the file, through the end record of the ZIP. In little-endian:
//
//       0  magic, 16 bytes: "torch-packager", 0, 1
//      16  sizes of the runner, the library, the notices, the ZIP, and a piece (u64 each)
//      56  machine of the ELF header (u32): 62 is x86-64, 183 is arm64; then a zero (u32)
//      64  SHA-256 of the runner, and of the library
//     128  onnxruntime's version: ASCII, zeros up to 32 bytes
//     160  SHA-256 of the notices, and of the digests of the pieces
//     224  SHA-256 of the 224 bytes before
//
// The runner compares the digests of the pieces, on all cores. Those of the runner, the library and the notices are for
// `package verify`, which compares both.
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
    Span digests;  // of the pieces: 32 bytes each
    std::uint64_t piece_size = 0, pieces_end = 0;
    std::string runner_sha256, library_sha256;  // as the trailer has them
    std::string onnxruntime_version;  // as the trailer has it
};

// Opens /proc/self/exe, or the path from the auxiliary vector where there is no /proc. The trailer, the digests of the
// pieces and the padding were compared then; the rest is compared with them before it is used. Throws Error
// (standalone-refused, integrity-failed).
Executable open_executable();
// Opens any file in this format. Throws as above.
Executable open_executable(const std::string& path);
// Reads the layout of bytes in this format; for fuzzing. Throws as above.
Executable parse_executable(Span content, const std::string& path);
// Compares the runner and the notices. Throws Error (integrity-failed).
void check_own_parts(const Executable& executable);
// Opens the bundle in it. Throws what the other open_bundle throws.
Bundle open_bundle(const Executable& executable);

}  // namespace packager

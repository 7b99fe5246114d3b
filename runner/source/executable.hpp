// This file as data: runner | zeros | onnxruntime | zeros | trailer | the bundle's ZIP.
#pragma once

#include <cstdint>
#include <string>

#include "bundle.hpp"

namespace packager {

// The executable, opened and mapped once. Everything that is used comes from this descriptor.
struct Executable {
    std::string path;     // as the user sees it, for messages
    int descriptor = -1;
    Span content;
    Span runner, library, archive;
    std::uint64_t library_offset = 0, archive_offset = 0;
    std::string runner_sha256, library_sha256;  // as the trailer has them
    std::string onnxruntime_version;            // as the trailer has it
};

// Opens /proc/self/exe, or the path from the auxiliary vector where there is no /proc. Throws Error.
Executable open_executable();
// Opens any file in this format; for tests and fuzzing. Throws Error.
Executable open_executable(const std::string& path);

}  // namespace packager

// Reads a range of an open file piece by piece, where a mapping would make all of it this process's memory.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "bundle.hpp"

namespace packager {

// Calls `use` with each piece. Returns false if the file ends before, or cannot be read.
template <typename Use>
bool read_chunks(int descriptor, std::uint64_t offset, std::uint64_t size, Use use) {
    constexpr std::uint64_t chunk_size = 262'144;  // stays in the cache
    std::vector<std::byte> chunk(std::min(size, chunk_size));
    for (std::uint64_t done = 0; done < size;) {
        const std::size_t wanted = std::min<std::uint64_t>(chunk_size, size - done);
        const ssize_t count = pread(descriptor, chunk.data(), wanted, static_cast<off_t>(offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return false;
        use(Span{chunk.data(), static_cast<std::size_t>(count)});
        done += static_cast<std::uint64_t>(count);
    }
    return true;
}

}  // namespace packager

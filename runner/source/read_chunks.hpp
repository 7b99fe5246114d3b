// Reads a range of an open file piece by piece: a mapping of the whole would make all of it this process's memory.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "bundle.hpp"

namespace packager {

// Calls `use` with each piece, which stays in the cache while it is used twice. Returns false if the file cannot be
// mapped. The offset may be any.
template <typename Use>
bool read_chunks(int descriptor, std::uint64_t offset, std::uint64_t size, Use use) {
    constexpr std::uint64_t window_size = 4'194'304, chunk_size = 131'072;
    const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    for (std::uint64_t done = 0; done < size;) {
        const std::uint64_t skipped = (offset + done) % page;
        const std::size_t wanted = std::min<std::uint64_t>(window_size, size - done);
        const auto start = static_cast<off_t>(offset + done - skipped);
        void* const mapping = mmap(nullptr, wanted + skipped, PROT_READ, MAP_PRIVATE, descriptor, start);
        if (mapping == MAP_FAILED) return false;
        const std::byte* const content = static_cast<const std::byte*>(mapping) + skipped;
        for (std::size_t used = 0; used < wanted; used += chunk_size) {
            use(Span{content + used, std::min<std::size_t>(chunk_size, wanted - used)});
        }
        munmap(mapping, wanted + skipped);
        done += wanted;
    }
    return true;
}

}  // namespace packager

#include "heap.hpp"

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace packager {
namespace {

constexpr std::size_t room = std::size_t{8} << 20U, step = std::size_t{256} << 10U;
constexpr int populate_write = 23;  // MADV_POPULATE_WRITE, since Linux 5.14: not in every libc's headers

struct Free {
    void operator()(void* memory) const { std::free(memory); }  // NOLINT(*-no-malloc,*-owning-memory)
};
using Block = std::unique_ptr<void, Free>;

// A block that is not used. The compiler must not see that, or it leaves the block out.
Block take(std::size_t size) {
    Block block(std::malloc(size));  // NOLINT(*-no-malloc)
    asm volatile("" : : "r"(block.get()) : "memory");
    return block;
}

}  // namespace

// glibc maps a block of this size on its own. When it is given back, glibc takes the next one of the size from the
// heap, and keeps that when it is given back. The content of the pages does not change when they are touched, whoever
// has them by then, and where that is not possible nothing happens.
std::future<void> prepare_heap() {
    constexpr std::uintptr_t page = 65536;  // the largest there is
    take(room);
    Block block = take(room);
    const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(block.get()) + page - 1) / page * page;
    block.reset();
    return std::async([first] {
        for (std::size_t done = 0; done + step <= room; done += step) {
            // NOLINTNEXTLINE(performance-no-int-to-ptr)
            if (madvise(reinterpret_cast<void*>(first + done), step, populate_write) != 0) return;
        }
    });
}

}  // namespace packager

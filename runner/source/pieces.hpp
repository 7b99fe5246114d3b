// The pieces of the executable and their digests: SHA-256 of a whole part takes one core as long as onnxruntime takes
// to start, and that of its pieces takes all cores a fraction of it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <vector>

#include "executable.hpp"

namespace packager {

// Whether every piece that a part of the content touches has its digest.
bool has_digests(const Executable& executable, Span part);

// Compares the library on all usable cores, while whoever needs it does something else. The start and the end come
// first, which have what the linker reads.
class LibraryCheck {
public:
    explicit LibraryCheck(const Executable& executable);
    ~LibraryCheck();
    LibraryCheck(const LibraryCheck&) = delete;
    LibraryCheck& operator=(const LibraryCheck&) = delete;
    LibraryCheck(LibraryCheck&&) = delete;
    LibraryCheck& operator=(LibraryCheck&&) = delete;

    // Returns when this range of the library was compared, and helps until then. Throws Error (integrity-failed) if it
    // was changed.
    void require(std::uint64_t offset, std::uint64_t size);
    void require_all();

private:
    enum class State : char { unknown, intact, changed, unreadable };
    using Buffer = std::unique_ptr<std::byte[]>;

    Buffer make_buffer() const;
    bool work(const Buffer& buffer);
    State compare(std::size_t window, const Buffer& buffer) const;
    void wait() const;

    const Executable& executable_;
    std::uint64_t window_size_;
    std::vector<std::atomic<State>> windows_;
    std::atomic<std::size_t> next_{0};
    Buffer buffer_;  // of the caller's thread
    std::vector<std::future<void>> threads_;
};

}  // namespace packager

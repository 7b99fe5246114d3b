#include "pieces.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "cores.hpp"
#include "error.hpp"
#include "sha256.hpp"

namespace packager {
namespace {

constexpr std::uint64_t usual_window = std::uint64_t{1} << 20U;
constexpr int most_threads = 8;  // more would take longer to start than to hash

// The pieces that a range of the file touches, as a range of the file.
struct Range {
    std::uint64_t start, end;
};

Range find_pieces(const Executable& executable, std::uint64_t offset, std::uint64_t size) {
    const std::uint64_t piece = executable.piece_size, end = executable.pieces_end;
    const std::uint64_t last = std::min((offset + size + piece - 1) / piece * piece, end);
    return {offset / piece * piece, last};
}

// Whether a range of whole pieces, whose bytes these are, has its digests.
bool has_digests(const Executable& executable, Range range, const std::byte* bytes) {
    const std::uint64_t piece = executable.piece_size;
    for (std::uint64_t offset = range.start; offset < range.end;) {
        const std::byte* const expected = executable.digests.data + offset / piece * sizeof(Digest);
        std::array<Span, sha256_lanes> contents;
        std::size_t count = 0;
        for (; count < sha256_lanes && offset < range.end; ++count) {
            const std::uint64_t size = std::min(piece, range.end - offset);
            contents[count] = {bytes + (offset - range.start), size};
            offset += size;
        }
        const auto digests = hash_lanes(contents);
        if (std::memcmp(expected, digests.data(), count * sizeof(Digest)) != 0) return false;
    }
    return true;
}

bool read_range(int descriptor, Range range, std::byte* bytes) {
    for (std::uint64_t done = range.start; done < range.end;) {
        const ssize_t count =
            pread(descriptor, bytes + (done - range.start), range.end - done, static_cast<off_t>(done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return false;
        done += static_cast<std::uint64_t>(count);
    }
    return true;
}

// The start and the end first, then what is between them.
std::size_t choose_window(std::size_t turn, std::size_t count) {
    if (turn == 0) return 0;
    return turn == 1 ? count - 1 : turn - 1;
}

}  // namespace

bool has_digests(const Executable& executable, Span part) {
    const auto offset = static_cast<std::uint64_t>(part.data - executable.content.data);
    const Range range = find_pieces(executable, offset, part.size);
    return has_digests(executable, range, executable.content.data + range.start);
}

LibraryCheck::LibraryCheck(const Executable& executable)
    : executable_(executable),
      window_size_(std::max(usual_window, sha256_lanes * executable.piece_size)),
      windows_(static_cast<std::size_t>((executable.library.size + window_size_ - 1) / window_size_)),
      buffer_(make_buffer()) {
    const int threads = std::min(count_usable_cores(), most_threads);
    // Where there can be no more threads, `wait` runs them.
    for (int count = 1; count < threads; ++count) {
        threads_.push_back(std::async([this] {
            const Buffer buffer = make_buffer();
            while (work(buffer)) continue;
        }));
    }
}

LibraryCheck::~LibraryCheck() {
    next_ = windows_.size();  // for a check that was given up
    wait();
}

void LibraryCheck::require(std::uint64_t offset, std::uint64_t size) {
    for (std::uint64_t window = offset / window_size_; window * window_size_ < offset + size; ++window) {
        while (windows_.at(window) == State::unknown) {
            if (!work(buffer_)) wait();
        }
        if (windows_[window] == State::intact) continue;
        const bool is_changed = windows_[window] == State::changed;
        throw integrity_failed(executable_.path, is_changed ? "changed: its library" : "its library cannot be read");
    }
}

// For as many pieces as are hashed at once: they stay in the cache, while a mapping of the library would count as this
// process's memory.
LibraryCheck::Buffer LibraryCheck::make_buffer() const {
    return std::make_unique<std::byte[]>(static_cast<std::size_t>(sha256_lanes * executable_.piece_size));
}

void LibraryCheck::require_all() {
    require(0, executable_.library.size);
    buffer_.reset();
}

// Compares the next window; returns false if there is no more.
bool LibraryCheck::work(const Buffer& buffer) {
    const std::size_t turn = next_++;
    if (turn >= windows_.size()) return false;
    const std::size_t window = choose_window(turn, windows_.size());
    windows_[window] = compare(window, buffer);
    return true;
}

LibraryCheck::State LibraryCheck::compare(std::size_t window, const Buffer& buffer) const {
    const std::uint64_t start = window * window_size_;
    const std::uint64_t size = std::min(window_size_, executable_.library.size - start);
    const auto [first, end] = find_pieces(executable_, executable_.library_offset + start, size);
    const std::uint64_t step = sha256_lanes * executable_.piece_size;
    for (std::uint64_t offset = first; offset < end; offset += step) {
        const Range range{offset, std::min(offset + step, end)};
        if (!read_range(executable_.descriptor, range, buffer.get())) return State::unreadable;
        if (!has_digests(executable_, range, buffer.get())) return State::changed;
    }
    return State::intact;
}

// A thread that had no memory to begin with leaves the windows to the others.
void LibraryCheck::wait() const {
    for (const std::future<void>& thread : threads_) thread.wait();
}

}  // namespace packager

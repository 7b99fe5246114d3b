// Bytes that are received: memory that grows without being cleared first, with room behind it for simdjson to read.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>
#include <utility>

namespace packager::http {

constexpr std::size_t padding = 64;  // simdjson reads this far behind a text

class Buffer {
public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        Buffer(std::move(other)).swap(*this);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() = default;

    char* data() { return memory_.get(); }
    const char* data() const { return memory_.get(); }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }

    // Makes room for this many bytes behind the content, and returns where they go.
    char* extend(std::size_t count) {
        if (capacity_ < size_ + count) grow(size_ + count);
        return memory_.get() + size_;
    }
    void add(std::size_t count) { size_ += count; }  // bytes that were written there

    void append(std::string_view bytes) {
        if (bytes.empty()) return;
        std::memcpy(extend(bytes.size()), bytes.data(), bytes.size());
        size_ += bytes.size();
    }

    void remove_front(std::size_t count) {
        size_ -= count;
        if (size_ == 0) {
            clear();
        } else if (count > 0) {
            std::memmove(memory_.get(), memory_.get() + count, size_);
        }
    }

    // Forgets the content, and returns its memory: idle connections have none.
    void clear() {
        memory_.reset();
        size_ = capacity_ = 0;
    }

    void resize(std::size_t size) {
        if (capacity_ < size) grow(size);
        size_ = size;
    }

private:
    // NOLINTBEGIN(*-no-malloc,*-owning-memory,bugprone-unused-return-value): realloc moves the pages of large blocks in
    // place of copying them, and does not clear what is overwritten.
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };
    void grow(std::size_t needed) {
        const std::size_t capacity = std::max(needed, std::min(2 * capacity_, capacity_ + (std::size_t{16} << 20U)));
        void* memory = std::realloc(memory_.get(), capacity + padding);
        if (memory == nullptr) throw std::bad_alloc();
        static_cast<void>(memory_.release());
        memory_.reset(static_cast<char*>(memory));
        capacity_ = capacity;
    }
    // NOLINTEND(*-no-malloc,*-owning-memory,bugprone-unused-return-value)

    void swap(Buffer& other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(size_, other.size_);
        std::swap(capacity_, other.capacity_);
    }

    std::unique_ptr<char, Free> memory_;
    std::size_t size_ = 0, capacity_ = 0;
};

}  // namespace packager::http

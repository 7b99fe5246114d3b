// Keeps the bodies of all requests within a budget of memory, whatever thread receives them.
#pragma once

#include <atomic>
#include <cstddef>
#include <string>
#include <utility>

#include "http/messages.hpp"
#include "http/settings.hpp"

namespace packager::http {

class BodyBudget {
public:
    explicit BodyBudget(const Settings& settings)
        : limit_(settings.max_request_bytes), total_limit_(settings.max_buffered_bytes) {}

    // Checks the length of a body that has `length` bytes, or will have. Throws Rejected, 413.
    void check_length(std::size_t length) const {
        if (length <= limit_) return;
        const std::string size = std::to_string(limit_);
        throw Rejected(413, "the body of the request has more than " + size + " bytes", "connection: close\r\n");
    }

    std::size_t limit() const { return limit_; }

    // Throws Rejected, 503.
    void take(std::size_t size) {
        if (total_.fetch_add(size, std::memory_order_relaxed) + size <= total_limit_) return;
        give_back(size);
        throw Rejected(503, "too many requests are being received; try again",
                       "retry-after: 1\r\nconnection: close\r\n");
    }
    void give_back(std::size_t size) { total_.fetch_sub(size, std::memory_order_relaxed); }

private:
    std::size_t limit_, total_limit_;
    std::atomic<std::size_t> total_{0};
};

// The part of the budget that one body has, given back at the end of its life.
class Reservation {
public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Reservation& operator=(Reservation&& other) noexcept {
        if (this != &other) {
            release();
            budget_ = std::exchange(other.budget_, nullptr);
            size_ = std::exchange(other.size_, 0);
        }
        return *this;
    }
    Reservation(const Reservation&) = delete;
    Reservation& operator=(const Reservation&) = delete;
    ~Reservation() { release(); }

    // Throws Rejected: 413 or 503.
    void add(BodyBudget& budget, std::size_t size) {
        budget.check_length(size_ + size);
        budget.take(size);
        budget_ = &budget;
        size_ += size;
    }

    void release() {
        if (size_ > 0) budget_->give_back(size_);
        size_ = 0;
    }

private:
    BodyBudget* budget_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace packager::http

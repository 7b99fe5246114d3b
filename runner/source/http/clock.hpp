// Times of the clock that only goes forward.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>

namespace packager::http {

constexpr std::int64_t second = 1'000'000'000;
constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();

inline std::int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

inline std::int64_t to_ns(double seconds) {
    return seconds < 1e9 ? static_cast<std::int64_t>(seconds * 1e9) : std::int64_t{1'000'000'000} * second;
}

}  // namespace packager::http

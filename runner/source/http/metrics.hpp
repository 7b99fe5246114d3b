// The metrics in Prometheus' text format: Triton's names, and OpenTelemetry's duration of HTTP requests.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "http/statistics.hpp"
#include "http/wire.hpp"

namespace packager::http {

constexpr std::array<double, 14> duration_bounds{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25,
                                                 0.5,   0.75, 1.0,   2.5,  5.0,   7.5, 10.0};

// A histogram of the durations of requests, by method, route and status: few, whatever clients send.
class HttpDurations {
public:
    // `method` and `route` are texts that live as long as the process.
    void record(std::string_view method, std::string_view route, int status, double seconds);
    std::string render() const;

private:
    struct Series {
        std::string_view method, route;
        int status = 0;
        std::array<std::uint64_t, duration_bounds.size() + 1> counts{};
        double sum = 0;
    };
    mutable std::mutex mutex_;
    std::vector<Series> series_;
};

// All metrics; `pending` is the number of requests that wait or run.
std::string render_metrics(const WireSignature& signature, const Counts& counts, std::size_t pending,
                           const HttpDurations& durations);

}  // namespace packager::http

// Counts what happens to the requests, in the terms of Triton's statistics.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>

namespace packager::http {

// The times of one run, in nanoseconds.
struct RunTimes {
    std::int64_t queued = 0, started = 0, ran = 0;
};

// Durations are in nanoseconds, and counted once for each request.
struct Counts {
    std::uint64_t success = 0, failures = 0, invalid = 0, rejected = 0, timed_out = 0;
    std::int64_t success_ns = 0, fail_ns = 0;
    std::int64_t inferences = 0, executions = 0;
    std::int64_t queue = 0, compute_infer = 0;
    std::int64_t last_inference = 0;  // milliseconds since 1970
    struct Runs {
        std::int64_t count = 0, compute_infer = 0;
    };
    std::map<std::int64_t, Runs> runs_by_size;
};

enum class RunOutcome { success, failure, late };  // late: its time limit came first

class Statistics {
public:
    void record_run(std::int64_t size, const RunTimes& times, RunOutcome outcome);
    void count_invalid();
    void count_rejected();
    void count_timed_out();
    Counts read() const;

private:
    mutable std::mutex mutex_;
    Counts counts_;
};

}  // namespace packager::http

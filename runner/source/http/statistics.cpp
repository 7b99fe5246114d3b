#include "http/statistics.hpp"

#include <chrono>

#include "http/clock.hpp"

namespace packager::http {
namespace {

constexpr std::size_t max_sizes = 1000;  // different batches that are counted each by itself: clients choose them

std::int64_t wall_clock_ms() {
    return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

}  // namespace

void Statistics::record_run(std::int64_t size, const RunTimes& times, RunOutcome outcome) {
    const std::int64_t now = now_ns();
    const std::scoped_lock lock(mutex_);
    counts_.queue += times.started - times.queued;
    counts_.compute_infer += times.ran - times.started;
    if (outcome == RunOutcome::late) return;
    if (outcome == RunOutcome::failure) {
        ++counts_.failures;
        counts_.fail_ns += now - times.queued;
        return;
    }
    ++counts_.success;
    counts_.success_ns += now - times.queued;
    if (size == 0) return;
    ++counts_.executions;
    counts_.inferences += size;
    if (counts_.runs_by_size.size() < max_sizes || counts_.runs_by_size.count(size) > 0) {
        Counts::Runs& runs = counts_.runs_by_size[size];
        ++runs.count;
        runs.compute_infer += times.ran - times.started;
    }
    counts_.last_inference = wall_clock_ms();
}

void Statistics::count_invalid() {
    const std::scoped_lock lock(mutex_);
    ++counts_.invalid;
}

void Statistics::count_rejected() {
    const std::scoped_lock lock(mutex_);
    ++counts_.rejected;
}

void Statistics::count_timed_out() {
    const std::scoped_lock lock(mutex_);
    ++counts_.timed_out;
}

Counts Statistics::read() const {
    const std::scoped_lock lock(mutex_);
    return counts_;
}

}  // namespace packager::http

// An infer request on its way through the queue.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "http/body_budget.hpp"
#include "http/buffer.hpp"
#include "http/clock.hpp"
#include "http/head.hpp"
#include "http/messages.hpp"
#include "http/workspace.hpp"

namespace packager::http {

struct Job;

// Takes a job that has its answer, in the thread of a worker.
class JobReceiver {
public:
    JobReceiver() = default;
    JobReceiver(const JobReceiver&) = delete;
    JobReceiver(JobReceiver&&) = delete;
    JobReceiver& operator=(const JobReceiver&) = delete;
    JobReceiver& operator=(JobReceiver&&) = delete;
    virtual ~JobReceiver() = default;

    virtual void receive(std::shared_ptr<Job> job) = 0;
};

struct Job {
    JobReceiver* receiver = nullptr;
    std::uint64_t connection = 0;
    InferHeaders headers;
    Buffer memory;  // of the body
    Span body;
    Reservation reservation;
    std::unique_ptr<Workspace> workspace;
    bool is_decoded = false;
    std::int64_t queued = 0;
    Response response;

    // Whoever claims the job first has its answer counted: the worker that ran it, or the time limit.
    bool claim() { return !claimed_.exchange(true); }
    bool is_claimed() const { return claimed_.load(); }

private:
    std::atomic<bool> claimed_{false};
};

}  // namespace packager::http

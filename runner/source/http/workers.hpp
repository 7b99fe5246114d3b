// The threads that run longer requests, and the queue in front of them.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "http/job.hpp"
#include "http/model.hpp"
#include "http/settings.hpp"

namespace packager::http {

class Workers {
public:
    Workers(Model& model, BodyBudget& budget, const Settings& settings);

    void start();
    // Throws Rejected, 503, if too many wait.
    void submit(std::shared_ptr<Job> job);
    // Takes a job out of the queue if it still waits there.
    void remove(const Job& job);
    std::size_t pending() const;  // waiting or running
    // Ends the threads, and returns whether all have ended: a run cannot be stopped.
    bool stop();

private:
    void work();
    void process(Job& job);

    Model& model_;
    BodyBudget& budget_;
    const Settings& settings_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::shared_ptr<Job>> waiting_;
    std::size_t running_ = 0;
    bool is_stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace packager::http

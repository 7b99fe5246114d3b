#include "http/workers.hpp"

#include <algorithm>

namespace packager::http {

Workers::Workers(Model& model, BodyBudget& budget, const Settings& settings)
    : model_(model), budget_(budget), settings_(settings) {}

void Workers::start() {
    for (std::size_t count = 0; count < settings_.threads; ++count) threads_.emplace_back([this] { work(); });
}

void Workers::submit(std::shared_ptr<Job> job) {
    {
        const std::scoped_lock lock(mutex_);
        if (waiting_.size() >= settings_.max_queue) {
            model_.statistics().count_rejected();
            throw Rejected(503, "the queue of the model is full; try again", "retry-after: 1\r\n");
        }
        waiting_.push_back(std::move(job));
    }
    changed_.notify_one();
}

void Workers::remove(const Job& job) {
    std::shared_ptr<Job> removed;  // freed without the lock
    const std::scoped_lock lock(mutex_);
    const auto entry =
        std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& waiting) { return waiting.get() == &job; });
    if (entry == waiting_.end()) return;
    removed = std::move(*entry);
    waiting_.erase(entry);
}

std::size_t Workers::pending() const {
    const std::scoped_lock lock(mutex_);
    return waiting_.size() + running_;
}

bool Workers::stop() {
    {
        const std::scoped_lock lock(mutex_);
        is_stopping_ = true;
        if (running_ > 0) {
            for (std::thread& thread : threads_) thread.detach();
            threads_.clear();
            return false;
        }
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return true;
}

void Workers::work() {
    for (;;) {
        std::shared_ptr<Job> job;
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return is_stopping_ || !waiting_.empty(); });
            if (is_stopping_) return;
            job = std::move(waiting_.front());
            waiting_.pop_front();
            ++running_;
        }
        if (!job->is_claimed()) process(*job);
        {
            const std::scoped_lock lock(mutex_);
            --running_;
        }
        JobReceiver* const receiver = job->receiver;
        receiver->receive(std::move(job));
    }
}

void Workers::process(Job& job) {
    try {
        if (!job.is_decoded) model_.decode(job.body, job.headers, budget_, *job.workspace);
        model_.run(*job.workspace, job.headers, job.queued, [&job] { return job.claim(); }, job.response);
    } catch (const Rejected& error) {
        job.claim();
        job.response.set_error(error);
    } catch (const std::exception& error) {
        log_bug("answering a request failed", error.what());
        job.claim();
        job.response.set_error(Rejected(500, "internal error"));
    }
}

}  // namespace packager::http

// What all threads share: the model, its limits and counters, and the routes that need no run.
#pragma once

#include <atomic>
#include <string>

#include "http/body_budget.hpp"
#include "http/metrics.hpp"
#include "http/model.hpp"
#include "http/routes.hpp"
#include "http/settings.hpp"
#include "http/workers.hpp"

namespace packager::http {

class Service {
public:
    Service(const Config& config, const Session& session, const Settings& limits);

    const Settings settings;
    Model model;
    BodyBudget budget;
    Workers workers;
    HttpDurations durations;
    std::atomic<bool> is_ready{true};  // false as soon as the server is asked to stop
    std::atomic<std::size_t> connections{0};  // that are open

    // The path that nearly all requests have.
    bool is_infer_path(std::string_view path) const { return path == infer_path_; }

    // Answers a request to any other route. Throws Rejected.
    void answer(const Route& route, std::string_view body, Response& response);
    // Throws Rejected, 404.
    void check_model(const Route& route) const;

private:
    void answer_readiness(std::string_view model_name, Response& response) const;

    std::string infer_path_;
};

// Throws Rejected, 405.
void check_method(const Route& route, std::string_view method);

}  // namespace packager::http

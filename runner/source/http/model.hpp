// The served model: decodes a request, runs it, and encodes the answer, in any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "http/response_encoder.hpp"
#include "http/statistics.hpp"
#include "http/wire.hpp"
#include "http/workspace.hpp"
#include "session.hpp"

namespace packager::http {

class Model {
public:
    Model(const Config& config, const Session& session);

    const WireSignature& signature() const { return signature_; }
    Statistics& statistics() { return statistics_; }

    // Sets the request of the workspace, whose arrays may be views of the body; it is decompressed within the limits.
    // Throws Rejected.
    void decode(Span body, const InferHeaders& headers, BodyBudget& budget, Workspace& workspace);

    // Whether a run of so many elements is expected to take less time than switching threads is worth.
    bool is_quick(std::size_t elements) const { return elements <= quick_elements_.load(std::memory_order_relaxed); }

    // Runs the decoded request, and sets the answer: the outputs, or an error. `claim` says whether the answer is
    // still wanted; it is asked once. Nothing is thrown.
    template <typename Claim>
    void run(Workspace& workspace, const InferHeaders& headers, std::int64_t queued, Claim claim, Response& response) {
        RunTimes times;
        times.queued = queued;
        const Result result = run_session(workspace.request, times);
        const RunOutcome outcome = result.is_answer ? RunOutcome::success : RunOutcome::failure;
        statistics_.record_run(workspace.request.find_batch(signature_), times, claim() ? outcome : RunOutcome::late);
        encode(workspace.request, headers, result, response);
    }

private:
    struct Result {
        bool is_answer = false;
        Arrays outputs;
        Rejected error{500, "internal error"};
    };
    Result run_session(const InferRequest& request, RunTimes& times);
    void learn_quickness(std::size_t elements, std::int64_t duration);
    void encode(const InferRequest& request, const InferHeaders& headers, const Result& result, Response& response);

    WireSignature signature_;
    ResponseEncoder encoder_;
    const Session& session_;
    Statistics statistics_;
    std::atomic<std::size_t> quick_elements_{0};
    std::mutex large_text_;
};

// Logs an exception that is no answer to anything a client did.
void log_bug(std::string_view what, std::string_view why);

}  // namespace packager::http

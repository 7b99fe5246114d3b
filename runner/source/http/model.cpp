#include "http/model.hpp"

#include "error.hpp"
#include "http/access_log.hpp"
#include "http/clock.hpp"
#include "http/compression.hpp"
#include "text.hpp"

namespace packager::http {
namespace {

constexpr std::int64_t quick_ns = 500'000;
constexpr std::size_t large_text = std::size_t{4} << 20U;
constexpr std::size_t max_message = 1000;  // characters

std::string truncate(const std::string& text) {
    std::size_t end = 0;
    for (std::size_t count = 0; count < max_message && end < text.size(); ++count) {
        end += read_character(text, end).size;
    }
    return text.substr(0, end);
}

// 400 if the values of the request are the cause, such as an index outside its table, else 500.
Rejected explain_failure(const Error& error) {
    if (error.code == "data-does-not-fit") return {400, error.where + ": " + error.why};
    if (error.code != "inference-failed") {
        log_bug("running the model failed", error.message + ": " + error.why);
        return {500, "internal error"};
    }
    const bool of_values = error.why.find("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT") != std::string::npos;
    return {of_values ? 400 : 500, truncate(error.message + ": " + error.why)};
}

}  // namespace

void log_bug(std::string_view what, std::string_view why) {
    log_line("a bug in packager: " + escape_unprintable(what) + ": " + escape_unprintable(why));
}

Model::Model(const Config& config, const Session& session)
    : signature_(make_wire_signature(config)), encoder_(signature_), session_(session) {}

void Model::decode(Span body, const InferHeaders& headers, BodyBudget& budget, Workspace& workspace) {
    try {
        const std::optional<Coding> coding =
            headers.content_encoding.given ? read_coding(headers.content_encoding.value) : std::nullopt;
        if (coding) {
            workspace.decompressed = decompress(body, *coding, budget.limit());
            body = {reinterpret_cast<const std::byte*>(workspace.decompressed.data()), workspace.decompressed.size()};
            workspace.decompressed_reservation.add(budget, body.size);
        }
        // A text takes up to twelve times its size while it is parsed: large ones are parsed one at a time.
        std::unique_lock lock(large_text_, std::defer_lock);
        if (body.size > large_text) lock.lock();
        decode_request(signature_, body, headers.inference_length, workspace.parser, workspace.request);
        if (lock) workspace.parser.trim();
    } catch (const Rejected&) {
        workspace.parser.trim();
        statistics_.count_invalid();
        throw;
    }
}

Model::Result Model::run_session(const InferRequest& request, RunTimes& times) {
    Result result;
    times.started = now_ns();
    try {
        result.outputs = session_.run(request.inputs);
        result.is_answer = true;
    } catch (const Error& error) {
        result.error = explain_failure(error);
    } catch (const std::exception& error) {
        log_bug("running the model failed", error.what());
    }
    times.ran = now_ns();
    learn_quickness(request.count_elements(), times.ran - times.started);
    return result;
}

void Model::learn_quickness(std::size_t elements, std::int64_t duration) {
    const std::size_t quick = quick_elements_.load(std::memory_order_relaxed);
    if (duration < quick_ns) {
        if (elements > quick) quick_elements_.store(elements, std::memory_order_relaxed);
    } else if (elements <= quick) {
        quick_elements_.store(elements / 2, std::memory_order_relaxed);
    }
}

void Model::encode(const InferRequest& request, const InferHeaders& headers, const Result& result, Response& response) {
    response.clear();
    if (!result.is_answer) {
        response.set_error(result.error);
        return;
    }
    try {
        encoder_.encode(request, result.outputs, response);
        if (!headers.accept_encoding.given) return;
        const std::optional<Coding> coding = choose_coding(headers.accept_encoding.value);
        if (coding) compress(response, *coding);
    } catch (const Rejected& error) {
        response.set_error(error);
    } catch (const std::exception& error) {
        log_bug("encoding an answer failed", error.what());
        response.set_error(Rejected(500, "internal error"));
    }
}

}  // namespace packager::http

#include "http/metrics.hpp"

#include <algorithm>
#include <cstdio>

namespace packager::http {
namespace {

constexpr std::array<std::string_view, 15> bound_texts{"0.005", "0.01", "0.025", "0.05", "0.075", "0.1",  "0.25", "0.5",
                                                       "0.75",  "1.0",  "2.5",   "5.0",  "7.5",   "10.0", "+Inf"};

void append_header(std::string& text, const std::string& name, std::string_view help, std::string_view type) {
    text += "# HELP " + name + ' ';
    text += help;
    text += "\n# TYPE " + name + ' ';
    text += type;
    text += '\n';
}

void append_sample(std::string& text, std::string_view name, std::string_view labels, std::string_view value) {
    text.append(name).append("{").append(labels).append("} ").append(value).append("\n");
}

struct Counter {
    std::string_view suffix, help;
    std::uint64_t value;
};

}  // namespace

void HttpDurations::record(std::string_view method, std::string_view route, int status, double seconds) {
    const auto bucket = static_cast<std::size_t>(
        std::lower_bound(duration_bounds.begin(), duration_bounds.end(), seconds) - duration_bounds.begin());
    const std::scoped_lock lock(mutex_);
    auto series = std::find_if(series_.begin(), series_.end(), [&](const Series& each) {
        return each.status == status && each.route == route && each.method == method;
    });
    if (series == series_.end()) {
        Series added;
        added.method = method;
        added.route = route;
        added.status = status;
        series = series_.insert(series_.end(), added);
    }
    ++series->counts[bucket];
    series->sum += seconds;
}

std::string HttpDurations::render() const {
    const std::string name = "http_server_request_duration_seconds";
    std::string text;
    append_header(text, name, "Duration of HTTP server requests.", "histogram");
    const std::scoped_lock lock(mutex_);
    for (const Series& series : series_) {
        const std::string labels = "http_request_method=\"" + std::string(series.method) +
                                   "\",http_response_status_code=\"" + std::to_string(series.status) +
                                   "\",http_route=\"" + std::string(series.route) + '"';
        std::uint64_t total = 0;
        for (std::size_t bucket = 0; bucket < series.counts.size(); ++bucket) {
            total += series.counts[bucket];
            const std::string bound = ",le=\"" + std::string(bound_texts[bucket]) + '"';
            append_sample(text, name + "_bucket", labels + bound, std::to_string(total));
        }
        char sum[64];
        std::snprintf(sum, sizeof sum, "%.9f", series.sum);
        append_sample(text, name + "_sum", labels, sum);
        append_sample(text, name + "_count", labels, std::to_string(total));
    }
    return text;
}

std::string render_metrics(const WireSignature& signature, const Counts& counts, std::size_t pending,
                           const HttpDurations& durations) {
    const auto microseconds = [](std::int64_t nanoseconds) { return static_cast<std::uint64_t>(nanoseconds / 1000); };
    const std::array<Counter, 8> counters{{
        {"request_success", "Requests that were answered with outputs", counts.success},
        {"count", "Inferences: the batch of every successful request", static_cast<std::uint64_t>(counts.inferences)},
        {"exec_count", "Runs of the model; a run may join several requests",
         static_cast<std::uint64_t>(counts.executions)},
        {"request_duration_us", "From queueing to the result", microseconds(counts.success_ns)},
        {"queue_duration_us", "Waiting in the queue", microseconds(counts.queue)},
        {"compute_input_duration_us", "Joining inputs", 0},
        {"compute_infer_duration_us", "Running the model", microseconds(counts.compute_infer)},
        {"compute_output_duration_us", "Splitting outputs", 0},
    }};
    const std::string labels = "model=\"" + signature.model + "\",version=\"" + signature.version + '"';
    std::string text;
    for (const Counter& counter : counters) {
        const std::string name = "nv_inference_" + std::string(counter.suffix);
        append_header(text, name, counter.help, "counter");
        append_sample(text, name, labels, std::to_string(counter.value));
    }
    const std::string failures = "nv_inference_request_failure";
    append_header(text, failures, "Requests that failed, by reason", "counter");
    const std::array<std::pair<std::string_view, std::uint64_t>, 4> reasons{{{"REJECTED", counts.rejected},
                                                                             {"CANCELED", counts.timed_out},
                                                                             {"BACKEND", counts.failures},
                                                                             {"OTHER", counts.invalid}}};
    for (const auto& [reason, count] : reasons) {
        append_sample(text, failures, labels + ",reason=\"" + std::string(reason) + '"', std::to_string(count));
    }
    const std::string waiting = "nv_inference_pending_request_count";
    append_header(text, waiting, "Requests that wait or run", "gauge");
    append_sample(text, waiting, labels, std::to_string(pending));
    return text + durations.render();
}

}  // namespace packager::http

#include "http/access_log.hpp"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <string>

#include "http/messages.hpp"
#include "python_text.hpp"
#include "text.hpp"

namespace packager::http {
namespace {

constexpr std::size_t max_text = 200;    // characters
constexpr std::size_t max_error = 1000;  // characters
constexpr std::size_t max_traceparent = 512;

bool is_hex(std::string_view text) { return text.find_first_not_of("0123456789abcdef") == std::string_view::npos; }

bool has_more_than_zeros(std::string_view text) { return text.find_first_not_of('0') != std::string_view::npos; }

std::string_view truncate(std::string_view text, std::size_t characters) {
    std::size_t end = 0;
    for (; characters > 0 && end < text.size(); --characters) end += read_character(text, end).size;
    return text.substr(0, end);
}

std::string format_time() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    char text[32];
    return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

}  // namespace

bool is_traceparent(std::string_view value) {
    if (value.size() < 55 || value.size() > max_traceparent || (value.size() > 55 && value[55] != '-')) return false;
    const std::string_view version = value.substr(0, 2), trace = value.substr(3, 32), span = value.substr(36, 16);
    const bool separated = value[2] == '-' && value[35] == '-' && value[52] == '-';
    if (!separated || version == "ff" || value.find('\n') != std::string_view::npos) return false;
    return is_hex(version) && is_hex(trace) && has_more_than_zeros(trace) && is_hex(span) &&
           has_more_than_zeros(span) && is_hex(value.substr(53, 2));
}

void log_request(const LoggedRequest& request) {
    std::string line = R"({"time":")" + format_time() + R"(","level":")";
    line += request.status >= 500 ? "warning" : "info";
    line += R"(","method":)";
    append_quoted(line, truncate(request.head.method, max_text));
    line += R"(,"path":)";
    append_quoted(line, truncate(request.head.path, max_text));
    line += R"(,"status":)" + std::to_string(request.status);
    line += R"(,"duration_ms":)" + repr(std::round(request.seconds * 1e6) / 1e3);
    line += R"(,"request_bytes":)" + std::to_string(request.body_bytes);
    const HeaderValue& trace = request.head.traceparent;
    if (trace.given && is_traceparent(trace.value)) {
        line += R"(,"trace_id":")" + trace.value.substr(3, 32) + R"(","span_id":")" + trace.value.substr(36, 16) + '"';
    }
    if (!request.error.empty()) {
        line += R"(,"error":)";
        append_quoted(line, truncate(request.error, max_error));
    }
    log_line(line + '}');
}

void log_line(std::string_view text) {
    std::string line(text);
    line += '\n';
    for (std::size_t position = 0; position < line.size();) {
        const ssize_t written = ::write(STDERR_FILENO, line.data() + position, line.size() - position);
        if (written <= 0) return;  // nobody reads the log
        position += static_cast<std::size_t>(written);
    }
}

}  // namespace packager::http

// The log of requests: one line of JSON each on stderr, with the ids of the trace that a request belongs to.
#pragma once

#include <cstddef>
#include <string_view>

#include "http/head.hpp"

namespace packager::http {

// Whether a header is a valid `traceparent` (https://www.w3.org/TR/trace-context/).
bool is_traceparent(std::string_view value);

struct LoggedRequest {
    const Head& head;
    std::size_t body_bytes = 0;
    int status = 0;
    double seconds = 0;
    std::string_view error;  // that it was answered with
};

void log_request(const LoggedRequest& request);

// Writes a line of text to stderr in one piece.
void log_line(std::string_view text);

}  // namespace packager::http

// The head of an HTTP/1.1 request: the bytes up to the empty line, parsed by llhttp as httptools does it for Python.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace packager::http {

constexpr std::size_t max_head_bytes = std::size_t{32} << 10U;

// A header that may be absent; one object is used for many requests, to keep its memory.
struct HeaderValue {
    std::string value;
    bool given = false;
};

// The headers that an infer request may have.
struct InferHeaders {
    HeaderValue content_encoding, accept_encoding, inference_length;
};

struct Head {
    std::string_view method;
    std::string path;  // decoded, without the query
    std::uint64_t length = 0;
    bool chunked = false;  // the length is not known
    bool keep_alive = false;
    bool expects_continue = false;
    HeaderValue traceparent;
    InferHeaders infer;
};

// Parses a head that ends with its empty line. Throws Rejected, 400, 501 or 505.
void parse_head(std::string_view content, Head& head);

// The path of a request's target; nothing if it has none, or if the host before it is malformed.
std::optional<std::string_view> find_path(std::string_view url);

// Undoes percent encoding, as Python's urllib.parse.unquote.
void unquote(std::string_view text, std::string& decoded);

}  // namespace packager::http

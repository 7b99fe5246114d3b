#include "http/messages.hpp"

#include <array>
#include <utility>

namespace packager::http {
namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD";
constexpr std::size_t memory_to_keep = std::size_t{1} << 20U;

constexpr std::array<std::pair<int, std::string_view>, 14> status_lines{{
    {200, "HTTP/1.1 200 OK\r\n"},
    {400, "HTTP/1.1 400 Bad Request\r\n"},
    {403, "HTTP/1.1 403 Forbidden\r\n"},
    {404, "HTTP/1.1 404 Not Found\r\n"},
    {405, "HTTP/1.1 405 Method Not Allowed\r\n"},
    {408, "HTTP/1.1 408 Request Timeout\r\n"},
    {413, "HTTP/1.1 413 Request Entity Too Large\r\n"},
    {415, "HTTP/1.1 415 Unsupported Media Type\r\n"},
    {431, "HTTP/1.1 431 Request Header Fields Too Large\r\n"},
    {501, "HTTP/1.1 501 Not Implemented\r\n"},
    {503, "HTTP/1.1 503 Service Unavailable\r\n"},
    {504, "HTTP/1.1 504 Gateway Timeout\r\n"},
    {505, "HTTP/1.1 505 HTTP Version Not Supported\r\n"},
    {500, "HTTP/1.1 500 Internal Server Error\r\n"},
}};

struct Sequence {
    std::size_t size = 1;  // of the character, or of the bytes that one U+FFFD replaces
    bool valid = false;
};

// The longest beginning of a character at this position; Unicode's table 3-7 limits the second byte.
Sequence measure_character(std::string_view text, std::size_t position) {
    const auto byte = [&](std::size_t index) { return static_cast<unsigned char>(text[index]); };
    const unsigned first = byte(position);
    if (first < 0x80) return {1, true};
    if (first < 0xC2 || first > 0xF4) return {1, false};
    const std::size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    unsigned low = first == 0xE0 ? 0xA0U : first == 0xF0 ? 0x90U : 0x80U;
    unsigned high = first == 0xED ? 0x9FU : first == 0xF4 ? 0x8FU : 0xBFU;
    for (std::size_t index = 1; index < size; ++index) {
        if (position + index >= text.size()) return {index, false};
        const unsigned next = byte(position + index);
        if (next < low || next > high) return {index, false};
        low = 0x80;
        high = 0xBF;
    }
    return {size, true};
}

void append_escaped(std::string& text, char character) {
    switch (character) {
        case '"':
            text += "\\\"";
            return;
        case '\\':
            text += "\\\\";
            return;
        case '\b':
            text += "\\b";
            return;
        case '\f':
            text += "\\f";
            return;
        case '\n':
            text += "\\n";
            return;
        case '\r':
            text += "\\r";
            return;
        case '\t':
            text += "\\t";
            return;
        default:
            break;
    }
    if (static_cast<unsigned char>(character) >= ' ') {
        text += character;
        return;
    }
    constexpr std::string_view digits = "0123456789abcdef";
    text += "\\u00";
    text += digits[static_cast<unsigned char>(character) >> 4U];
    text += digits[static_cast<unsigned char>(character) & 15U];
}

}  // namespace

Rejected::Rejected(int code, std::string text, std::string header_lines)
    : status(code), message(std::move(text)), headers(std::move(header_lines)) {}

const char* Rejected::what() const noexcept { return message.c_str(); }

void Response::clear() {
    status = 200;
    headers.clear();
    body.clear();
    if (body.capacity() > memory_to_keep) body.shrink_to_fit();
    tensors.clear();
    error.clear();
}

std::size_t Response::body_size() const {
    std::size_t size = body.size();
    for (const TensorBytes& tensor : tensors) size += tensor.size;
    return size;
}

void Response::set_json(int code) {
    status = code;
    headers = "content-type: application/json\r\n";
}

void Response::set_error(const Rejected& rejected) {
    clear();
    set_json(rejected.status);
    headers += rejected.headers;
    body = "{\"error\":";
    append_quoted(body, rejected.message);
    body += '}';
    error = rejected.message;
}

std::string_view status_line(int status) {
    for (const auto& [code, line] : status_lines) {
        if (code == status) return line;
    }
    return status_lines.back().second;
}

void append_quoted(std::string& text, std::string_view content) {
    text += '"';
    for (std::size_t position = 0; position < content.size();) {
        const Sequence sequence = measure_character(content, position);
        if (!sequence.valid) {
            text += replacement;
        } else if (sequence.size == 1) {
            append_escaped(text, content[position]);
        } else {
            text += content.substr(position, sequence.size);
        }
        position += sequence.size;
    }
    text += '"';
}

std::string replace_invalid(std::string_view bytes) {
    std::string text;
    for (std::size_t position = 0; position < bytes.size();) {
        const Sequence sequence = measure_character(bytes, position);
        text += sequence.valid ? bytes.substr(position, sequence.size) : replacement;
        position += sequence.size;
    }
    return text;
}

}  // namespace packager::http

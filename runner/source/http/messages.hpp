// HTTP as the routes see it: an answer, and the exception that becomes one.
#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace packager::http {

// A request that is answered with an error: `{"error": message}` and an HTTP status.
struct Rejected : std::exception {
    int status;
    std::string message;
    std::string headers;  // whole lines

    Rejected(int code, std::string text, std::string header_lines = "");
    const char* what() const noexcept override;
};

// Bytes of the body of an answer that something else owns: an output of the model.
struct TensorBytes {
    const std::byte* data = nullptr;
    std::size_t size = 0;
    std::shared_ptr<const void> owner;
};

// An answer: its body is `body`, and then `tensors`. One object is used for many answers, to keep its memory.
struct Response {
    int status = 200;
    std::string headers;  // whole lines; the length of the body is not among them
    std::string body;
    std::vector<TensorBytes> tensors;
    std::string error;  // for the log

    void clear();
    std::size_t body_size() const;
    void set_json(int code);  // the body is set apart
    void set_error(const Rejected& error);
};

// "HTTP/1.1 200 OK\r\n"
std::string_view status_line(int status);

// Appends a JSON string in UTF-8, with its quotes. Bytes that are not UTF-8 become U+FFFD.
void append_quoted(std::string& text, std::string_view content);

// The text with U+FFFD where it is not UTF-8, as Python's `bytes.decode(errors="replace")` returns it.
std::string replace_invalid(std::string_view bytes);

}  // namespace packager::http

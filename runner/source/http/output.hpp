// An answer on its way into a socket.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "http/messages.hpp"

namespace packager::http {

// What is left of an answer that the socket did not take at once.
struct Output {
    std::string head, body;
    std::vector<TensorBytes> tensors;
    std::size_t sent = 0;
};

enum class Sent { whole, part, failed };

// Writes the parts from byte `sent` on, as far as the socket takes them, and moves `sent`.
Sent send_parts(int socket, std::string_view head, std::string_view body, const std::vector<TensorBytes>& tensors,
                std::size_t& sent);

}  // namespace packager::http

// Compresses and decompresses bodies: gzip, and deflate, which in HTTP is the zlib format (RFC 9110, 8.4.1.2).
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "bundle.hpp"
#include "http/buffer.hpp"
#include "http/messages.hpp"

namespace packager::http {

enum class Coding { gzip, deflate };

// The coding of a Content-Encoding; nothing for none. Throws Rejected, 415.
std::optional<Coding> read_coding(std::string_view content_encoding);

// Throws Rejected: 413 beyond `limit` bytes, else 400.
Buffer decompress(Span body, Coding coding, std::size_t limit);

// The coding to compress an answer with. A client that wants compression names one; a list of several is what HTTP
// libraries send on their own, and compressing tensors for them would cost more than it saves.
std::optional<Coding> choose_coding(std::string_view accept_encoding);

// Compresses the parts of a body as one, and adds the headers that say so.
void compress(Response& response, Coding coding);

}  // namespace packager::http

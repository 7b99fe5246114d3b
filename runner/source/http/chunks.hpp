// Decodes a body in chunks (RFC 9112, 7.1), strictly: a proxy must not see its end at a different place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "http/buffer.hpp"

namespace packager::http {

class ChunkDecoder {
public:
    // Takes the bytes of a body as they arrive, and returns how many it used; the others belong to what follows, or
    // have to come again with more behind them. Throws Rejected, 400.
    std::size_t feed(std::string_view bytes, Buffer& body);

    bool is_complete() const { return is_complete_; }

private:
    std::size_t read_size(std::string_view bytes);
    std::size_t take_chunk(std::string_view bytes, Buffer& body);
    std::size_t skip_trailer(std::string_view bytes);

    std::uint64_t left_ = 0;  // of the chunk that is being received, with its line break
    bool in_trailer_ = false;
    bool is_complete_ = false;
};

}  // namespace packager::http

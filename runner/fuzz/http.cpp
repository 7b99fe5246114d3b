// Requests: the head, the body in chunks, and its compression.
#include <vector>

#include "harness.hpp"
#include "http/chunks.hpp"
#include "http/compression.hpp"
#include "http/head.hpp"
#include "http/messages.hpp"

namespace {

constexpr std::size_t limit = std::size_t{1} << 20U;

// Feeds the body in two pieces, split where its first byte says.
packager::http::Buffer decode_chunks(std::string_view body) {
    packager::http::ChunkDecoder decoder;
    packager::http::Buffer decoded;
    const std::size_t split = body.empty() ? 0 : static_cast<unsigned char>(body[0]) % (body.size() + 1);
    std::size_t used = 0;
    for (const std::size_t end : {split, body.size()}) {
        while (used < end && !decoder.is_complete()) {
            const std::size_t count = decoder.feed(body.substr(used, end - used), decoded);
            packager::fuzz::require(count <= end - used);
            if (count == 0) break;
            used += count;
        }
    }
    return decoded;
}

void parse(std::string_view text) {
    using namespace packager::http;
    const std::size_t end = text.find("\r\n\r\n");
    if (end == std::string_view::npos || end + 4 > max_head_bytes) return;
    Head head;
    parse_head(text.substr(0, end + 4), head);
    std::string_view body = text.substr(end + 4);
    Buffer decoded;
    if (head.chunked) {
        decoded = decode_chunks(body);
        body = {decoded.data(), decoded.size()};
    }
    choose_coding(head.infer.accept_encoding.value);
    if (const auto coding = read_coding(head.infer.content_encoding.value)) {
        const Buffer content = decompress(packager::fuzz::to_span(body), *coding, limit);
        packager::fuzz::require(content.size() <= limit);
        Response response;
        response.body.assign(content.data(), content.size());
        compress(response, *coding);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    try {
        parse(fuzz::to_span(data, size).text());
    } catch (const http::Rejected& rejected) {
        fuzz::require(rejected.status >= 400 && rejected.status < 600);
        http::Response response;
        response.set_error(rejected);
        fuzz::require(!response.body.empty());
    }
    return 0;
}

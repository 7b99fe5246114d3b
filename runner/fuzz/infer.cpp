// The body of an inference request: two bytes with the length of its JSON, which the header would have, then the body.
#include <cstring>
#include <vector>

#include "harness.hpp"
#include "http/buffer.hpp"
#include "http/infer_request.hpp"
#include "http/messages.hpp"

namespace {

packager::http::WireSignature make_wire() {
    packager::Config config;
    config.name = "model";
    config.version = "1.0.0";
    config.signature = packager::fuzz::make_signature();
    config.signature.inputs.resize(3);
    config.signature.outputs = {{"logits", packager::DType::float32, {std::string("batch"), std::int64_t{2}}, {}}};
    return packager::http::make_wire_signature(config);
}

void decode(packager::Span body, const packager::http::HeaderValue& length) {
    using namespace packager;
    static const http::WireSignature signature = make_wire();
    static http::JsonParser parser;
    static http::InferRequest request(signature);
    try {
        http::decode_request(signature, body, length, parser, request);
        fuzz::touch(request.inputs);
        fuzz::require(request.inputs.size() == signature.inputs.size());
        for (const auto& output : request.outputs) fuzz::require(output.index < signature.outputs.size());
        request.find_batch(signature);
        request.count_elements();
    } catch (const http::Rejected& rejected) {
        fuzz::require(rejected.status >= 400 && rejected.status < 500);
    }
    request.trim();
    parser.trim();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace packager;
    if (size < 2) return 0;
    const std::size_t length = data[0] | static_cast<std::size_t>(data[1]) << 8U;
    http::Buffer body;  // has the padding that simdjson reads
    body.append({reinterpret_cast<const char*>(data + 2), size - 2});
    const Span content = body.empty() ? Span{} : fuzz::to_span({body.data(), body.size()});
    decode(content, {});
    decode(content, {std::to_string(length), true});
    return 0;
}

// The body of an infer request to arrays by name: the Open Inference Protocol v2, in JSON or with bytes after it.
#pragma once

#include <simdjson.h>

#include <memory>
#include <string>
#include <vector>

#include "array.hpp"
#include "http/head.hpp"
#include "http/tensors.hpp"
#include "http/wire.hpp"

namespace packager::http {

struct RequestedOutput {
    std::size_t index = 0;
    bool binary = false;
};

// A decoded request. One object is used for many requests, to keep its memory; its arrays may be views of the body.
struct InferRequest {
    explicit InferRequest(const WireSignature& signature);

    bool has_id = false;
    std::string id;
    Arrays inputs;  // in the order of the signature
    std::vector<RequestedOutput> outputs;

    std::size_t count_elements() const;
    std::int64_t find_batch(const WireSignature& signature) const;  // 1 for a model without a batch dim
    void trim();                                                   // returns memory that only a large request needed
    // Moves the views of a body along with it, to memory of the same alignment.
    void rebase(Span before, const std::byte* after);

    // Of the decoder: the memory of the inputs, which were given and in what order, and the sizes of named dims.
    std::vector<TensorMemory> memory;
    std::vector<std::size_t> order;
    std::vector<std::int64_t> sizes;
    Shape shape;
};

// Parses texts, and keeps the memory that small ones need.
class JsonParser {
public:
    // The text needs `padding` readable bytes behind it. Throws Rejected, 400.
    simdjson::dom::element parse(std::string_view text);
    void trim();

private:
    simdjson::dom::parser parser_;
    std::unique_ptr<simdjson::dom::parser> large_parser_;
};

// Throws Rejected.
void decode_request(const WireSignature& signature, Span body, const HeaderValue& inference_length, JsonParser& parser,
                    InferRequest& request);

}  // namespace packager::http

// The signature of the served model in the protocol's terms, ready to check requests with.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle.hpp"

namespace packager::http {

// A dim is a fixed size, a named dim by its index, or of any size.
struct WireDim {
    enum class Kind { fixed, named, any };
    Kind kind = Kind::any;
    std::int64_t size = 0;
    std::size_t index = 0;
};

struct WireTensor {
    std::string name;
    DType dtype = DType::float32;  // of the bytes in a request: bfloat16 is passed on as float32
    std::string_view datatype;     // "FP32"
    std::vector<WireDim> dims;

    // -1 for a dynamic dim
    Shape describe_shape() const;
};

struct NamedDim {
    std::string name;
    std::int64_t min = 0;
    std::optional<std::int64_t> max;
};

struct WireSignature {
    std::string model, version;
    std::vector<WireTensor> inputs, outputs;
    std::vector<NamedDim> dims;
    // The named dim that every input and output begins with, and that nothing else has.
    std::optional<std::size_t> batch_dim;

    // Checks the shape of an input. `sizes` has the sizes of the named dims of one request, -1 for those that were
    // not seen. Throws Rejected, 400.
    void check_shape(const WireTensor& tensor, const Shape& shape, std::vector<std::int64_t>& sizes) const;
};

WireSignature make_wire_signature(const Config& config);

std::string_view datatype_of(DType dtype);

// The product of sizes with all its digits, however many, for messages.
std::string multiply_exactly(const Shape& shape, std::size_t factor);

}  // namespace packager::http

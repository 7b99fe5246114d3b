#include "http/wire.hpp"

#include <algorithm>
#include <array>

#include "http/messages.hpp"

namespace packager::http {
namespace {

// In the order of DType.
constexpr std::array<std::string_view, 13> datatypes{"BOOL",   "INT8",   "INT16", "INT32", "INT64", "UINT8", "UINT16",
                                                     "UINT32", "UINT64", "FP16",  "BF16",  "FP32",  "FP64"};

std::string join(const Shape& shape) {
    std::string text;
    for (const std::int64_t size : shape) text += (text.empty() ? "" : ",") + std::to_string(size);
    return text;
}

Rejected unexpected_shape(const std::string& model, const WireTensor& tensor, const Shape& shape) {
    return {400, "unexpected shape for input '" + tensor.name + "' for model '" + model + "'. Expected [" +
                     join(tensor.describe_shape()) + "], got [" + join(shape) + "]"};
}

// Called when a named dim has a size that its limits exclude.
Rejected outside_limits(const std::string& model, const NamedDim& dim, const WireTensor& tensor, std::int64_t size) {
    std::string limits = std::to_string(dim.min);
    if (dim.max) limits += " and at most " + std::to_string(*dim.max);
    return {400, dim.name + " is " + std::to_string(size) + " in input '" + tensor.name + "', and must be at least " +
                     limits + " for model '" + model + "'"};
}

WireTensor convert(const TensorSpec& spec, std::vector<NamedDim>& dims) {
    WireTensor tensor;
    tensor.name = spec.name;
    tensor.dtype = spec.dtype;
    tensor.datatype = datatype_of(spec.dtype);
    for (const Dim& dim : spec.shape) {
        WireDim converted;
        if (const auto* size = std::get_if<std::int64_t>(&dim)) {
            converted.kind = WireDim::Kind::fixed;
            converted.size = *size;
        } else if (const auto* name = std::get_if<std::string>(&dim)) {
            converted.kind = WireDim::Kind::named;
            const auto entry =
                std::find_if(dims.begin(), dims.end(), [&](const auto& each) { return each.name == *name; });
            converted.index = static_cast<std::size_t>(entry - dims.begin());
            if (entry == dims.end()) dims.push_back({*name, 0, std::nullopt});
        }
        tensor.dims.push_back(converted);
    }
    return tensor;
}

bool is_named(const WireDim& dim, std::size_t index) { return dim.kind == WireDim::Kind::named && dim.index == index; }

// Whether the dim comes first in the tensor, and nowhere else.
bool leads(const WireTensor& tensor, std::size_t index) {
    if (tensor.dims.empty() || !is_named(tensor.dims.front(), index)) return false;
    return std::none_of(tensor.dims.begin() + 1, tensor.dims.end(),
                        [&](const auto& dim) { return is_named(dim, index); });
}

// Whether the size of an output follows from the sizes of the inputs.
bool follows(const WireTensor& output, const std::vector<WireTensor>& inputs) {
    return std::all_of(output.dims.begin(), output.dims.end(), [&](const WireDim& dim) {
        if (dim.kind == WireDim::Kind::fixed) return true;
        return dim.kind == WireDim::Kind::named && std::any_of(inputs.begin(), inputs.end(), [&](const auto& input) {
                   return std::any_of(input.dims.begin(), input.dims.end(),
                                      [&](const auto& other) { return is_named(other, dim.index); });
               });
    });
}

// packager.runtime.row_independence.find_leading_dim
std::optional<std::size_t> find_leading_dim(const WireSignature& signature, const Config& config) {
    if (signature.inputs.empty() || signature.inputs.front().dims.empty()) return std::nullopt;
    const WireDim& first = signature.inputs.front().dims.front();
    if (first.kind != WireDim::Kind::named) return std::nullopt;
    const auto limits = config.signature.dims.find(signature.dims[first.index].name);
    if (limits == config.signature.dims.end() || limits->second.min > 1) return std::nullopt;
    for (const std::vector<WireTensor>* tensors : {&signature.inputs, &signature.outputs}) {
        for (const WireTensor& tensor : *tensors) {
            if (!leads(tensor, first.index)) return std::nullopt;
        }
    }
    for (const WireTensor& output : signature.outputs) {
        if (!follows(output, signature.inputs)) return std::nullopt;
    }
    return first.index;
}

}  // namespace

Shape WireTensor::describe_shape() const {
    Shape shape;
    for (const WireDim& dim : dims) shape.push_back(dim.kind == WireDim::Kind::fixed ? dim.size : -1);
    return shape;
}

void WireSignature::check_shape(const WireTensor& tensor, const Shape& shape, std::vector<std::int64_t>& sizes) const {
    if (shape.size() != tensor.dims.size()) throw unexpected_shape(model, tensor, shape);
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        const WireDim& dim = tensor.dims[axis];
        const std::int64_t size = shape[axis];
        if (dim.kind == WireDim::Kind::fixed && dim.size != size) throw unexpected_shape(model, tensor, shape);
        if (dim.kind != WireDim::Kind::named) continue;
        const NamedDim& named = dims[dim.index];
        std::int64_t& seen = sizes[dim.index];
        if (seen < 0) seen = size;
        if (seen != size) {
            throw Rejected(400, named.name + " is " + std::to_string(size) + " in input '" + tensor.name + "' and " +
                                    std::to_string(seen) + " in a different input for model '" + model + "'");
        }
        if (size < named.min || (named.max && size > *named.max)) throw outside_limits(model, named, tensor, size);
    }
}

WireSignature make_wire_signature(const Config& config) {
    WireSignature signature;
    signature.model = config.name;
    signature.version = config.version;
    for (const auto& [name, limits] : config.signature.dims) signature.dims.push_back({name, limits.min, limits.max});
    for (const TensorSpec& spec : config.signature.inputs) signature.inputs.push_back(convert(spec, signature.dims));
    for (const TensorSpec& spec : config.signature.outputs) signature.outputs.push_back(convert(spec, signature.dims));
    signature.batch_dim = find_leading_dim(signature, config);
    return signature;
}

std::string_view datatype_of(DType dtype) { return datatypes[static_cast<std::size_t>(dtype)]; }

std::string multiply_exactly(const Shape& shape, std::size_t factor) {
    constexpr std::uint64_t base = 1'000'000'000;
    std::vector<std::uint64_t> digits{1};  // to the base, the lowest first
    const auto multiply_small = [&](std::uint64_t number) {  // below the base
        std::uint64_t carry = 0;
        for (std::uint64_t& digit : digits) {
            const std::uint64_t product = digit * number + carry;
            digit = product % base;
            carry = product / base;
        }
        if (carry > 0) digits.push_back(carry);
    };
    const auto multiply = [&](std::uint64_t number) {
        // number = high · base² + middle · base + low
        const std::vector<std::uint64_t> before = digits;
        std::vector<std::uint64_t> sum(before.size() + 4, 0);
        std::size_t shift = 0;
        for (; number > 0; number /= base, ++shift) {
            digits = before;
            multiply_small(number % base);
            for (std::size_t index = 0; index < digits.size(); ++index) sum[index + shift] += digits[index];
        }
        for (std::size_t index = 0; index + 1 < sum.size(); ++index) {
            sum[index + 1] += sum[index] / base;
            sum[index] %= base;
        }
        while (sum.size() > 1 && sum.back() == 0) sum.pop_back();
        digits = std::move(sum);
    };
    for (const std::int64_t size : shape) multiply(static_cast<std::uint64_t>(size));
    multiply(factor);
    std::string text = std::to_string(digits.back());
    for (std::size_t index = digits.size() - 1; index-- > 0;) {
        const std::string part = std::to_string(digits[index]);
        text += std::string(9 - part.size(), '0') + part;
    }
    return text;
}

}  // namespace packager::http

// safetensors: the size of a header, the header in JSON, and the tensors without gaps.
//
// https://github.com/huggingface/safetensors#format
#include <algorithm>
#include <tuple>

#include "array_parsing.hpp"
#include "error.hpp"
#include "json.hpp"
#include "little_endian.hpp"

namespace packager {
namespace {

constexpr std::size_t size_bytes = 8, max_header_bytes = 100'000'000;
constexpr std::string_view prefix = "Error while deserializing header: ";

struct Tensor {
    std::string name;
    DType dtype = DType::float32;
    Shape shape;
    std::uint64_t start = 0, end = 0;
};

[[noreturn]] void fail(std::string_view why) { throw ArrayFileMalformed(std::string(prefix).append(why)); }

std::optional<DType> find_safetensors_dtype(std::string_view name) {
    constexpr std::pair<std::string_view, DType> dtypes[] = {
        {"F64", DType::float64}, {"F32", DType::float32}, {"F16", DType::float16}, {"BF16", DType::bfloat16},
        {"I64", DType::int64},   {"I32", DType::int32},   {"I16", DType::int16},   {"I8", DType::int8},
        {"U64", DType::uint64},  {"U32", DType::uint32},  {"U16", DType::uint16},  {"U8", DType::uint8},
        {"BOOL", DType::boolean}};
    for (const auto& [text, dtype] : dtypes) {
        if (text == name) return dtype;
    }
    return std::nullopt;
}

std::string_view find_header(std::string_view file) {
    if (file.size() < size_bytes) fail("header too small");
    const auto size = load<std::uint64_t>(file, 0);
    if (size > max_header_bytes) fail("header too large");
    if (size > file.size() - size_bytes) fail("invalid header length");
    const std::string_view header = file.substr(size_bytes, size);
    if (static_cast<std::size_t>(std::count(header.begin(), header.end(), '{')) > max_arrays) {
        throw ArrayFileMalformed("it has more than " + std::to_string(max_arrays) + " arrays");
    }
    if (header.substr(0, 1) != "{") fail("invalid start character in header");
    return header;
}

std::uint64_t read_natural(const json::Value& value) {
    const std::int64_t number = value.integer();
    if (number < 0) throw json::Malformed("a number is negative");
    return static_cast<std::uint64_t>(number);
}

Tensor read_tensor(const std::string& name, const json::Value& record) {
    const std::string& text = record.at("dtype").text();
    const std::optional<DType> dtype = find_safetensors_dtype(text);
    if (!dtype) throw json::Malformed("the dtype " + repr(text) + " is unknown");
    Tensor tensor{name, *dtype, {}};
    for (const json::Value& size : record.at("shape").list()) {
        tensor.shape.push_back(static_cast<std::int64_t>(read_natural(size)));
    }
    const json::List& offsets = record.at("data_offsets").list();
    if (offsets.size() != 2) throw json::Malformed("data_offsets has " + std::to_string(offsets.size()) + " numbers");
    tensor.start = read_natural(offsets[0]);
    tensor.end = read_natural(offsets[1]);
    return tensor;
}

std::vector<Tensor> read_header(std::string_view header) {
    std::vector<Tensor> tensors;
    try {
        const json::Value records = json::parse(header);
        for (const auto& [name, record] : records.object()) {
            if (name != "__metadata__") tensors.push_back(read_tensor(name, record));
        }
    } catch (const json::Malformed& error) {
        fail("invalid JSON in header: " + error.message);
    }
    std::sort(tensors.begin(), tensors.end(), [](const Tensor& left, const Tensor& right) {
        return std::tie(left.start, left.end, left.name) < std::tie(right.start, right.end, right.name);
    });
    return tensors;
}

// Checks that the tensors cover the data without gaps, and that each has the bytes of its shape.
void check_tensors(const std::vector<Tensor>& tensors, std::uint64_t size) {
    std::uint64_t position = 0;
    for (const Tensor& tensor : tensors) {
        if (tensor.start != position || tensor.end < tensor.start) {
            fail("invalid offset for tensor `" + tensor.name + "`");
        }
        const std::optional<std::size_t> count = count_elements(tensor.shape);
        const std::size_t item = item_size(tensor.dtype);
        if (!count) fail("overflow computing buffer size from shape and/or element type");
        const std::uint64_t bytes = tensor.end - tensor.start;
        if (*count > bytes / item || *count * item != bytes) fail("invalid shape, data type, or offset for tensor");
        position = tensor.end;
    }
    if (position != size) fail("incomplete metadata, file not fully covered");
}

}  // namespace

Arrays read_safetensors(const OwnedSpan& file) {
    const std::string_view header = find_header(file.content.text());
    const std::size_t start = size_bytes + header.size();
    const std::vector<Tensor> tensors = read_header(header);
    check_tensors(tensors, file.content.size - start);
    Arrays arrays;
    for (const Tensor& tensor : tensors) {
        const std::byte* values = file.content.data + start + tensor.start;
        arrays.emplace_back(tensor.name, align(Array{tensor.dtype, tensor.shape, values, file.owner}));
    }
    return arrays;
}

Arrays parse_safetensors(Span content, std::shared_ptr<const void> owner, const std::string& where) {
    try {
        return read_safetensors({content, std::move(owner)});
    } catch (const ArrayFileMalformed& error) {
        throw data_does_not_fit(where, get_file_name(where) + " cannot be read: " + error.why);
    }
}

}  // namespace packager

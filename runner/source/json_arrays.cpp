// Arrays in JSON: an object of nested lists by name, with the dtypes of the signature.
#include <simdjson.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "array_parsing.hpp"
#include "error.hpp"
#include "half.hpp"

namespace packager {
namespace {

constexpr std::size_t max_rank = 64;

struct WrongValue {};
struct Ragged {};

template <typename Number>
void append(std::vector<std::byte>& bytes, Number number) {
    const auto* start = reinterpret_cast<const std::byte*>(&number);
    bytes.insert(bytes.end(), start, start + sizeof number);
}

template <typename T>
T read(const simdjson::dom::element& value) {
    T content{};
    if (value.get(content) != simdjson::SUCCESS) throw WrongValue{};
    return content;
}

template <typename Integer>
void append_integer(std::vector<std::byte>& bytes, const simdjson::dom::element& value) {
    using Wide = std::conditional_t<std::is_signed_v<Integer>, std::int64_t, std::uint64_t>;
    const Wide number = read<Wide>(value);
    if (number < std::numeric_limits<Integer>::min() || number > std::numeric_limits<Integer>::max()) {
        throw WrongValue{};
    }
    append(bytes, static_cast<Integer>(number));
}

void append_half(std::vector<std::byte>& bytes, const simdjson::dom::element& value) {
    const std::optional<std::uint16_t> half = to_half(read<double>(value));
    if (!half) throw WrongValue{};
    append(bytes, *half);
}

void append_float(std::vector<std::byte>& bytes, const simdjson::dom::element& value) {
    const auto number = static_cast<float>(read<double>(value));
    if (!std::isfinite(number)) throw WrongValue{};
    append(bytes, number);
}

using Append = void (*)(std::vector<std::byte>&, const simdjson::dom::element&);

Append choose_append(DType dtype) {
    switch (dtype) {
        case DType::boolean:
            return [](auto& bytes, const auto& value) { append(bytes, read<bool>(value)); };
        case DType::int8:
            return append_integer<std::int8_t>;
        case DType::int16:
            return append_integer<std::int16_t>;
        case DType::int32:
            return append_integer<std::int32_t>;
        case DType::int64:
            return append_integer<std::int64_t>;
        case DType::uint8:
            return append_integer<std::uint8_t>;
        case DType::uint16:
            return append_integer<std::uint16_t>;
        case DType::uint32:
            return append_integer<std::uint32_t>;
        case DType::uint64:
            return append_integer<std::uint64_t>;
        case DType::float16:
            return append_half;
        case DType::bfloat16:  // is passed as float32
        case DType::float32:
            return append_float;
        case DType::float64:
            break;
    }
    return [](auto& bytes, const auto& value) { append(bytes, read<double>(value)); };
}

// Collects the numbers of nested lists, and the sizes of the lists, which must agree.
class Collector {
public:
    explicit Collector(DType dtype) : dtype_(dtype), append_(choose_append(dtype)) {}

    // The depth is at most that of the parser, so the recursion has an end.
    void collect(const simdjson::dom::element& value, std::size_t depth) {
        simdjson::dom::array list;
        if (value.get(list) != simdjson::SUCCESS) {
            end_at(depth);
            append_(bytes_, value);
            return;
        }
        std::int64_t count = 0;
        const bool is_first = depth == shape_.size() && !is_leaf_seen_;
        if (is_first) shape_.push_back(unknown_size);
        if (depth >= shape_.size() || depth >= max_rank) throw Ragged{};
        for (const simdjson::dom::element& item : list) {
            collect(item, depth + 1);
            ++count;
        }
        if (count == 0) end_at(depth + 1);
        if (shape_[depth] == unknown_size) shape_[depth] = count;
        if (shape_[depth] != count) throw Ragged{};
    }

    Array finish() && {
        const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes_));
        return {dtype_, std::move(shape_), owner->data(), owner};
    }

private:
    static constexpr std::int64_t unknown_size = -1;

    // Numbers, or the places where they would be, are all at the same depth.
    void end_at(std::size_t depth) {
        if (depth != shape_.size()) throw Ragged{};
        is_leaf_seen_ = true;
    }

    DType dtype_;
    Append append_;
    Shape shape_;
    std::vector<std::byte> bytes_;
    bool is_leaf_seen_ = false;
};

Array read_array(const TensorSpec& tensor, const simdjson::dom::element& value) {
    const DType dtype = tensor.passed_dtype();
    Collector collector(dtype);
    try {
        collector.collect(value, 0);
    } catch (const WrongValue&) {
        throw data_does_not_fit(tensor.name, "it has a value that is not " + std::string(name_of(dtype)));
    } catch (const Ragged&) {
        throw data_does_not_fit(tensor.name, "its lists differ in length or depth");
    }
    return std::move(collector).finish();
}

simdjson::dom::object parse_object(simdjson::dom::parser& parser, std::string_view text) {
    if (text.substr(0, 3) == "\xEF\xBB\xBF") throw ArrayFileMalformed("Unexpected UTF-8 BOM");  // simdjson skips it
    simdjson::dom::object object;
    const simdjson::error_code error = parser.parse(text.data(), text.size()).get(object);
    if (error == simdjson::INCORRECT_TYPE) throw ArrayFileMalformed("it is not an object of arrays by name");
    if (error != simdjson::SUCCESS) throw ArrayFileMalformed(simdjson::error_message(error));
    return object;
}

Arrays read_json_arrays(std::string_view text, const Signature& signature) {
    simdjson::dom::parser parser;
    Arrays arrays;
    for (const simdjson::dom::key_value_pair& field : parse_object(parser, text)) {
        const std::string name(field.key);
        if (find(arrays, name) != nullptr) throw ArrayFileMalformed(repr(name) + " appears twice");
        if (arrays.size() == max_arrays) {
            throw ArrayFileMalformed("it has more than " + std::to_string(max_arrays) + " arrays");
        }
        const auto tensor = std::find_if(signature.inputs.begin(), signature.inputs.end(),
                                         [&](const TensorSpec& spec) { return spec.name == name; });
        // The name alone is wrong then, and the check of the inputs says so.
        const Array unread{DType::float32, {0}, nullptr, nullptr};
        arrays.emplace_back(name, tensor == signature.inputs.end() ? unread : read_array(*tensor, field.value));
    }
    return arrays;
}

}  // namespace

Arrays parse_json_arrays(Span content, const Signature& signature, const std::string& where) {
    try {
        return read_json_arrays(content.text(), signature);
    } catch (const ArrayFileMalformed& error) {
        throw data_does_not_fit(where, get_file_name(where) + " cannot be read: " + error.why);
    }
}

}  // namespace packager

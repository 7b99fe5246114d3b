#include "http/tensors.hpp"

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "http/messages.hpp"

namespace packager::http {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

constexpr std::size_t memory_to_keep = std::size_t{1} << 20U;

struct DoesNotFit {};

// Reads one number. Throws DoesNotFit if the type cannot hold it.
template <typename T>
T read_number(const element& value) {
    if constexpr (std::is_same_v<T, bool>) {
        bool content = false;
        if (value.get_bool().get(content) != simdjson::SUCCESS) throw DoesNotFit{};
        return content;
    } else if constexpr (std::is_floating_point_v<T>) {
        double content = 0;
        if (value.get_double().get(content) != simdjson::SUCCESS) throw DoesNotFit{};
        const T converted = static_cast<T>(content);
        if (std::isinf(converted)) throw DoesNotFit{};
        return converted;
    } else {
        using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
        Wide content = 0;
        if (value.get<Wide>().get(content) != simdjson::SUCCESS) throw DoesNotFit{};
        if (content < std::numeric_limits<T>::min() || content > std::numeric_limits<T>::max()) throw DoesNotFit{};
        return static_cast<T>(content);
    }
}

// The numbers of nested arrays, written while there is room, and counted. simdjson limits the nesting.
template <typename T>
struct Flattened {
    T* numbers = nullptr;
    std::size_t capacity = 0;
    std::size_t count = 0;

    void add(const simdjson::dom::array& values) {
        for (const element& value : values) {
            if (value.type() == element_type::ARRAY) {
                add(simdjson::dom::array(value));
                continue;
            }
            const T number = read_number<T>(value);
            if (count < capacity) numbers[count] = number;
            ++count;
        }
    }
};

template <typename T>
std::size_t flatten(const simdjson::dom::array& values, std::size_t capacity, TensorMemory& memory, Array& array) {
    std::byte* const bytes = memory.reserve(capacity * sizeof(T));
    Flattened<T> flattened{reinterpret_cast<T*>(bytes), capacity};
    flattened.add(values);
    array.data = bytes;
    return flattened.count;
}

std::size_t flatten(const simdjson::dom::array& values, DType dtype, std::size_t capacity, TensorMemory& memory,
                    Array& array) {
    switch (dtype) {
        case DType::boolean:
            return flatten<bool>(values, capacity, memory, array);
        case DType::int8:
            return flatten<std::int8_t>(values, capacity, memory, array);
        case DType::int16:
            return flatten<std::int16_t>(values, capacity, memory, array);
        case DType::int32:
            return flatten<std::int32_t>(values, capacity, memory, array);
        case DType::int64:
            return flatten<std::int64_t>(values, capacity, memory, array);
        case DType::uint8:
            return flatten<std::uint8_t>(values, capacity, memory, array);
        case DType::uint16:
            return flatten<std::uint16_t>(values, capacity, memory, array);
        case DType::uint32:
            return flatten<std::uint32_t>(values, capacity, memory, array);
        case DType::uint64:
            return flatten<std::uint64_t>(values, capacity, memory, array);
        case DType::float64:
            return flatten<double>(values, capacity, memory, array);
        default:
            return flatten<float>(values, capacity, memory, array);
    }
}

bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

void append_number(std::string& text, bool value) { text += value ? "true" : "false"; }

template <typename T>
void append_number(std::string& text, T value) {
    char digits[32];
    char* end = digits;
    if constexpr (std::is_floating_point_v<T>) {
        // Beyond this, fixed notation has all digits of the binary number, which are more than tell it from others.
        constexpr T exact = std::is_same_v<T, float> ? T{1 << 24} : static_cast<T>(std::int64_t{1} << 53);
        end = std::abs(value) < exact
                  ? std::to_chars(digits, digits + sizeof digits, value).ptr
                  : std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific).ptr;
        const auto size = static_cast<std::size_t>(end - digits);
        if (std::string_view(digits, size).find_first_of(".e") == std::string_view::npos) {
            *end++ = '.';  // 1.0, for readers that tell integers from other numbers
            *end++ = '0';
        }
    } else {
        end = std::to_chars(digits, digits + sizeof digits, value).ptr;
    }
    text.append(digits, end);
}

template <typename T>
void append_numbers(const Array& array, const WireTensor& tensor, std::string& text) {
    const std::size_t count = array.size();
    text += '[';
    for (std::size_t index = 0; index < count; ++index) {
        T value;
        std::memcpy(&value, array.data + index * sizeof(T), sizeof(T));
        if constexpr (std::is_floating_point_v<T>) {
            if (!std::isfinite(value)) {
                throw Rejected(400, "output '" + tensor.name + "' has NaN or infinite values, which JSON lacks. " +
                                        "Please use the binary data format");
            }
        }
        if (index > 0) text += ',';
        append_number(text, value);
    }
    text += ']';
}

void check_bools(Span bytes, const WireTensor& tensor) {
    for (std::size_t index = 0; index < bytes.size; ++index) {
        if (std::to_integer<unsigned>(bytes.data[index]) > 1) {
            throw Rejected(400, "input '" + tensor.name + "' has a byte that is neither 0 nor 1, and is BOOL");
        }
    }
}

void widen_bfloat16(Span bytes, TensorMemory& memory, Array& array) {
    const std::size_t count = bytes.size / 2;
    std::byte* const values = memory.reserve(2 * bytes.size);
    for (std::size_t index = 0; index < count; ++index) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, bytes.data + 2 * index, sizeof bits);
        const float value = bfloat16_to_float(bits);
        std::memcpy(values + 4 * index, &value, sizeof value);
    }
    array.data = values;
}

}  // namespace

std::byte* TensorMemory::reserve(std::size_t bytes) {
    if (data_ == nullptr || capacity_ < bytes) {
        auto [array, data] = allocate(DType::uint8, {static_cast<std::int64_t>(bytes)});
        array_ = std::move(array);
        data_ = data;
        capacity_ = bytes;
    }
    return data_;
}

void TensorMemory::trim() {
    if (capacity_ > memory_to_keep) *this = TensorMemory();
}

void parse_json_tensor(const element* data, const WireTensor& tensor, const Shape& shape, std::size_t text_size,
                       TensorMemory& memory, Array& array) {
    if (is_half(tensor.dtype)) {
        throw Rejected(400, "receiving " + std::string(tensor.datatype) + " data via JSON is not supported. " +
                                "Please use the binary data format for input '" + tensor.name + "'");
    }
    if (data == nullptr || data->type() != element_type::ARRAY) {
        throw Rejected(400, "input '" + tensor.name + "' lacks an array 'data', or parameters with 'binary_data_size'");
    }
    const std::optional<std::size_t> expected = count_elements(shape);
    const std::size_t capacity = expected && *expected <= text_size ? *expected : 0;
    std::size_t count = 0;
    try {
        count = flatten(simdjson::dom::array(*data), tensor.dtype, capacity, memory, array);
    } catch (const DoesNotFit&) {
        throw Rejected(400,
                       "'data' of input '" + tensor.name + "' has a value that is not " + std::string(tensor.datatype));
    }
    if (!expected || count != *expected) {
        throw Rejected(400, "shape of input '" + tensor.name + "' does not match true shape of 'data' field: it has " +
                                std::to_string(count) + " elements, expected " + multiply_exactly(shape, 1));
    }
    array.dtype = tensor.dtype;
    array.shape = shape;
}

void view_tensor(Span bytes, const WireTensor& tensor, const Shape& shape, const std::string& model,
                 TensorMemory& memory, Array& array) {
    const std::optional<std::size_t> count = count_elements(shape);
    std::size_t expected = 0;
    const std::size_t size = item_size(tensor.dtype);
    if (!count || __builtin_mul_overflow(*count, size, &expected) || expected != bytes.size) {
        throw Rejected(400, "input byte size mismatch for input '" + tensor.name + "' for model '" + model +
                                "'. Expected " + multiply_exactly(shape, size) + ", got " + std::to_string(bytes.size));
    }
    if (tensor.dtype == DType::boolean) check_bools(bytes, tensor);
    array.dtype = tensor.dtype == DType::bfloat16 ? DType::float32 : tensor.dtype;
    array.shape = shape;
    array.data = bytes.data;
    if (tensor.dtype == DType::bfloat16) {
        widen_bfloat16(bytes, memory, array);
    } else if (bytes.size == 0 || reinterpret_cast<std::uintptr_t>(bytes.data) % size != 0) {
        std::byte* const copy = memory.reserve(bytes.size);
        if (bytes.size > 0) std::memcpy(copy, bytes.data, bytes.size);
        array.data = copy;
    }
}

void format_json_tensor(const Array& array, const WireTensor& tensor, std::string& text) {
    switch (array.dtype) {
        case DType::boolean:
            append_numbers<bool>(array, tensor, text);
            return;
        case DType::int8:
            append_numbers<std::int8_t>(array, tensor, text);
            return;
        case DType::int16:
            append_numbers<std::int16_t>(array, tensor, text);
            return;
        case DType::int32:
            append_numbers<std::int32_t>(array, tensor, text);
            return;
        case DType::int64:
            append_numbers<std::int64_t>(array, tensor, text);
            return;
        case DType::uint8:
            append_numbers<std::uint8_t>(array, tensor, text);
            return;
        case DType::uint16:
            append_numbers<std::uint16_t>(array, tensor, text);
            return;
        case DType::uint32:
            append_numbers<std::uint32_t>(array, tensor, text);
            return;
        case DType::uint64:
            append_numbers<std::uint64_t>(array, tensor, text);
            return;
        case DType::float32:
            append_numbers<float>(array, tensor, text);
            return;
        case DType::float64:
            append_numbers<double>(array, tensor, text);
            return;
        default:
            break;
    }
    throw Rejected(400, "sending " + std::string(tensor.datatype) + " data via JSON is not supported. " +
                            "Please use the binary data format for output '" + tensor.name + "'");
}

}  // namespace packager::http

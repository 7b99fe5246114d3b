#include "array.hpp"

#include <array>
#include <cstring>
#include <new>
#include <stdexcept>

namespace packager {

namespace {

struct DTypeInfo {
    DType dtype;
    std::string_view name;
    std::size_t size;
};

// In the order of DType.
constexpr std::array<DTypeInfo, 13> dtypes{{
    {DType::boolean, "bool", 1},
    {DType::int8, "int8", 1},
    {DType::int16, "int16", 2},
    {DType::int32, "int32", 4},
    {DType::int64, "int64", 8},
    {DType::uint8, "uint8", 1},
    {DType::uint16, "uint16", 2},
    {DType::uint32, "uint32", 4},
    {DType::uint64, "uint64", 8},
    {DType::float16, "float16", 2},
    {DType::bfloat16, "bfloat16", 2},
    {DType::float32, "float32", 4},
    {DType::float64, "float64", 8},
}};

constexpr std::size_t memory_alignment = 64;

struct AlignedDelete {
    void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{memory_alignment}); }
};

float to_float(std::uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace

std::size_t item_size(DType dtype) { return dtypes[static_cast<std::size_t>(dtype)].size; }

std::string_view name_of(DType dtype) { return dtypes[static_cast<std::size_t>(dtype)].name; }

std::optional<DType> find_dtype(std::string_view name) {
    for (const DTypeInfo& info : dtypes) {
        if (info.name == name) {
            return info.dtype;
        }
    }
    return std::nullopt;
}

std::string describe(const Shape& shape) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
    }
    return text + "]";
}

std::optional<std::size_t> count_elements(const Shape& shape) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) {
        if (size < 0) {
            return std::nullopt;
        }
        if (__builtin_mul_overflow(count, static_cast<std::size_t>(size), &count)) {
            // A zero that follows would make the product 0; numpy refuses such a shape, too.
            return std::nullopt;
        }
    }
    return count;
}

std::size_t Array::size() const { return count_elements(shape).value_or(0); }

std::size_t Array::bytes() const { return size() * item_size(dtype); }

std::pair<Array, std::byte*> allocate(DType dtype, Shape shape) {
    const std::optional<std::size_t> count = count_elements(shape);
    std::size_t bytes = 0;
    if (!count || __builtin_mul_overflow(*count, item_size(dtype), &bytes)) {
        throw std::length_error("an array of the shape " + describe(shape) + " is too large");
    }
    void* memory = ::operator new(bytes == 0 ? 1 : bytes, std::align_val_t{memory_alignment});
    const std::shared_ptr<std::byte> owner(static_cast<std::byte*>(memory), AlignedDelete{});
    return {Array{dtype, std::move(shape), owner.get(), owner}, owner.get()};
}

Array align(Array array) {
    if (reinterpret_cast<std::uintptr_t>(array.data) % item_size(array.dtype) == 0) {
        return array;
    }
    auto [copy, memory] = allocate(array.dtype, array.shape);
    std::memcpy(memory, array.data, array.bytes());
    return std::move(copy);
}

const Array* find(const Arrays& arrays, std::string_view name) {
    for (const auto& [key, array] : arrays) {
        if (key == name) {
            return &array;
        }
    }
    return nullptr;
}

float half_to_float(std::uint16_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16U;
    std::uint32_t exponent = (bits >> 10U) & 0x1FU;
    std::uint32_t fraction = bits & 0x3FFU;
    if (exponent == 0x1F) {  // infinite, or NaN
        return to_float(sign | 0x7F800000U | (fraction << 13U));
    }
    if (exponent == 0) {
        if (fraction == 0) {
            return to_float(sign);
        }
        exponent = 1;  // subnormal: shift until the leading bit is the implicit one
        while ((fraction & 0x400U) == 0) {
            fraction <<= 1U;
            --exponent;
        }
        fraction &= 0x3FFU;
    }
    return to_float(sign | ((exponent + 112U) << 23U) | (fraction << 13U));
}

std::uint16_t float_to_bfloat16(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) {
        return static_cast<std::uint16_t>((bits >> 16U) | 0x40U);  // quiet, with its sign and payload
    }
    return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

float bfloat16_to_float(std::uint16_t bits) { return to_float(static_cast<std::uint32_t>(bits) << 16U); }

}  // namespace packager

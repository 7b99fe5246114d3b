// A typed, contiguous array, little-endian and in C order: what files, requests and onnxruntime exchange.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace packager {

enum class DType {
    boolean,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
    float16,
    bfloat16,
    float32,
    float64
};

std::size_t item_size(DType dtype);
std::string_view name_of(DType dtype);                       // numpy's name: "float32"; "bool" for boolean
std::optional<DType> find_dtype(std::string_view name);      // from numpy's name

using Shape = std::vector<std::int64_t>;

// "[2, 10]"
std::string describe(const Shape& shape);

// The product of the sizes; nothing if it overflows, or if a size is negative.
std::optional<std::size_t> count_elements(const Shape& shape);

// Values that someone else may own: a mapped file, a request's body, a value of onnxruntime.
struct Array {
    DType dtype = DType::float32;
    Shape shape;
    const std::byte* data = nullptr;  // item_size(dtype) * count_elements(shape) bytes, not necessarily aligned
    std::shared_ptr<const void> owner;

    std::size_t size() const;   // elements
    std::size_t bytes() const;
};

// An array with memory of its own, aligned to 64 bytes, and the pointer to fill it through.
std::pair<Array, std::byte*> allocate(DType dtype, Shape shape);

// The same array with its data aligned for its dtype; copied only if it is not.
Array align(Array array);

// Arrays by name, in an order that matters.
using Arrays = std::vector<std::pair<std::string, Array>>;
const Array* find(const Arrays& arrays, std::string_view name);

float half_to_float(std::uint16_t bits);
std::uint16_t float_to_bfloat16(float value);  // to nearest, ties to even; a NaN stays a NaN
float bfloat16_to_float(std::uint16_t bits);

}  // namespace packager

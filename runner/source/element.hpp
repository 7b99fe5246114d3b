// The elements of an array, one at a time, whatever their alignment.
#pragma once

#include <cstring>

#include "array.hpp"

namespace packager {

template <typename T>
T read_element(const Array& array, std::size_t index) {
    T value{};
    std::memcpy(&value, array.data + index * sizeof(T), sizeof(T));
    return value;
}

// Calls `use` with the element as the type of C++ that holds it exactly: bool, an integer, float or double.
template <typename Use>
auto visit_element(const Array& array, std::size_t index, Use use) {
    switch (array.dtype) {
        case DType::boolean:
            return use(read_element<std::uint8_t>(array, index) != 0);
        case DType::int8:
            return use(read_element<std::int8_t>(array, index));
        case DType::int16:
            return use(read_element<std::int16_t>(array, index));
        case DType::int32:
            return use(read_element<std::int32_t>(array, index));
        case DType::int64:
            return use(read_element<std::int64_t>(array, index));
        case DType::uint8:
            return use(read_element<std::uint8_t>(array, index));
        case DType::uint16:
            return use(read_element<std::uint16_t>(array, index));
        case DType::uint32:
            return use(read_element<std::uint32_t>(array, index));
        case DType::uint64:
            return use(read_element<std::uint64_t>(array, index));
        case DType::float16:
            return use(half_to_float(read_element<std::uint16_t>(array, index)));
        case DType::bfloat16:
            return use(bfloat16_to_float(read_element<std::uint16_t>(array, index)));
        case DType::float32:
            return use(read_element<float>(array, index));
        case DType::float64:
            break;
    }
    return use(read_element<double>(array, index));
}

inline double read_number(const Array& array, std::size_t index) {
    return visit_element(array, index, [](auto value) { return static_cast<double>(value); });
}

inline bool is_float(DType dtype) {
    return dtype == DType::float16 || dtype == DType::bfloat16 || dtype == DType::float32 || dtype == DType::float64;
}

}  // namespace packager

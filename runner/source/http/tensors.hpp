// The data of a tensor: JSON and little-endian bytes to an array, and back.
#pragma once

#include <simdjson.h>

#include <string>

#include "array.hpp"
#include "http/wire.hpp"

namespace packager::http {

// Memory for one input that is used for many requests.
class TensorMemory {
public:
    std::byte* reserve(std::size_t bytes);
    void trim();  // returns memory that only a large request needed

private:
    Array array_;
    std::byte* data_ = nullptr;
    std::size_t capacity_ = 0;
};

// Sets the array of an input whose data is in JSON, a flat or nested array of numbers. `text_size` is the size of the
// whole text, which has more characters than numbers. Throws Rejected, 400.
void parse_json_tensor(const simdjson::dom::element* data, const WireTensor& tensor, const Shape& shape,
                       std::size_t text_size, TensorMemory& memory, Array& array);

// Sets an array to the bytes of a tensor; they are copied only if they are not aligned, or bfloat16. Throws Rejected,
// 400, if they are too few, too many, or a BOOL that is neither 0 nor 1.
void view_tensor(Span bytes, const WireTensor& tensor, const Shape& shape, const std::string& model,
                 TensorMemory& memory, Array& array);

// Appends an array as flat JSON. Throws Rejected, 400, for dtypes and values that JSON lacks.
void format_json_tensor(const Array& array, const WireTensor& tensor, std::string& text);

}  // namespace packager::http

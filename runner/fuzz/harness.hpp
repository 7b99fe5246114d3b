// What the entry points of libFuzzer share. Each parses its input as the runner would, and lets the errors through that
// the runner reports; any other exception, a report of a sanitizer, or a broken promise of the parser is a finding.
#pragma once

#include <libdeflate.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "array.hpp"
#include "bundle.hpp"
#include "error.hpp"

namespace packager::fuzz {

inline Span to_span(const std::uint8_t* data, std::size_t size) {
    return {reinterpret_cast<const std::byte*>(data), size};
}

inline Span to_span(std::string_view text) { return {reinterpret_cast<const std::byte*>(text.data()), text.size()}; }

// Ends the process, which libFuzzer reports with its input.
inline void require(bool promise) {
    if (!promise) std::abort();
}

// Renders the error, because the runner would.
inline void report(const Error& error) {
    require(!error.code.empty() && !error.message.empty() && !render(error).empty() && !to_json(error).empty());
}

// Reads every byte, so that a span beyond its memory is seen.
inline void touch(Span content) {
    volatile std::byte last{};
    for (std::size_t index = 0; index < content.size; ++index) last = content.data[index];
    static_cast<void>(last);
}

inline void touch(const Arrays& arrays) {
    for (const auto& [name, array] : arrays) {
        const auto elements = count_elements(array.shape);
        require(elements.has_value() && array.bytes() == *elements * item_size(array.dtype));
        touch(Span{array.data, array.bytes()});
    }
}

// A file of a bundle whose CRC is right.
inline BundleFile to_file(Span content) { return {content, 0, libdeflate_crc32(0, content.data, content.size)}; }

// A model with inputs of many dtypes, for files of arrays.
inline Signature make_signature() {
    Signature signature;
    signature.inputs = {
        {"image", DType::float32, {std::string("batch"), std::int64_t{2}}, {}},
        {"ids", DType::int64, {std::string("batch"), AnySize{}}, {}},
        {"mask", DType::boolean, {}, {}},
        {"half", DType::float16, {AnySize{}}, {}},
        {"brain", DType::bfloat16, {AnySize{}}, {}},
        {"byte", DType::uint8, {AnySize{}}, {}},
        {"wide", DType::uint64, {AnySize{}}, {}},
        {"double", DType::float64, {AnySize{}}, {}},
    };
    signature.dims = {{"batch", {1, 8}}};
    return signature;
}

}  // namespace packager::fuzz

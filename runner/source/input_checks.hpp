// Checks arrays against the signature in config.json, with the words of packager.runtime.input_checks.
#pragma once

#include <map>
#include <string>

#include "array.hpp"
#include "bundle.hpp"

namespace packager {

// The sizes of named dims that were seen.
using Sizes = std::map<std::string, std::int64_t, std::less<>>;

// Returns the arrays in the order of the signature. Throws Error (data-does-not-fit).
Arrays check_inputs(const Signature& signature, const Arrays& arrays);

// Checks one shape; `sizes` gets the named dims of this tensor. Throws Error (data-does-not-fit).
void check_shape(const Signature& signature, const TensorSpec& tensor, const Shape& shape, Sizes& sizes);

// "float32[batch, 10]": the dtype and the shape that an array must have.
std::string describe_expected(const TensorSpec& tensor);

}  // namespace packager

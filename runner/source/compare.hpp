// Compares two arrays element by element, as packager/parity/numerics/compare.py: an element is within its tolerance if
//
//     |actual - expected| ≤ atol + rtol·|expected|
//
// in float64. A NaN equals a NaN in the same position and nothing else, infinities agree in position and sign, and
// integers and booleans agree exactly.
#pragma once

#include <optional>
#include <string>

#include "array.hpp"

namespace packager {

struct ElementTolerance {
    double atol = 0, rtol = 0;
};

// One element of two arrays, with its values as Python writes them.
struct ComparedElement {
    std::vector<std::size_t> index;
    std::string expected, actual;
};

struct Comparison {
    bool has_mismatched_nonfinite = false;
    double error_over_limit = 0;  // the largest |actual - expected| / (atol + rtol·|expected|)
    std::optional<ComparedElement> worst;  // the element with that ratio; nothing for empty arrays

    bool is_within_tolerance() const { return !has_mismatched_nonfinite && error_over_limit <= 1.0; }
};

// Says how dtype or shape differ; empty if they do not.
std::string describe_difference(const Array& expected, const Array& actual);

// Compares arrays of the same dtype and shape.
Comparison compare(const Array& expected, const Array& actual, const ElementTolerance& tolerance);

}  // namespace packager

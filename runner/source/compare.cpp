#include "compare.hpp"

#include <cmath>
#include <limits>

#include "element.hpp"
#include "python_text.hpp"

namespace packager {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::string describe_value(const Array& array, std::size_t index) {
    return visit_element(array, index, [](auto value) -> std::string {
        if constexpr (std::is_same_v<decltype(value), bool>) {
            return value ? "True" : "False";
        } else if constexpr (std::is_floating_point_v<decltype(value)>) {
            return repr(static_cast<double>(value));
        } else {
            return std::to_string(value);
        }
    });
}

ComparedElement describe_element(const Array& expected, const Array& actual, std::size_t position) {
    std::vector<std::size_t> index(expected.shape.size());
    std::size_t rest = position;
    for (std::size_t axis = index.size(); axis-- > 0;) {
        const auto size = static_cast<std::size_t>(expected.shape[axis]);
        index[axis] = rest % size;
        rest /= size;
    }
    return {std::move(index), describe_value(expected, position), describe_value(actual, position)};
}

bool agree_nonfinite(double expected, double actual) {
    return (std::isnan(expected) && std::isnan(actual)) || (std::isinf(expected) && expected == actual);
}

// |actual - expected| / limit; each step is rounded by itself, as numpy does it.
double divide_by_limit(double expected, double actual, const ElementTolerance& tolerance) {
    const double difference = std::abs(actual - expected);
    if (difference == 0 || std::isinf(difference)) return difference;
    const double relative = tolerance.rtol * std::abs(expected);
    const double limit = tolerance.atol + relative;
    return difference / limit;
}

Comparison compare_floats(const Array& expected, const Array& actual, const ElementTolerance& tolerance) {
    Comparison result;
    result.error_over_limit = -infinity;
    std::size_t worst = 0;
    const std::size_t size = expected.size();
    for (std::size_t index = 0; index < size; ++index) {
        const double left = read_number(expected, index), right = read_number(actual, index);
        double ratio = 0;
        if (std::isfinite(left) && std::isfinite(right)) {
            ratio = divide_by_limit(left, right, tolerance);
        } else if (!agree_nonfinite(left, right)) {
            result.has_mismatched_nonfinite = true;
            ratio = infinity;
        }
        if (ratio > result.error_over_limit) {
            result.error_over_limit = ratio;
            worst = index;
        }
    }
    result.worst = describe_element(expected, actual, worst);
    return result;
}

// The distance of two values of one type, which is below 2^64.
std::uint64_t measure_distance(const Array& expected, const Array& actual, std::size_t index) {
    return visit_element(expected, index, [&](auto left) {
        using T = decltype(left);
        const T right = visit_element(actual, index, [](auto value) { return static_cast<T>(value); });
        const auto widen = [](T value) {
            using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
            return static_cast<std::uint64_t>(static_cast<Wide>(value));
        };
        return left > right ? widen(left) - widen(right) : widen(right) - widen(left);  // modulo 2^64
    });
}

Comparison compare_exact(const Array& expected, const Array& actual) {
    std::uint64_t largest = 0;
    std::size_t worst = 0;
    const std::size_t size = expected.size();
    for (std::size_t index = 0; index < size; ++index) {
        const std::uint64_t distance = measure_distance(expected, actual, index);
        if (distance > largest) {
            largest = distance;
            worst = index;
        }
    }
    return {false, largest > 0 ? infinity : 0.0, describe_element(expected, actual, worst)};
}

}  // namespace

std::string describe_difference(const Array& expected, const Array& actual) {
    if (expected.dtype != actual.dtype) {
        return "dtype " + std::string(name_of(actual.dtype)) + ", expected " + std::string(name_of(expected.dtype));
    }
    if (expected.shape != actual.shape)
        return "shape " + describe(actual.shape) + ", expected " + describe(expected.shape);
    return "";
}

Comparison compare(const Array& expected, const Array& actual, const ElementTolerance& tolerance) {
    if (expected.size() == 0) return {};
    return is_float(expected.dtype) ? compare_floats(expected, actual, tolerance) : compare_exact(expected, actual);
}

}  // namespace packager

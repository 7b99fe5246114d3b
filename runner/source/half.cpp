#include "half.hpp"

#include <algorithm>
#include <cmath>

namespace packager {

std::optional<std::uint16_t> to_half(double value) {
    constexpr double too_large = 65520.0;  // rounds to 2^16, which float16 lacks
    constexpr int smallest_exponent = -14, fraction_bits = 10;
    const double magnitude = std::abs(value);
    if (!(magnitude < too_large)) return std::nullopt;
    const int exponent = magnitude == 0 ? smallest_exponent : std::max(std::ilogb(magnitude), smallest_exponent);
    // In units of the last place: at most 2^11, which carries into the exponent as it should.
    const auto units = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent)));
    const unsigned implicit_bit = 1U << fraction_bits;
    const unsigned biased = static_cast<unsigned>(exponent - smallest_exponent) * implicit_bit;
    const unsigned sign = std::signbit(value) ? 0x8000U : 0U;
    return static_cast<std::uint16_t>(sign | (biased + units));
}

}  // namespace packager

// float16 from wider floats; the other direction is in array.hpp.
#pragma once

#include <cstdint>
#include <optional>

namespace packager {

// Rounds to the nearest float16, ties to even; nothing for a number that is too large, or not finite.
std::optional<std::uint16_t> to_half(double value);

}  // namespace packager

// Values as Python writes them in messages: repr() of lists and numbers; of a text it is in error.hpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace packager {

// ['a', 'b']
std::string repr(const std::vector<std::string>& texts);
// The shortest digits that read back as the same number of its type: 1e-06, 0.1, 1.0, nan, inf
std::string repr(double value);
std::string repr(float value);

// A decimal number: 0.d1d2d3… · 10^exponent, without a sign and without trailing zeros; "0" and 1 for zero.
struct Decimal {
    std::string digits;
    int exponent = 0;
};

// Of "d.ddde±dd", as printf's %e and std::to_chars write it.
Decimal split_scientific(std::string_view text);

// The shortest digits that read back as the same finite number of that type.
Decimal find_shortest(double value);
Decimal find_shortest(float value);

// As `%.3g`.
std::string format_general(double value, int precision);

}  // namespace packager

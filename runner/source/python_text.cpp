#include "python_text.hpp"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "error.hpp"

namespace packager {
namespace {

constexpr std::size_t longest_number = 64;

template <typename Float>
Decimal find_shortest_of(Float value) {
    char buffer[longest_number];
    const std::to_chars_result end =
        std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
    return split_scientific(std::string_view(buffer, static_cast<std::size_t>(end.ptr - buffer)));
}

template <typename Float>
std::string repr_of(Float value) {
    if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
    const std::string sign = std::signbit(value) ? "-" : "";
    const auto [digits, point] = find_shortest_of(std::abs(value));
    if (point > 16 || point < -3) {
        char exponent[16];
        std::snprintf(exponent, sizeof exponent, "e%+03d", point - 1);
        const std::string fraction = digits.size() > 1 ? "." + digits.substr(1) : "";
        return sign + digits.substr(0, 1) + fraction + exponent;
    }
    if (point <= 0) return sign + "0." + std::string(static_cast<std::size_t>(-point), '0') + digits;
    const auto whole = static_cast<std::size_t>(point);
    if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace

std::string repr(const std::vector<std::string>& texts) {
    std::string list = "[";
    for (const std::string& text : texts) {
        list += (list.size() == 1 ? "" : ", ") + repr(text);
    }
    return list + "]";
}

std::string repr(double value) { return repr_of(value); }

std::string repr(float value) { return repr_of(value); }

Decimal split_scientific(std::string_view text) {
    const std::size_t end = text.find('e');
    Decimal decimal;
    for (const char character : text.substr(0, end)) {
        if (character != '.' && character != '-') {
            decimal.digits += character;
        }
    }
    while (decimal.digits.size() > 1 && decimal.digits.back() == '0') {
        decimal.digits.pop_back();
    }
    decimal.exponent = static_cast<int>(std::strtol(std::string(text.substr(end + 1)).c_str(), nullptr, 10)) + 1;
    return decimal;
}

Decimal find_shortest(double value) { return find_shortest_of(value); }

Decimal find_shortest(float value) { return find_shortest_of(value); }

std::string format_general(double value, int precision) {
    char buffer[longest_number];
    std::snprintf(buffer, sizeof buffer, "%.*g", precision, value);
    return buffer;
}

}  // namespace packager

// The rules are those of numpy/_core/arrayprint.py, of numpy 2.4: the shortest digits that tell the numbers apart, at
// most 8 after the point, in columns, on lines of 75 characters.
#include "array_text.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "element.hpp"
#include "half.hpp"
#include "python_text.hpp"

namespace packager {
namespace {

constexpr std::size_t line_width = 75;
constexpr int precision = 8;
constexpr int half_digits = 5;  // enough for any float16

// A number as text around its point: "-12." and "5", or with an exponent "1." and "5" and "+07".
struct NumberText {
    std::string whole, fraction, exponent;
};

// Of the widest number in a column.
struct Widths {
    std::size_t whole = 0, fraction = 0, exponent = 0;
};

std::string pad_left(const std::string& text, std::size_t width) {
    return std::string(width > text.size() ? width - text.size() : 0, ' ') + text;
}

std::string pad_right(std::string text, std::size_t width, char fill) {
    if (text.size() < width) text.append(width - text.size(), fill);
    return text;
}

// The digits of a number, rounded to so many of them, half to even.
Decimal round_to_digits(double magnitude, int digits) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, "%.*e", digits - 1, magnitude);
    return split_scientific(buffer);
}

Decimal find_shortest_half(double magnitude) {
    const std::optional<std::uint16_t> bits = to_half(magnitude);
    for (int digits = 1; digits < half_digits; ++digits) {
        // Of a power of two, which is closer to the number below, only the upper side of a tie may read back.
        for (const double nearby : {magnitude, std::nextafter(magnitude, HUGE_VAL)}) {
            const Decimal decimal = round_to_digits(nearby, digits);
            const std::string text = "0." + decimal.digits + "e" + std::to_string(decimal.exponent);
            if (to_half(std::strtod(text.c_str(), nullptr)) == bits) return decimal;
        }
    }
    return round_to_digits(magnitude, half_digits);
}

// The shortest digits of an element that is finite, without its sign.
Decimal find_digits(DType dtype, double value) {
    const double magnitude = std::abs(value);
    if (dtype == DType::float16) return find_shortest_half(magnitude);
    if (dtype == DType::float64) return find_shortest(magnitude);
    return find_shortest(static_cast<float>(magnitude));
}

NumberText split(const Decimal& decimal, double value) {
    char exponent[16];
    std::snprintf(exponent, sizeof exponent, "%+03d", value == 0 ? 0 : decimal.exponent - 1);
    return {(std::signbit(value) ? "-" : "") + decimal.digits.substr(0, 1), decimal.digits.substr(1), exponent};
}

NumberText format_scientific(DType dtype, double value) {
    const Decimal decimal = find_digits(dtype, value);
    const bool is_long = decimal.digits.size() > precision + 1;
    return split(is_long ? round_to_digits(std::abs(value), precision + 1) : decimal, value);
}

NumberText format_positional(DType dtype, double value) {
    auto [digits, point] = find_digits(dtype, value);  // of the digits, `point` many are before the point
    if (static_cast<int>(digits.size()) - point > precision) {
        char buffer[64];  // of at most 8 digits before the point: larger numbers have an exponent
        std::snprintf(buffer, sizeof buffer, "%.*f", precision, std::abs(value));
        const std::string text = buffer;
        point = static_cast<int>(text.find('.'));
        digits = text.substr(0, text.find('.')) + text.substr(text.find('.') + 1);
        digits.erase(std::max(digits.find_last_not_of('0') + 1, static_cast<std::size_t>(point)));
    }
    if (point <= 0) {
        digits = digits == "0" ? "0" : std::string(static_cast<std::size_t>(1 - point), '0') + digits;
        point = 1;
    }
    digits = pad_right(digits, static_cast<std::size_t>(point), '0');
    const auto whole = static_cast<std::size_t>(point);
    return {(std::signbit(value) ? "-" : "") + digits.substr(0, whole), digits.substr(whole), ""};
}

struct Magnitudes {
    double smallest = 0, largest = 0;  // of the finite numbers that are not 0; 0 if there are none
};

Magnitudes find_magnitudes(const std::vector<double>& values) {
    Magnitudes range;
    for (const double value : values) {
        const double magnitude = std::abs(value);
        if (!std::isfinite(value) || value == 0) continue;
        range.largest = std::max(range.largest, magnitude);
        range.smallest = range.smallest == 0 ? magnitude : std::min(range.smallest, magnitude);
    }
    return range;
}

// numpy compares and divides in the dtype of the array.
double round_to(DType dtype, double value) {
    if (dtype == DType::float64) return value;
    if (dtype != DType::float16) return static_cast<double>(static_cast<float>(value));
    const std::optional<std::uint16_t> bits = to_half(value);
    return bits ? static_cast<double>(half_to_float(*bits)) : HUGE_VAL;
}

bool needs_exponent(DType dtype, const std::vector<double>& values) {
    const Magnitudes range = find_magnitudes(values);
    if (range.largest == 0) return false;
    const double cutoff = dtype == DType::float64 ? 1e8 : dtype == DType::float16 ? 1e3 : 1e6;
    return range.largest >= cutoff || range.smallest < round_to(dtype, 0.0001) ||
           round_to(dtype, range.largest / range.smallest) > 1000.0;
}

std::string name_nonfinite(double value) { return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf"; }

// "-1.50e+07": numpy shows the exact digits behind the shortest ones where a column has room for them.
std::string fill_scientific(NumberText text, double value, const Widths& widths) {
    if (text.fraction.size() < widths.fraction) {
        text = split(round_to_digits(std::abs(value), static_cast<int>(widths.fraction) + 1), value);
    }
    const std::string exponent = text.exponent.substr(1);
    return pad_left(text.whole, widths.whole) + "." + pad_right(text.fraction, widths.fraction, '0') + "e" +
           text.exponent[0] + std::string(widths.exponent - 1 - exponent.size(), '0') + exponent;
}

std::vector<std::string> format_floats(DType dtype, const std::vector<double>& values) {
    const bool with_exponent = needs_exponent(dtype, values);
    std::vector<NumberText> texts;
    Widths widths;
    for (const double value : values) {
        texts.push_back(!std::isfinite(value) ? NumberText{}
                        : with_exponent       ? format_scientific(dtype, value)
                                              : format_positional(dtype, value));
        widths.whole = std::max(widths.whole, texts.back().whole.size());
        widths.fraction = std::max(widths.fraction, texts.back().fraction.size());
        widths.exponent = std::max(widths.exponent, texts.back().exponent.size());
    }
    const std::size_t after = 1 + widths.fraction + (with_exponent ? widths.exponent + 1 : 0);
    for (const double value : values) {
        if (!std::isfinite(value)) widths.whole = std::max(widths.whole + after, name_nonfinite(value).size()) - after;
    }
    std::vector<std::string> words;
    for (std::size_t index = 0; index < values.size(); ++index) {
        const NumberText& text = texts[index];
        if (!std::isfinite(values[index])) {
            words.push_back(pad_left(name_nonfinite(values[index]), widths.whole + after));
        } else if (with_exponent) {
            words.push_back(fill_scientific(text, values[index], widths));
        } else {
            words.push_back(pad_left(text.whole, widths.whole) + "." + pad_right(text.fraction, widths.fraction, ' '));
        }
    }
    return words;
}

std::vector<std::string> format_words(const Array& array) {
    std::vector<std::string> words;
    std::size_t width = 0;
    for (std::size_t index = 0; index < array.size(); ++index) {
        words.push_back(visit_element(array, index, [&](auto value) -> std::string {
            if constexpr (std::is_same_v<decltype(value), bool>) {
                return value ? (array.shape.empty() ? "True" : " True") : "False";
            } else if constexpr (std::is_floating_point_v<decltype(value)>) {
                return repr(value);
            } else {
                return std::to_string(value);
            }
        }));
        width = std::max(width, words.back().size());
    }
    if (array.dtype != DType::boolean) {
        for (std::string& word : words) word = pad_left(word, width);
    }
    return words;
}

std::string strip_right(const std::string& line) { return line.substr(0, line.find_last_not_of(' ') + 1); }

// The words of the last axis, on as many lines as they take.
std::string print_row(const std::vector<std::string>& words, const std::string& indent, std::size_t width) {
    std::string text;
    std::string line = indent;
    for (const std::string& word : words) {
        if (line.size() + word.size() > width && line.size() > indent.size()) {
            text += strip_right(line) + "\n";
            line = indent;
        }
        line += word + " ";
    }
    line.pop_back();
    return "[" + (text + line).substr(indent.size()) + "]";
}

std::string print_axis(const std::vector<std::string>& words, const Shape& shape, std::size_t axis,
                       std::size_t& index) {
    const std::string indent(axis + 1, ' ');
    const auto size = static_cast<std::size_t>(shape[axis]);
    if (axis + 1 == shape.size()) {
        const auto start = words.begin() + static_cast<std::ptrdiff_t>(index);
        index += size;
        // Each axis takes a bracket from the width, and so does the row itself.
        return print_row({start, start + static_cast<std::ptrdiff_t>(size)}, indent, line_width - axis - 1);
    }
    const std::string separator(shape.size() - axis - 1, '\n');
    std::string text;
    for (std::size_t position = 0; position < size; ++position) {
        text += (position == 0 ? "" : separator + indent) + print_axis(words, shape, axis + 1, index);
    }
    return "[" + text + "]";
}

}  // namespace

std::string print_array(const Array& array) {
    if (array.size() == 0) return "[]";
    std::vector<std::string> words;
    if (is_float(array.dtype)) {
        std::vector<double> values(array.size());
        for (std::size_t index = 0; index < values.size(); ++index) values[index] = read_number(array, index);
        words = format_floats(array.dtype, values);
    } else {
        words = format_words(array);
    }
    std::size_t index = 0;
    return array.shape.empty() ? words.front() : print_axis(words, array.shape, 0, index);
}

}  // namespace packager

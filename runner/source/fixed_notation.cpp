// libc++ writes numbers of 2^53 and more in fixed notation, and numbers of a given precision, by 104 kB of tables. No
// such number is written here by std::to_chars (http/tensors.cpp, python_text.cpp). These functions take the place of
// all that the object file with the tables defines, so that it is left out; they write the same.
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <system_error>

namespace packager {
namespace {

constexpr std::size_t longest_number = 2000;

std::to_chars_result print(char* first, char* last, const char* form, double value, std::uint32_t precision) {
    char text[longest_number];
    const int size = std::snprintf(text, sizeof text, form, static_cast<int>(precision), value);
    if (size < 0 || size >= static_cast<int>(sizeof text) || size > last - first) {
        return {last, std::errc::value_too_large};
    }
    std::memcpy(first, text, static_cast<std::size_t>(size));
    return {first + size, std::errc{}};
}

}  // namespace

// NOLINTBEGIN(misc-use-internal-linkage): the names below are those that libc++ looks for
std::to_chars_result print_fixed(char* first, char* last, double value,
                                 std::uint32_t precision) asm("_ZNSt3__120__d2fixed_buffered_nEPcS0_dj");
std::to_chars_result print_scientific(char* first, char* last, double value,
                                      std::uint32_t precision) asm("_ZNSt3__118__d2exp_buffered_nEPcS0_dj");
void append_digits(std::uint32_t count, std::uint32_t number, char* text) asm("_ZNSt3__117__append_n_digitsEjjPc");
void append_nine_digits(std::uint32_t number, char* text) asm("_ZNSt3__120__append_nine_digitsEjPc");

std::to_chars_result print_fixed(char* first, char* last, double value, std::uint32_t precision) {
    return print(first, last, "%.*f", value, precision);
}

std::to_chars_result print_scientific(char* first, char* last, double value, std::uint32_t precision) {
    return print(first, last, "%.*e", value, precision);
}

void append_digits(std::uint32_t count, std::uint32_t number, char* text) {
    for (; count > 0; number /= 10) text[--count] = static_cast<char>('0' + number % 10);
}

void append_nine_digits(std::uint32_t number, char* text) { append_digits(9, number, text); }
// NOLINTEND(misc-use-internal-linkage)

}  // namespace packager

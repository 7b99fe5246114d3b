#include "text.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace packager {
namespace {

// Unicode's categories Cc, Cf, Cs, Co, Zl, Zp and Zs, without the space.
constexpr std::array<std::pair<char32_t, char32_t>, 28> unprintable{{
    {0x0, 0x1F},        {0x7F, 0xA0},       {0xAD, 0xAD},         {0x600, 0x605},     {0x61C, 0x61C},
    {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},       {0x8E2, 0x8E2},     {0x1680, 0x1680},
    {0x180E, 0x180E},   {0x2000, 0x200F},   {0x2028, 0x202F},     {0x205F, 0x2064},   {0x2066, 0x206F},
    {0x3000, 0x3000},   {0xD800, 0xF8FF},   {0xFEFF, 0xFEFF},     {0xFFF9, 0xFFFB},   {0x110BD, 0x110BD},
    {0x110CD, 0x110CD}, {0x13430, 0x13438}, {0x1BCA0, 0x1BCA3},   {0x1D173, 0x1D17A}, {0xE0001, 0xE0001},
    {0xE0020, 0xE007F}, {0xF0000, 0xFFFFD}, {0x100000, 0x10FFFD},
}};

unsigned char byte_at(std::string_view text, std::size_t position) {
    return static_cast<unsigned char>(text[position]);
}

}  // namespace

Character read_character(std::string_view text, std::size_t position) {
    const unsigned char first = byte_at(text, position);
    if (first < 0x80) return {first, 1, true};
    const Character broken{first, 1, false};
    const std::size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || size > text.size() - position) return broken;
    char32_t code = first & (0x7FU >> size);
    for (std::size_t index = 1; index < size; ++index) {
        const unsigned char next = byte_at(text, position + index);
        if ((next & 0xC0U) != 0x80) return broken;
        code = code << 6U | (next & 0x3FU);
    }
    const bool overlong = (size == 3 && code < 0x800) || (size == 4 && code < 0x10000);
    if (overlong || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return broken;
    return {code, size, true};
}

std::vector<char32_t> decode(std::string_view text) {
    std::vector<char32_t> codes;
    for (std::size_t position = 0; position < text.size();) {
        const Character character = read_character(text, position);
        codes.push_back(character.code);
        position += character.size;
    }
    return codes;
}

bool is_utf8(std::string_view text) {
    for (std::size_t position = 0; position < text.size();) {
        const Character character = read_character(text, position);
        if (!character.valid) return false;
        position += character.size;
    }
    return true;
}

bool is_printable(char32_t code) {
    const auto* const range = std::lower_bound(unprintable.begin(), unprintable.end(), code,
                                               [](const auto& entry, char32_t value) { return entry.second < value; });
    return range == unprintable.end() || code < range->first;
}

}  // namespace packager

// UTF-8, one character at a time, from text that anyone may have written.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace packager {

// A character of a text, or a byte that is not part of valid UTF-8.
struct Character {
    char32_t code = 0;
    std::size_t size = 1;  // in bytes
    bool valid = true;
};

// Reads the character that starts at `position`, which is inside the text.
Character read_character(std::string_view text, std::size_t position);
std::vector<char32_t> decode(std::string_view text);
bool is_utf8(std::string_view text);
// Whether Python's str.isprintable would say so.
bool is_printable(char32_t code);

}  // namespace packager

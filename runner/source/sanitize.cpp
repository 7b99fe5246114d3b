#include "sanitize.hpp"

#include <algorithm>

#include "text.hpp"

namespace packager {
namespace {

constexpr std::size_t max_length = 300, shortest_address = 6;

bool is_word(char letter) {
    return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') || (letter >= '0' && letter <= '9') ||
           letter == '_' || (letter & 0x80) != 0;
}

// Of a path that starts at `start`, the length of its folders: `/(?:[^\s/:'"]+/)+`; 0 if there are none.
std::size_t measure_folders(std::string_view text, std::size_t start) {
    std::size_t length = 0;
    while (true) {
        const std::size_t name = start + (length == 0 ? 1 : length);
        const std::size_t end = text.find_first_of(" \t\n\r\v\f/:'\"", name);
        if (end == std::string_view::npos || end == name || text[end] != '/') return length;
        length = end + 1 - start;
    }
}

std::string remove_folders(std::string_view text) {
    std::string shortened;
    for (std::size_t position = 0; position < text.size();) {
        const char before = position == 0 ? ' ' : text[position - 1];
        const bool may_start = text[position] == '/' && !is_word(before) && before != '.';
        const std::size_t length = may_start ? measure_folders(text, position) : 0;
        if (length == 0) shortened += text[position];
        position += length == 0 ? 1 : length;
    }
    return shortened;
}

std::string replace_addresses(std::string_view text) {
    std::string replaced;
    for (std::size_t position = 0; position < text.size();) {
        const std::size_t digits = position + 2;
        const std::size_t end = std::min(text.find_first_not_of("0123456789abcdef", digits), text.size());
        const bool is_address = text.substr(position, 2) == "0x" && end >= digits + shortest_address &&
                                (position == 0 || !is_word(text[position - 1])) &&
                                (end == text.size() || !is_word(text[end]));
        replaced += is_address ? "0x…" : std::string(1, text[position]);
        position = is_address ? end : position + 1;
    }
    return replaced;
}

}  // namespace

std::string truncate(std::string_view text, std::size_t characters) {
    std::size_t position = 0;
    while (characters-- > 0 && position < text.size()) position += read_character(text, position).size;
    return std::string(text.substr(0, position));
}

std::string sanitize_message(std::string_view text) {
    return truncate(replace_addresses(remove_folders(text)), max_length);
}

}  // namespace packager

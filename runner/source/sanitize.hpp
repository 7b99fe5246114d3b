// Removes paths and addresses from the error messages of libraries, as packager/common/sanitize.py.
#pragma once

#include <string>
#include <string_view>

namespace packager {

// Shortens absolute paths to file names, replaces addresses by `0x…`, and truncates the text to 300 characters.
std::string sanitize_message(std::string_view text);

// The first characters of a text.
std::string truncate(std::string_view text, std::size_t characters);

}  // namespace packager

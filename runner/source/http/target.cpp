// The target of a request: http_parser's rules, which httptools uses for URLs.
#include <algorithm>

#include "http/head.hpp"
#include "http/messages.hpp"

namespace packager::http {
namespace {

bool is_digit(char character) { return character >= '0' && character <= '9'; }

bool is_letter(char character) {
    return (character >= 'a' && character <= 'z') || (character >= 'A' && character <= 'Z');
}

bool is_hex(char character) {
    return is_digit(character) || (character >= 'a' && character <= 'f') || (character >= 'A' && character <= 'F');
}

bool is_one_of(char character, std::string_view characters) {
    return characters.find(character) != std::string_view::npos;
}

bool is_userinfo(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char character) {
        return is_digit(character) || is_letter(character) || is_one_of(character, "-_.!~*'()%;:&=+$,");
    });
}

bool is_port(std::string_view text) {
    unsigned port = 0;
    for (const char character : text) {
        if (!is_digit(character)) return false;
        port = 10 * port + static_cast<unsigned>(character - '0');
        if (port > 0xFFFF) return false;
    }
    return !text.empty();
}

bool is_address(std::string_view text) {
    const std::size_t zone = text.find('%');
    const std::string_view address = text.substr(0, zone);
    const bool fits = !address.empty() && std::all_of(address.begin(), address.end(), [](char character) {
        return is_hex(character) || character == ':' || character == '.';
    });
    if (!fits || zone == std::string_view::npos) return fits;
    const std::string_view name = text.substr(zone + 1);
    return !name.empty() && std::all_of(name.begin(), name.end(), [](char character) {
        return is_digit(character) || is_letter(character) || is_one_of(character, "%.-_~");
    });
}

bool is_host(std::string_view server) {
    const std::size_t at = server.find('@');
    if (at != std::string_view::npos) {
        if (!is_userinfo(server.substr(0, at))) return false;
        server.remove_prefix(at + 1);
    }
    std::size_t end = 0;
    if (!server.empty() && server.front() == '[') {
        end = server.find(']');
        if (end == std::string_view::npos || !is_address(server.substr(1, end - 1))) return false;
        ++end;
    } else {
        while (end < server.size() &&
               (is_digit(server[end]) || is_letter(server[end]) || is_one_of(server[end], ".-"))) {
            ++end;
        }
        if (end == 0) return false;
    }
    return end == server.size() || (server[end] == ':' && is_port(server.substr(end + 1)));
}

unsigned hex_value(char character) {
    if (is_digit(character)) return static_cast<unsigned>(character - '0');
    return static_cast<unsigned>((character | 0x20) - 'a') + 10U;
}

}  // namespace

std::optional<std::string_view> find_path(std::string_view url) {
    if (url.empty()) return std::nullopt;
    if (url.front() != '/' && url.front() != '*') {
        const std::size_t schema = url.find("://");
        if (schema == std::string_view::npos || schema == 0) return std::nullopt;
        if (!std::all_of(url.begin(), url.begin() + static_cast<std::ptrdiff_t>(schema), is_letter)) {
            return std::nullopt;
        }
        url.remove_prefix(schema + 3);
        const std::size_t end = url.find_first_of("/?#");
        if (end == std::string_view::npos || url[end] != '/' || !is_host(url.substr(0, end))) return std::nullopt;
        url.remove_prefix(end);
    }
    return url.substr(0, url.find_first_of("?#"));
}

void unquote(std::string_view text, std::string& decoded) {
    decoded.clear();
    if (text.find('%') == std::string_view::npos) {
        decoded = text;
        return;
    }
    std::string bytes;
    for (std::size_t position = 0; position < text.size(); ++position) {
        const bool is_escape = text[position] == '%' && position + 2 < text.size() && is_hex(text[position + 1]) &&
                               is_hex(text[position + 2]);
        if (is_escape) {
            bytes += static_cast<char>(hex_value(text[position + 1]) << 4U | hex_value(text[position + 2]));
            position += 2;
        } else {
            bytes += text[position];
        }
    }
    decoded = replace_invalid(bytes);
}

}  // namespace packager::http

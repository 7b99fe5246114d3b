#include "http/chunks.hpp"

#include <algorithm>

#include "http/messages.hpp"

namespace packager::http {
namespace {

constexpr std::size_t max_line_bytes = 1024;
constexpr std::size_t max_trailer_bytes = std::size_t{8} << 10U;
constexpr std::size_t max_digits = 15;

int hex_digit(char character) {
    if (character >= '0' && character <= '9') return character - '0';
    const char lower = static_cast<char>(character | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// The line of a size: digits, perhaps blanks and an extension of printable characters, and a line break.
struct SizeLine {
    std::uint64_t size = 0;
    std::size_t end = 0;  // 0 if this is none
};

SizeLine parse_size_line(std::string_view line) {
    SizeLine result;
    std::size_t position = 0;
    while (position < line.size() && position < max_digits && hex_digit(line[position]) >= 0) {
        result.size = result.size << 4U | static_cast<unsigned>(hex_digit(line[position++]));
    }
    if (position == 0) return {};
    std::size_t extension = position;
    while (extension < line.size() && (line[extension] == ' ' || line[extension] == '\t')) ++extension;
    if (extension < line.size() && line[extension] == ';') {
        position = extension + 1;
        while (position < line.size() && (line[position] == '\t' || (line[position] >= ' ' && line[position] <= '~'))) {
            ++position;
        }
    }
    if (line.substr(position, 2) != "\r\n") return {};
    result.end = position + 2;
    return result;
}

}  // namespace

std::size_t ChunkDecoder::feed(std::string_view bytes, Buffer& body) {
    std::size_t position = 0;
    while (!in_trailer_) {
        if (left_ > 0) {
            position += take_chunk(bytes.substr(position), body);
            if (left_ > 0) return position;
        }
        const std::size_t used = read_size(bytes.substr(position));
        if (used == 0) return position;
        position += used;
    }
    return position + skip_trailer(bytes.substr(position));
}

std::size_t ChunkDecoder::read_size(std::string_view bytes) {
    const SizeLine line = parse_size_line(bytes);
    if (line.end == 0) {
        const bool has_ended = bytes.substr(0, max_line_bytes).find('\n') != std::string_view::npos;
        if (has_ended || bytes.size() > max_line_bytes) throw Rejected(400, "the size of a chunk is malformed");
        return 0;
    }
    left_ = line.size == 0 ? 0 : line.size + 2;
    in_trailer_ = line.size == 0;
    return line.end;
}

std::size_t ChunkDecoder::take_chunk(std::string_view bytes, Buffer& body) {
    const auto available = static_cast<std::size_t>(std::min<std::uint64_t>(left_, bytes.size()));
    const auto content = static_cast<std::size_t>(std::min<std::uint64_t>(available, left_ > 2 ? left_ - 2 : 0));
    body.append(bytes.substr(0, content));
    const std::string_view ending = bytes.substr(content, available - content);
    const std::size_t missing = static_cast<std::size_t>(std::min<std::uint64_t>(left_ - content, 2));
    if (ending != std::string_view("\r\n").substr(2 - missing, ending.size())) {
        throw Rejected(400, "a chunk does not end where its size says");
    }
    left_ -= available;
    return available;
}

std::size_t ChunkDecoder::skip_trailer(std::string_view bytes) {
    if (bytes.substr(0, 2) == "\r\n") {
        is_complete_ = true;
        return 2;
    }
    const std::size_t end = bytes.find("\r\n\r\n");
    if (end != std::string_view::npos) {
        is_complete_ = true;
        return end + 4;
    }
    if (bytes.size() > max_trailer_bytes) throw Rejected(400, "the trailer of the body is too long");
    return 0;
}

}  // namespace packager::http

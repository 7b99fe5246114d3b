// Numbers of a file format, little-endian whatever the machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace packager {

// Reads the number at `position`; the caller has checked that the bytes are there.
template <typename Number>
Number load(std::string_view bytes, std::size_t position) {
    std::uint64_t number = 0;
    for (std::size_t index = 0; index < sizeof(Number); ++index) {
        number |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[position + index])) << (8 * index);
    }
    return static_cast<Number>(number);
}

template <typename Number>
void append(std::string& bytes, Number number) {
    for (std::size_t index = 0; index < sizeof(Number); ++index) {
        bytes += static_cast<char>((static_cast<std::uint64_t>(number) >> (8 * index)) & 0xFFU);
    }
}

}  // namespace packager

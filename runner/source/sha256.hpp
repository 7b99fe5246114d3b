// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <string>

#include "bundle.hpp"

namespace packager {

std::string sha256_hex(Span content);

class Sha256 {
public:
    Sha256();
    void update(Span content);
    std::array<std::uint8_t, 32> digest();

private:
    void compress(const std::uint8_t* blocks, std::size_t count);
    std::array<std::uint32_t, 8> state_;
    std::array<std::uint8_t, 64> buffer_{};
    std::uint64_t length_ = 0;
};

}  // namespace packager

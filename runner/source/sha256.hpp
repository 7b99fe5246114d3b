// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "bundle.hpp"

namespace packager {

std::string sha256_hex(Span content);

class Sha256 {
public:
    Sha256();
    void update(Span content);
    std::array<std::uint8_t, 32> digest();  // of everything so far; nothing may follow

private:
    std::array<std::uint32_t, 8> state_;
    std::array<std::uint8_t, 64> buffer_{};
    std::uint64_t length_ = 0;
};

std::string to_hex(const std::array<std::uint8_t, 32>& digest);

// How blocks of 64 bytes are mixed into the state. The processor chooses one; tests compare them all.
using Sha256Blocks = void (*)(std::uint32_t* state, const std::uint8_t* blocks, std::size_t count);
void mix_portably(std::uint32_t* state, const std::uint8_t* blocks, std::size_t count);
Sha256Blocks find_sha256_instructions();  // nullptr if this processor has none

}  // namespace packager

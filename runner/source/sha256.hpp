// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "bundle.hpp"

namespace packager {

using Digest = std::array<std::uint8_t, 32>;

std::string sha256_hex(Span content);
// The digests of several contents at once: an instruction for SHA-256 waits for the one before, and meanwhile another
// content takes its turn. Saves time as far as all contents go.
constexpr std::size_t sha256_lanes = 4;
std::array<Digest, sha256_lanes> hash_lanes(const std::array<Span, sha256_lanes>& contents);

class Sha256 {
public:
    Sha256();
    void update(Span content);
    Digest digest();  // of everything so far; nothing may follow

private:
    friend std::array<Digest, sha256_lanes> hash_lanes(const std::array<Span, sha256_lanes>& contents);

    std::array<std::uint32_t, 8> state_;
    std::array<std::uint8_t, 64> buffer_{};
    std::uint64_t length_ = 0;
};

std::string to_hex(const Digest& digest);

// Mixes blocks of 64 bytes into the state of one lane or of all, which have as many blocks each.
using Sha256Blocks = void (*)(std::uint32_t* const* states, const std::uint8_t* const* blocks, std::size_t count);
void mix_portably(std::uint32_t* const* states, const std::uint8_t* const* blocks, std::size_t count);  // one lane
struct Sha256Instructions {
    Sha256Blocks one = nullptr, all = nullptr;  // or nullptr if this processor has none
};
Sha256Instructions find_sha256_instructions();

}  // namespace packager

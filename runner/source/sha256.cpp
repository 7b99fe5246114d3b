#include "sha256.hpp"

#include <algorithm>

#include "sha256_constants.hpp"

namespace packager {
namespace {

constexpr std::size_t block_size = 64;

constexpr std::uint32_t rotate(std::uint32_t word, unsigned count) { return word >> count | word << (32U - count); }

std::uint32_t load_big_endian(const std::uint8_t* bytes) {
    return static_cast<std::uint32_t>(bytes[0]) << 24U | static_cast<std::uint32_t>(bytes[1]) << 16U |
           static_cast<std::uint32_t>(bytes[2]) << 8U | static_cast<std::uint32_t>(bytes[3]);
}

void mix_block(std::uint32_t* state, const std::uint8_t* block) {
    std::array<std::uint32_t, 64> words{};
    for (std::size_t index = 0; index < 16; ++index) words[index] = load_big_endian(block + 4 * index);
    for (std::size_t index = 16; index < 64; ++index) {
        const std::uint32_t early = words[index - 15], late = words[index - 2];
        const std::uint32_t low = rotate(early, 7) ^ rotate(early, 18) ^ early >> 3U;
        const std::uint32_t high = rotate(late, 17) ^ rotate(late, 19) ^ late >> 10U;
        words[index] = words[index - 16] + low + words[index - 7] + high;
    }
    std::uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    std::uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (std::size_t index = 0; index < 64; ++index) {
        const std::uint32_t choice = (e & f) ^ (~e & g), majority = (a & b) ^ (a & c) ^ (b & c);
        const std::uint32_t high = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        const std::uint32_t low = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        const std::uint32_t first = h + high + choice + sha256_constants[index] + words[index];
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + low + majority;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

const Sha256Instructions& instructions() {
    static const Sha256Instructions found = find_sha256_instructions();
    return found;
}

void mix(std::uint32_t* state, const std::uint8_t* blocks, std::size_t count) {
    (instructions().one != nullptr ? instructions().one : mix_portably)(&state, &blocks, count);
}

const std::uint8_t* bytes_of(Span content) { return reinterpret_cast<const std::uint8_t*>(content.data); }

}  // namespace

void mix_portably(std::uint32_t* const* states, const std::uint8_t* const* blocks, std::size_t count) {
    for (std::size_t index = 0; index < count; ++index) mix_block(states[0], blocks[0] + block_size * index);
}

// The first 32 bits of the fractions of the square roots of the first 8 primes.
Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::update(Span content) {
    const std::uint8_t* bytes = bytes_of(content);
    std::size_t left = content.size;
    const std::size_t buffered = length_ % block_size;
    length_ += left;
    if (buffered > 0) {
        const std::size_t taken = std::min(left, block_size - buffered);
        std::copy_n(bytes, taken, buffer_.data() + buffered);
        if (buffered + taken < block_size) return;
        mix(state_.data(), buffer_.data(), 1);
        bytes += taken;
        left -= taken;
    }
    if (left >= block_size) mix(state_.data(), bytes, left / block_size);
    std::copy_n(bytes + left / block_size * block_size, left % block_size, buffer_.data());
}

Digest Sha256::digest() {
    const std::uint64_t bits = length_ * 8;
    std::array<std::uint8_t, 72> padding{0x80};
    const std::size_t zeros = (block_size + 56 - 1 - length_ % block_size) % block_size;
    for (std::size_t index = 0; index < 8; ++index) {
        padding[1 + zeros + index] = static_cast<std::uint8_t>(bits >> (56 - 8 * index));
    }
    update({reinterpret_cast<const std::byte*>(padding.data()), 1 + zeros + 8});
    Digest digest{};
    for (std::size_t index = 0; index < 32; ++index) {
        digest[index] = static_cast<std::uint8_t>(state_[index / 4] >> (24 - 8 * (index % 4)));
    }
    return digest;
}

std::string to_hex(const Digest& digest) {
    std::string text;
    for (const std::uint8_t byte : digest) {
        text += "0123456789abcdef"[byte >> 4U];
        text += "0123456789abcdef"[byte & 15U];
    }
    return text;
}

std::array<Digest, sha256_lanes> hash_lanes(const std::array<Span, sha256_lanes>& contents) {
    std::array<Sha256, sha256_lanes> hashes;
    std::array<std::uint32_t*, sha256_lanes> states{};
    std::array<const std::uint8_t*, sha256_lanes> blocks{};
    std::size_t common = SIZE_MAX;
    for (std::size_t lane = 0; lane < sha256_lanes; ++lane) {
        states[lane] = hashes[lane].state_.data();
        blocks[lane] = bytes_of(contents[lane]);
        common = std::min(common, contents[lane].size / block_size * block_size);
    }
    if (instructions().all == nullptr) common = 0;
    if (common > 0) instructions().all(states.data(), blocks.data(), common / block_size);
    std::array<Digest, sha256_lanes> digests{};
    for (std::size_t lane = 0; lane < sha256_lanes; ++lane) {
        hashes[lane].length_ = common;
        hashes[lane].update({contents[lane].data + common, contents[lane].size - common});
        digests[lane] = hashes[lane].digest();
    }
    return digests;
}

std::string sha256_hex(Span content) {
    Sha256 sha256;
    sha256.update(content);
    return to_hex(sha256.digest());
}

}  // namespace packager

// SHA-256 by the instructions of x86-64 (SHA-NI) and of ARMv8's cryptography extension, if the processor has them.
#include "sha256.hpp"
#include "sha256_constants.hpp"

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

namespace packager {

// NOLINTBEGIN(portability-simd-intrinsics): each is for its own processor
#ifdef __x86_64__
namespace {

__attribute__((target("sse4.1"))) __m128i load_constants(std::size_t round) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(&sha256_constants[round]));
}

// The same round of all lanes, one after the other: none waits for the result of the lane before.
template <std::size_t lanes>
__attribute__((target("sha,sse4.1,ssse3"))) void mix_by_instructions(std::uint32_t* const* states,
                                                                     const std::uint8_t* const* blocks,
                                                                     std::size_t count) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef[lanes], cdgh[lanes], abef_before[lanes], cdgh_before[lanes];  // std::array drops their attributes
    __m128i words[lanes][4];
    // The instructions want the state as ABEF and CDGH.
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        const auto* const state = reinterpret_cast<const __m128i*>(states[lane]);
        const __m128i low = _mm_shuffle_epi32(_mm_loadu_si128(state), 0xB1);
        const __m128i high = _mm_shuffle_epi32(_mm_loadu_si128(state + 1), 0x1B);
        abef[lane] = _mm_alignr_epi8(low, high, 8);
        cdgh[lane] = _mm_blend_epi16(high, low, 0xF0);
    }
    for (std::size_t block = 0; block < count; ++block) {
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const auto* const source = reinterpret_cast<const __m128i*>(blocks[lane] + 64 * block);
            for (std::size_t quarter = 0; quarter < 4; ++quarter) {
                words[lane][quarter] = _mm_shuffle_epi8(_mm_loadu_si128(source + quarter), big_endian);
            }
            abef_before[lane] = abef[lane];
            cdgh_before[lane] = cdgh[lane];
        }
#pragma GCC unroll 16
        for (std::size_t group = 0; group < 16; ++group) {
            const __m128i constants = load_constants(4 * group);
#pragma GCC unroll 4
            for (std::size_t lane = 0; lane < lanes; ++lane) {
                __m128i& current = words[lane][group % 4];
                if (group >= 4) {
                    const __m128i previous = words[lane][(group + 3) % 4];
                    const __m128i shifted = _mm_alignr_epi8(previous, words[lane][(group + 2) % 4], 4);
                    const __m128i mixed = _mm_sha256msg1_epu32(current, words[lane][(group + 1) % 4]);
                    current = _mm_sha256msg2_epu32(_mm_add_epi32(mixed, shifted), previous);
                }
                const __m128i round = _mm_add_epi32(current, constants);
                cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], round);
                abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32(round, 0x0E));
            }
        }
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
            cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
        }
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        const __m128i feba = _mm_shuffle_epi32(abef[lane], 0x1B);
        const __m128i dchg = _mm_shuffle_epi32(cdgh[lane], 0xB1);
        auto* const state = reinterpret_cast<__m128i*>(states[lane]);
        _mm_storeu_si128(state, _mm_blend_epi16(feba, dchg, 0xF0));
        _mm_storeu_si128(state + 1, _mm_alignr_epi8(dchg, feba, 8));
    }
}

}  // namespace

Sha256Instructions find_sha256_instructions() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_SSE4_1) == 0 || (ecx & bit_SSSE3) == 0) {
        return {};
    }
    constexpr unsigned sha = 1U << 29U;
    const bool has_sha = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ebx & sha) != 0;
    return has_sha ? Sha256Instructions{mix_by_instructions<1>, mix_by_instructions<sha256_lanes>}
                   : Sha256Instructions{};
}

#elif defined(__aarch64__) && defined(__linux__)
namespace {

template <std::size_t lanes>
#ifdef __clang__
__attribute__((target("sha2")))
#else
__attribute__((target("+crypto")))
#endif
void mix_by_instructions(std::uint32_t* const* states, const std::uint8_t* const* blocks, std::size_t count) {
    uint32x4_t abcd[lanes], efgh[lanes], abcd_before[lanes], efgh_before[lanes];
    uint32x4_t words[lanes][4];
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        abcd[lane] = vld1q_u32(states[lane]);
        efgh[lane] = vld1q_u32(states[lane] + 4);
    }
    for (std::size_t block = 0; block < count; ++block) {
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const std::uint8_t* const source = blocks[lane] + 64 * block;
            for (std::size_t quarter = 0; quarter < 4; ++quarter) {
                words[lane][quarter] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(source + 16 * quarter)));
            }
            abcd_before[lane] = abcd[lane];
            efgh_before[lane] = efgh[lane];
        }
#pragma GCC unroll 16
        for (std::size_t group = 0; group < 16; ++group) {
            const uint32x4_t constants = vld1q_u32(&sha256_constants[4 * group]);
#pragma GCC unroll 4
            for (std::size_t lane = 0; lane < lanes; ++lane) {
                uint32x4_t(&word)[4] = words[lane];
                uint32x4_t& current = word[group % 4];
                if (group >= 4) {
                    current = vsha256su1q_u32(vsha256su0q_u32(current, word[(group + 1) % 4]), word[(group + 2) % 4],
                                              word[(group + 3) % 4]);
                }
                const uint32x4_t round = vaddq_u32(current, constants);
                const uint32x4_t abcd_now = abcd[lane];
                abcd[lane] = vsha256hq_u32(abcd[lane], efgh[lane], round);
                efgh[lane] = vsha256h2q_u32(efgh[lane], abcd_now, round);
            }
        }
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            abcd[lane] = vaddq_u32(abcd[lane], abcd_before[lane]);
            efgh[lane] = vaddq_u32(efgh[lane], efgh_before[lane]);
        }
    }
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        vst1q_u32(states[lane], abcd[lane]);
        vst1q_u32(states[lane] + 4, efgh[lane]);
    }
}

}  // namespace

Sha256Instructions find_sha256_instructions() {
    constexpr unsigned long sha2 = 1UL << 6U;  // HWCAP_SHA2
    const bool has_sha = (getauxval(AT_HWCAP) & sha2) != 0;
    return has_sha ? Sha256Instructions{mix_by_instructions<1>, mix_by_instructions<sha256_lanes>}
                   : Sha256Instructions{};
}

#else

Sha256Instructions find_sha256_instructions() { return {}; }

#endif

// NOLINTEND(portability-simd-intrinsics)

}  // namespace packager

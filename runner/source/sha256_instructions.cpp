// SHA-256 by the instructions of x86-64 (SHA-NI) and of ARMv8's cryptography extension, if the processor has them.
#include <array>

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

__attribute__((target("sha,sse4.1,ssse3"))) void mix_by_instructions(std::uint32_t* state, const std::uint8_t* blocks,
                                                                     std::size_t count) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    // The instructions want the state as ABEF and CDGH.
    const __m128i low = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state)), 0xB1);
    const __m128i high = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4)), 0x1B);
    __m128i abef = _mm_alignr_epi8(low, high, 8);
    __m128i cdgh = _mm_blend_epi16(high, low, 0xF0);
    for (; count > 0; --count, blocks += 64) {
        const __m128i abef_before = abef;
        const __m128i cdgh_before = cdgh;
        __m128i words[4];  // std::array warns of attributes that it drops
        for (std::size_t quarter = 0; quarter < 4; ++quarter) {
            const auto* const source = reinterpret_cast<const __m128i*>(blocks + 16 * quarter);
            words[quarter] = _mm_shuffle_epi8(_mm_loadu_si128(source), big_endian);
        }
#pragma GCC unroll 16
        for (std::size_t group = 0; group < 16; ++group) {
            __m128i& current = words[group % 4];
            if (group >= 4) {
                const __m128i previous = words[(group + 3) % 4];
                const __m128i shifted = _mm_alignr_epi8(previous, words[(group + 2) % 4], 4);
                const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(current, words[(group + 1) % 4]), shifted);
                current = _mm_sha256msg2_epu32(sum, previous);
            }
            const __m128i round = _mm_add_epi32(current, load_constants(4 * group));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, round);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(round, 0x0E));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
    const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace

Sha256Blocks find_sha256_instructions() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_SSE4_1) == 0 || (ecx & bit_SSSE3) == 0) {
        return nullptr;
    }
    constexpr unsigned sha = 1U << 29U;
    const bool has_sha = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ebx & sha) != 0;
    return has_sha ? mix_by_instructions : nullptr;
}

#elif defined(__aarch64__) && defined(__linux__)
namespace {

#ifdef __clang__
__attribute__((target("sha2")))
#else
__attribute__((target("+crypto")))
#endif
void mix_by_instructions(std::uint32_t* state, const std::uint8_t* blocks, std::size_t count) {
    uint32x4_t abcd = vld1q_u32(state);
    uint32x4_t efgh = vld1q_u32(state + 4);
    for (; count > 0; --count, blocks += 64) {
        const uint32x4_t abcd_before = abcd;
        const uint32x4_t efgh_before = efgh;
        uint32x4_t words[4];
        for (std::size_t quarter = 0; quarter < 4; ++quarter) {
            words[quarter] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(blocks + 16 * quarter)));
        }
#pragma GCC unroll 16
        for (std::size_t group = 0; group < 16; ++group) {
            uint32x4_t& current = words[group % 4];
            if (group >= 4) {
                current = vsha256su1q_u32(vsha256su0q_u32(current, words[(group + 1) % 4]), words[(group + 2) % 4],
                                          words[(group + 3) % 4]);
            }
            const uint32x4_t round = vaddq_u32(current, vld1q_u32(&sha256_constants[4 * group]));
            const uint32x4_t abcd_now = abcd;
            abcd = vsha256hq_u32(abcd, efgh, round);
            efgh = vsha256h2q_u32(efgh, abcd_now, round);
        }
        abcd = vaddq_u32(abcd, abcd_before);
        efgh = vaddq_u32(efgh, efgh_before);
    }
    vst1q_u32(state, abcd);
    vst1q_u32(state + 4, efgh);
}

}  // namespace

Sha256Blocks find_sha256_instructions() {
    constexpr unsigned long sha2 = 1UL << 6U;  // HWCAP_SHA2
    return (getauxval(AT_HWCAP) & sha2) != 0 ? mix_by_instructions : nullptr;
}

#else

Sha256Blocks find_sha256_instructions() { return nullptr; }

#endif

// NOLINTEND(portability-simd-intrinsics)

}  // namespace packager

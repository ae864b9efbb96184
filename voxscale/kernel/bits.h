// Undoing Blosc's bitshuffle of 16-bit numbers, for a part of a block: plane k holds bit k of all numbers, eight a byte.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_UNBIT 1
#include <immintrin.h>

namespace bits {

constexpr int64_t STEP = 32;          // bytes of each plane that are taken at once
constexpr int64_t NUMBERS = 8 * STEP;  // and the numbers that they make

enum Variant { PLAIN, AVX2, GFNI };

// The best that the machine has; tests choose lesser ones too.
inline int& variant() {
    static int best = !__builtin_cpu_supports("avx2") ? PLAIN : __builtin_cpu_supports("gfni") ? GFNI : AVX2;
    return best;
}

inline bool can() { return variant() != PLAIN; }

// Swaps the bits of the 8 x 8 squares that each 64 bits are: three rounds of exchanging halves of halves.
__attribute__((target("avx2"))) inline __m256i transposed(__m256i x) {
    __m256i t = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi64(x, 7)), _mm256_set1_epi64x(0x00aa00aa00aa00aa));
    x = _mm256_xor_si256(x, _mm256_xor_si256(t, _mm256_slli_epi64(t, 7)));
    t = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi64(x, 14)), _mm256_set1_epi64x(0x0000cccc0000cccc));
    x = _mm256_xor_si256(x, _mm256_xor_si256(t, _mm256_slli_epi64(t, 14)));
    t = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi64(x, 28)), _mm256_set1_epi64x(0x00000000f0f0f0f0));
    return _mm256_xor_si256(x, _mm256_xor_si256(t, _mm256_slli_epi64(t, 28)));
}

namespace avx2 {
#define TARGET __attribute__((target("avx2")))
#define PLANE(k) (k)
#define TRANSPOSED(x) transposed(x)
#include "unbit.h"
#undef TARGET
#undef PLANE
#undef TRANSPOSED
}  // namespace avx2

// The same with an instruction that multiplies 8 x 8 bits, here by 1; it takes the rows from the last to the first.
namespace gfni {
#define TARGET __attribute__((target("avx2,gfni")))
#define PLANE(k) (7 - (k))
#define TRANSPOSED(x) _mm256_gf2p8affine_epi64_epi8(_mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201)), x, 0)
#include "unbit.h"
#undef TARGET
#undef PLANE
#undef TRANSPOSED
}  // namespace gfni

using Unbit = void (*)(const uint8_t* low, const uint8_t* high, int64_t apart, int64_t start, int64_t length,
                       int16_t* out);

inline Unbit chosen_unbit() { return variant() == GFNI ? gfni::unbit : avx2::unbit; }

template <bool SIGNED>
__attribute__((target("avx2"))) inline void eight(const uint16_t* from, float* to) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m256i wide = SIGNED ? _mm256_cvtepi16_epi32(raw) : _mm256_cvtepu16_epi32(raw);
    _mm256_storeu_ps(to, _mm256_cvtepi32_ps(wide));
}

// Converts a row; the last eight may overlap the eight before.
template <bool SIGNED>
__attribute__((target("avx2"))) inline void to_float(const uint16_t* from, float* to, int64_t n) {
    if (n < 8) {
        for (int64_t x = 0; x < n; x++) to[x] = SIGNED ? static_cast<float>(static_cast<int16_t>(from[x])) : from[x];
        return;
    }
    int64_t x = 0;
    for (; x + 8 <= n; x += 8) eight<SIGNED>(from + x, to + x);
    if (x < n) eight<SIGNED>(from + n - 8, to + n - 8);
}

// The same past the caches, in whole lines of them: they need not be fetched first. Ends with what a line does not fill.
template <bool SIGNED>
__attribute__((target("avx2"))) inline void stream_float(const uint16_t* from, float* to, int64_t n) {
    const int64_t head = static_cast<int64_t>((64 - (reinterpret_cast<uintptr_t>(to) & 63)) & 63) / 4;
    if (n < head + 16) return to_float<SIGNED>(from, to, n);
    to_float<SIGNED>(from, to, head);
    int64_t x = head;
    for (; x + 16 <= n; x += 16)
        for (int64_t k = x; k < x + 16; k += 8) {
            const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
            _mm256_stream_ps(to + k, _mm256_cvtepi32_ps(SIGNED ? _mm256_cvtepi16_epi32(raw) : _mm256_cvtepu16_epi32(raw)));
        }
    to_float<SIGNED>(from + x, to + x, n - x);
}

// Copies a row in the same way.
__attribute__((target("avx2"))) inline void stream_copy(const uint16_t* from, uint16_t* to, int64_t n) {
    const int64_t head = static_cast<int64_t>((64 - (reinterpret_cast<uintptr_t>(to) & 63)) & 63) / 2;
    if (n < head + 32) {
        std::memcpy(to, from, static_cast<size_t>(n) * 2);
        return;
    }
    std::memcpy(to, from, static_cast<size_t>(head) * 2);
    int64_t x = head;
    for (; x + 32 <= n; x += 32)
        for (int64_t k = x; k < x + 32; k += 16)
            _mm256_stream_si256(reinterpret_cast<__m256i*>(to + k),
                                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k)));
    std::memcpy(to + x, from + x, static_cast<size_t>(n - x) * 2);
}

// After stores past the caches, before others read.
inline void fence() { _mm_sfence(); }

}  // namespace bits
#endif

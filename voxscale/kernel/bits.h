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

enum Variant { PLAIN, AVX2, GFNI, AVX512 };

// The best that the machine has; tests choose lesser ones too.
inline int& variant() {
    static int best = !__builtin_cpu_supports("avx2")     ? PLAIN
                      : !__builtin_cpu_supports("gfni")   ? AVX2
                      : !__builtin_cpu_supports("avx512bw") ? GFNI
                                                          : AVX512;
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

// The same in 64 bytes of each plane at once: a row of 32 numbers is one store. Written out beside unbit.h, as all types and
// instructions are others and the order of rows is too.
namespace wide {
#define TARGET __attribute__((target("avx512f,avx512bw,gfni")))
TARGET inline void bytes_of(const uint8_t* planes, int64_t apart, __m512i* out) {
    const __m512i one = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201));
    __m512i a[8], b[8];
    for (int k = 0; k < 8; k++) a[k] = _mm512_loadu_si512(planes + (7 - k) * apart);
    for (int k = 0; k < 4; k++) {
        b[k] = _mm512_unpacklo_epi8(a[2 * k], a[2 * k + 1]);
        b[k + 4] = _mm512_unpackhi_epi8(a[2 * k], a[2 * k + 1]);
    }
    for (int half = 0; half < 2; half++) {
        const __m512i* from = b + 4 * half;
        const __m512i p = _mm512_unpacklo_epi16(from[0], from[1]), q = _mm512_unpackhi_epi16(from[0], from[1]);
        const __m512i r = _mm512_unpacklo_epi16(from[2], from[3]), s = _mm512_unpackhi_epi16(from[2], from[3]);
        __m512i* to = out + 4 * half;
        to[0] = _mm512_gf2p8affine_epi64_epi8(one, _mm512_unpacklo_epi32(p, r), 0);
        to[1] = _mm512_gf2p8affine_epi64_epi8(one, _mm512_unpackhi_epi32(p, r), 0);
        to[2] = _mm512_gf2p8affine_epi64_epi8(one, _mm512_unpacklo_epi32(q, s), 0);
        to[3] = _mm512_gf2p8affine_epi64_epi8(one, _mm512_unpackhi_epi32(q, s), 0);
    }
}

TARGET inline void unbit_step(const uint8_t* low, const uint8_t* high, int64_t apart, int16_t* out, int64_t stride) {
    __m512i l[8], h[8];
    bytes_of(low, apart, l);
    bytes_of(high, apart, h);
    for (int m = 0; m < 4; m++) {  // a quarter of each register belongs to row m, 4 + m, 8 + m, 12 + m
        const __m512i a = _mm512_unpacklo_epi8(l[2 * m], h[2 * m]), b = _mm512_unpackhi_epi8(l[2 * m], h[2 * m]);
        const __m512i c = _mm512_unpacklo_epi8(l[2 * m + 1], h[2 * m + 1]);
        const __m512i d = _mm512_unpackhi_epi8(l[2 * m + 1], h[2 * m + 1]);
        const __m512i ab = _mm512_shuffle_i64x2(a, b, 0x44), cd = _mm512_shuffle_i64x2(c, d, 0x44);
        const __m512i ab_far = _mm512_shuffle_i64x2(a, b, 0xee), cd_far = _mm512_shuffle_i64x2(c, d, 0xee);
        int16_t* row = out + m * stride;
        _mm512_storeu_si512(row, _mm512_shuffle_i64x2(ab, cd, 0x88));
        _mm512_storeu_si512(row + 4 * stride, _mm512_shuffle_i64x2(ab, cd, 0xdd));
        _mm512_storeu_si512(row + 8 * stride, _mm512_shuffle_i64x2(ab_far, cd_far, 0x88));
        _mm512_storeu_si512(row + 12 * stride, _mm512_shuffle_i64x2(ab_far, cd_far, 0xdd));
    }
}

TARGET inline void unbit(const uint8_t* low, const uint8_t* high, int64_t apart, int64_t length, int16_t* out,
                         int64_t stride) {
    for (; length >= 2 * STEP; low += 2 * STEP, high += 2 * STEP, length -= 2 * STEP, out += 16 * stride)
        unbit_step(low, high, apart, out, stride);
    if (length > 0) gfni::unbit(low, high, apart, length, out, stride);
}
#undef TARGET
}  // namespace wide

using Unbit = void (*)(const uint8_t* low, const uint8_t* high, int64_t apart, int64_t length, int16_t* out,
                       int64_t stride);

inline Unbit chosen_unbit() {
    return variant() == AVX512 ? wide::unbit : variant() == GFNI ? gfni::unbit : avx2::unbit;
}

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

// Lines of 64 bytes, written past the caches: they need not be fetched first.
template <bool SIGNED>
struct Floats {
    using Out = float;
    static constexpr int64_t LINE = 16;

    static void some(const uint16_t* from, float* to, int64_t n) { to_float<SIGNED>(from, to, n); }

    __attribute__((target("avx2"))) static void line(const __m256i* from, float* to) {
        for (int k = 0; k < 2; k++) {
            const __m128i raw = k ? _mm256_extracti128_si256(*from, 1) : _mm256_castsi256_si128(*from);
            _mm256_stream_ps(to + 8 * k, _mm256_cvtepi32_ps(SIGNED ? _mm256_cvtepi16_epi32(raw) : _mm256_cvtepu16_epi32(raw)));
        }
    }
};

struct Copies {
    using Out = uint16_t;
    static constexpr int64_t LINE = 32;

    static void some(const uint16_t* from, uint16_t* to, int64_t n) { std::memcpy(to, from, static_cast<size_t>(n) * 2); }

    __attribute__((target("avx2"))) static void line(const __m256i* from, uint16_t* to) {
        for (int k = 0; k < 2; k++) _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + k, from[k]);
    }
};

// Writes rows that are `stride` numbers apart to memory where they follow one another: whole lines of the cache, which
// may hold the end of a row and the start of the next one, and what is left at both ends. No line is written twice.
template <typename Kind>
__attribute__((target("avx2"))) inline void stream(const uint16_t* from, int64_t stride, int64_t width, int64_t rows,
                                                   typename Kind::Out* to) {
    constexpr int64_t LINE = Kind::LINE, PARTS = LINE / 16;
    static const int16_t ends[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    int64_t x = static_cast<int64_t>((64 - (reinterpret_cast<uintptr_t>(to) & 63)) & 63) * LINE / 64;
    if (width < 2 * LINE) {
        for (int64_t y = 0; y < rows; y++) Kind::some(from + y * stride, to + y * width, width);
        return;
    }
    Kind::some(from, to, x);
    __m256i parts[PARTS];
    for (int64_t y = 0;; y++, from += stride, to += width) {
        for (; x + LINE <= width; x += LINE) {
            for (int64_t k = 0; k < PARTS; k++)
                parts[k] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + x + 16 * k));
            Kind::line(parts, to + x);
        }
        const int64_t rest = width - x;
        if (y + 1 == rows) return Kind::some(from + x, to + x, rest);
        if (rest == 0) {
            x = 0;
            continue;
        }
        for (int64_t k = 0; k < PARTS; k++) {
            const int64_t here = rest - 16 * k < 0 ? 0 : rest - 16 * k > 16 ? 16 : rest - 16 * k;
            const __m256i end = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + x + 16 * k));
            const __m256i next = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + stride - rest + 16 * k));
            const __m256i mine = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ends + 16 - here));
            parts[k] = _mm256_blendv_epi8(next, end, mine);
        }
        Kind::line(parts, to + x);
        x = LINE - rest;
    }
}

// After stores past the caches, before others read.
inline void fence() { _mm_sfence(); }

}  // namespace bits
#endif

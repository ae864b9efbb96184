// Maps of grey values in one pass: a piecewise-linear one with the bits of torch's operations one after another, a power,
// or both.
//
// The power x^g = 2^(g log2 x) is ours, so that it costs a third of the C library's: x = 2^e m with m in [2/3, 4/3), log2 m
// = s + w with s = m - 1, which is exact, and w = s P(s); 2^f = 1 + f R(f) for f in [-1/2, 1/2]. P and R are least-maximum
// fits, of 2^-27 and 2^-29. The large part of g e is kept exact: the leading 12 bits of g times the integer e, whose
// nearest integer goes straight to the exponent of the result. Only sums and products that are rounded one by one are
// used, in one order, so every machine gives the same bits, and a value the same wherever it stands.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

struct Part {
    float start, width, height;
};

constexpr float LOG[] = {0x1.c551dcp-2f,  -0x1.715434p-1f, 0x1.ec6e98p-2f,  -0x1.71811ap-2f, 0x1.27d490p-2f,
                         -0x1.e33632p-3f, 0x1.988bb6p-3f,  -0x1.cf2f94p-3f, 0x1.b2be34p-3f};  // P
constexpr float EXP[] = {0x1.62e430p-1f, 0x1.ebfbe0p-3f, 0x1.c6aecep-5f,
                         0x1.3b29b6p-7f, 0x1.5f4810p-10f, 0x1.4487aep-13f};  // R
constexpr int LOGS = sizeof(LOG) / sizeof(float), EXPS = sizeof(EXP) / sizeof(float);
constexpr float UP = 0x1p24f;            // makes all values normal
constexpr float ROUND = 0x1.8p23f;       // added and taken away, it leaves the nearest integer
constexpr float MOST = 0x1p100f;         // UP times less is finite
constexpr int32_t LEAST = 0x3f2aaaab;    // bits of 2/3
constexpr int32_t SMALLEST = -125;       // exponent of results that are not 0

struct Exponent {
    float whole, high, low;  // high has 12 bits, whole = high + low

    explicit Exponent(float value) : whole(value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits &= 0xfffff000u;
        std::memcpy(&high, &bits, 4);
        low = whole - high;
    }
};

float spread(const Part* parts, float value) {
    float sum = 0;
    for (const Part* part = parts; part < parts + 3; ++part) {
        const float share = (value - part->start) / part->width;
        sum += part->height * (share < 0 ? 0.0f : share > 1 ? 1.0f : share);  // what is no number stays none
    }
    return sum;
}

float power(float value, const Exponent& g) {
    if (!(value > 0 && value < MOST)) return value < 0 ? __builtin_nanf("") : value;
    const float raised = value * UP;
    int32_t bits;
    std::memcpy(&bits, &raised, 4);
    const int32_t scale = (bits - LEAST) >> 23;
    bits -= static_cast<int32_t>(static_cast<uint32_t>(scale) << 23);
    float m;
    std::memcpy(&m, &bits, 4);
    const float e = static_cast<float>(scale - 24), s = m - 1.0f;
    float w = LOG[LOGS - 1];
    for (int k = LOGS - 2; k >= 0; --k) w = w * s + LOG[k];
    w = w * s;
    const float large = g.high * e, first = (large + ROUND) - ROUND;
    const float sum = ((large - first) + g.whole * s) + (g.low * e + g.whole * w);
    const float second = (sum + ROUND) - ROUND, f = sum - second;
    float p = EXP[EXPS - 1];
    for (int k = EXPS - 2; k >= 0; --k) p = p * f + EXP[k];
    p = p * f + 1.0f;
    const int32_t n = static_cast<int32_t>(first + second);
    if (n < SMALLEST) return 0.0f;
    std::memcpy(&bits, &p, 4);
    bits += static_cast<int32_t>(static_cast<uint32_t>(n) << 23);
    std::memcpy(&p, &bits, 4);
    return p;
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))

// Compilers leave the bounds of `spread` and the choices of `power` to branches.
AVX2 inline __m256 spread(const Part* parts, __m256 value) {
    const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f);
    __m256 sum = zero;
    for (int k = 0; k < 3; ++k) {
        const __m256 away = _mm256_sub_ps(value, _mm256_set1_ps(parts[k].start));
        const __m256 share = _mm256_div_ps(away, _mm256_set1_ps(parts[k].width));
        // Both give their second operand where one is no number.
        const __m256 bounded = _mm256_min_ps(one, _mm256_max_ps(zero, share));
        sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_set1_ps(parts[k].height), bounded));
    }
    return sum;
}

AVX2 inline __m256 times(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
AVX2 inline __m256 plus(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
AVX2 inline __m256 minus(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }

AVX2 inline __m256 nearest(__m256 a) {
    const __m256 round = _mm256_set1_ps(ROUND);
    return minus(plus(a, round), round);
}

AVX2 inline __m256 power(__m256 value, const Exponent& g) {
    __m256i bits = _mm256_castps_si256(times(value, _mm256_set1_ps(UP)));
    const __m256i scale = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(LEAST)), 23);
    bits = _mm256_sub_epi32(bits, _mm256_slli_epi32(scale, 23));
    const __m256 e = _mm256_cvtepi32_ps(_mm256_sub_epi32(scale, _mm256_set1_epi32(24)));
    const __m256 s = minus(_mm256_castsi256_ps(bits), _mm256_set1_ps(1.0f)), whole = _mm256_set1_ps(g.whole);
    __m256 w = _mm256_set1_ps(LOG[LOGS - 1]);
    for (int k = LOGS - 2; k >= 0; --k) w = plus(times(w, s), _mm256_set1_ps(LOG[k]));
    w = times(w, s);
    const __m256 large = times(_mm256_set1_ps(g.high), e), first = nearest(large);
    const __m256 rest = plus(times(_mm256_set1_ps(g.low), e), times(whole, w));
    const __m256 sum = plus(plus(minus(large, first), times(whole, s)), rest);
    const __m256 second = nearest(sum), f = minus(sum, second);
    __m256 p = _mm256_set1_ps(EXP[EXPS - 1]);
    for (int k = EXPS - 2; k >= 0; --k) p = plus(times(p, f), _mm256_set1_ps(EXP[k]));
    p = plus(times(p, f), _mm256_set1_ps(1.0f));
    const __m256i n = _mm256_cvtps_epi32(plus(first, second));
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(n, 23)));
    p = _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(SMALLEST), n)), p);
    const __m256 zero = _mm256_setzero_ps();
    const __m256 usual = _mm256_and_ps(_mm256_cmp_ps(value, zero, _CMP_GT_OQ),
                                       _mm256_cmp_ps(value, _mm256_set1_ps(MOST), _CMP_LT_OQ));
    const __m256 below = _mm256_cmp_ps(value, zero, _CMP_LT_OQ);  // all bits set are no number
    return _mm256_or_ps(_mm256_blendv_ps(value, p, usual), below);
}

// Whole eights of the values; returns how many these are.
template <bool SPREAD, bool POWER>
AVX2 int64_t eights(const float* values, const Part* parts, const Exponent& g, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 value = _mm256_loadu_ps(values + i);
        if (SPREAD) value = spread(parts, value);
        if (POWER) value = power(value, g);
        _mm256_storeu_ps(out + i, value);
    }
    return i;
}
#endif

template <bool SPREAD, bool POWER>
void change(const float* values, const Part* parts, const Exponent& g, int64_t count, bool wide, float* out) {
    int64_t i = 0;
#if defined(__x86_64__)
    if (wide && __builtin_cpu_supports("avx2")) i = eights<SPREAD, POWER>(values, parts, g, count, out);
#endif
    for (; i < count; ++i) {
        float value = values[i];
        if (SPREAD) value = spread(parts, value);
        out[i] = POWER ? power(value, g) : value;
    }
}

}  // namespace

// First the sum over three parts of height * clamp((value - start) / width, 0, 1), unless `start` is null, then the power
// of `exponent` (1/2 to 2), unless it is 1. Values that are raised are 0 to 2^100; results below 2^-125 may be 0. `wide` may
// be switched off to compare.
extern "C" void change_greys(const float* values, const float* start, const float* width, const float* height,
                             float exponent, int64_t count, int wide, float* out) {
    const Exponent g(exponent);
    Part parts[3] = {};
    if (start)
        for (int k = 0; k < 3; ++k) parts[k] = {start[k], width[k], height[k]};
    const bool raise = exponent != 1.0f;
    const auto way = start ? (raise ? change<true, true> : change<true, false>)
                           : (raise ? change<false, true> : change<false, false>);
    way(values, parts, g, count, wide != 0, out);
}

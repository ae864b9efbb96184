// A piecewise-linear map of grey values, with the bits of torch's operations one after another.
#include <algorithm>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

struct Part {
    float start, width, height;
};

float spread(const Part* parts, float value) {
    float sum = 0;
    for (const Part* part = parts; part < parts + 3; ++part) {
        const float share = (value - part->start) / part->width;
        sum += part->height * (share < 0 ? 0.0f : share > 1 ? 1.0f : share);  // what is no number stays none
    }
    return sum;
}

#if defined(__x86_64__)
// Whole eights of the values; returns how many these are. Compilers leave the bounds of the loop above to branches.
__attribute__((target("avx2"))) int64_t spread_eights(const Part* parts, const float* values, int64_t count, float* out) {
    const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256 value = _mm256_loadu_ps(values + i);
        __m256 sum = zero;
        for (int k = 0; k < 3; ++k) {
            const __m256 away = _mm256_sub_ps(value, _mm256_set1_ps(parts[k].start));
            const __m256 share = _mm256_div_ps(away, _mm256_set1_ps(parts[k].width));
            // Both give their second operand where one is no number.
            const __m256 bounded = _mm256_min_ps(one, _mm256_max_ps(zero, share));
            sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_set1_ps(parts[k].height), bounded));
        }
        _mm256_storeu_ps(out + i, sum);
    }
    return i;
}
#endif

}  // namespace

// out = the sum over three parts of height * clamp((value - start) / width, 0, 1).
extern "C" void spread_parts(const float* values, const float* start, const float* width, const float* height,
                             int64_t count, float* out) {
    Part parts[3];
    for (int k = 0; k < 3; ++k) parts[k] = {start[k], width[k], height[k]};
    int64_t i = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) i = spread_eights(parts, values, count, out);
#endif
    for (; i < count; ++i) out[i] = spread(parts, values[i]);
}

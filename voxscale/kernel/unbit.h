// Part of bits.h, which includes it once for each machine that it tells apart by TARGET, PLANE and TRANSPOSED.

// Eight planes to bytes: out[k] holds numbers 16k... of the first and of the second half, 16 bytes each.
TARGET inline void bytes_of(const uint8_t* planes, int64_t apart, __m256i* out) {
    __m256i a[8], b[8];
    for (int k = 0; k < 8; k++) a[k] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(planes + PLANE(k) * apart));
    for (int k = 0; k < 4; k++) {  // pairs of planes side by side, byte by byte
        b[k] = _mm256_unpacklo_epi8(a[2 * k], a[2 * k + 1]);
        b[k + 4] = _mm256_unpackhi_epi8(a[2 * k], a[2 * k + 1]);
    }
    for (int half = 0; half < 2; half++) {
        const __m256i* from = b + 4 * half;
        const __m256i p = _mm256_unpacklo_epi16(from[0], from[1]), q = _mm256_unpackhi_epi16(from[0], from[1]);
        const __m256i r = _mm256_unpacklo_epi16(from[2], from[3]), s = _mm256_unpackhi_epi16(from[2], from[3]);
        __m256i* to = out + 4 * half;
        to[0] = TRANSPOSED(_mm256_unpacklo_epi32(p, r));
        to[1] = TRANSPOSED(_mm256_unpackhi_epi32(p, r));
        to[2] = TRANSPOSED(_mm256_unpacklo_epi32(q, s));
        to[3] = TRANSPOSED(_mm256_unpackhi_epi32(q, s));
    }
}

// 256 numbers, in rows of 32 that are `stride` numbers apart.
TARGET inline void unbit_step(const uint8_t* low, const uint8_t* high, int64_t apart, int16_t* out, int64_t stride) {
    __m256i l[8], h[8];
    bytes_of(low, apart, l);
    bytes_of(high, apart, h);
    for (int k = 0; k < 8; k++) {
        const __m256i first = _mm256_unpacklo_epi8(l[k], h[k]), second = _mm256_unpackhi_epi8(l[k], h[k]);
        int16_t* row = out + k / 2 * stride + 16 * (k % 2);
        __m256i* near = reinterpret_cast<__m256i*>(row);
        __m256i* far = reinterpret_cast<__m256i*>(row + 4 * stride);
        _mm256_storeu_si256(near, _mm256_permute2x128_si256(first, second, 0x20));
        _mm256_storeu_si256(far, _mm256_permute2x128_si256(first, second, 0x31));
    }
}

// Writes the numbers of `length` bytes of each plane, rounded up to whole steps, as rows of 32 that are `stride` numbers
// apart: `out` needs room for them. With a stride of 32 they lie in one piece.
TARGET inline void unbit(const uint8_t* low, const uint8_t* high, int64_t apart, int64_t length, int16_t* out,
                         int64_t stride) {
    for (; length >= STEP; low += STEP, high += STEP, length -= STEP, out += 8 * stride)
        unbit_step(low, high, apart, out, stride);
    if (length > 0) {
        uint8_t rest[16 * STEP] = {};
        for (int k = 0; k < 8; k++) {
            std::memcpy(rest + k * STEP, low + k * apart, static_cast<size_t>(length));
            std::memcpy(rest + (8 + k) * STEP, high + k * apart, static_cast<size_t>(length));
        }
        unbit_step(rest, rest + 8 * STEP, STEP, out, stride);
    }
}

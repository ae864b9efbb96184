// CRC-32C (Castagnoli), at three words a step.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE4_2__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace crc {

constexpr uint32_t POLYNOMIAL = 0x82f63b78u;  // bits reversed, as the instruction takes it

#if defined(__SSE4_2__)
inline uint64_t step8(uint64_t crc, uint64_t word) { return _mm_crc32_u64(crc, word); }
inline uint32_t step1(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
#elif defined(__ARM_FEATURE_CRC32)
inline uint64_t step8(uint64_t crc, uint64_t word) { return __crc32cd(static_cast<uint32_t>(crc), word); }
inline uint32_t step1(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
#else
inline uint32_t step1(uint32_t crc, uint8_t byte) {
    crc ^= byte;
    for (int k = 0; k < 8; k++) crc = (crc >> 1) ^ (POLYNOMIAL & (0u - (crc & 1u)));
    return crc;
}
inline uint64_t step8(uint64_t crc, uint64_t word) {
    for (int k = 0; k < 8; k++) crc = step1(static_cast<uint32_t>(crc), static_cast<uint8_t>(word >> (8 * k)));
    return crc;
}
#endif

inline uint64_t word_at(const uint8_t* p) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    return word;
}

// What `length` zero bytes make of a sum, which is linear, so one table for each byte of it is enough.
struct Zeros {
    uint32_t table[4][256];

    explicit Zeros(int64_t length) {
        uint32_t bit[32];
        for (int k = 0; k < 32; k++) {
            uint32_t sum = 1u << k;
            for (int64_t n = 0; n < length; n++) sum = step1(sum, 0);
            bit[k] = sum;
        }
        for (int byte = 0; byte < 4; byte++)
            for (int value = 0; value < 256; value++) {
                uint32_t sum = 0;
                for (int k = 0; k < 8; k++)
                    if (value >> k & 1) sum ^= bit[8 * byte + k];
                table[byte][value] = sum;
            }
    }

    uint32_t after(uint64_t crc) const {
        return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24 & 255];
    }
};

// The instruction takes three cycles and can start every cycle: three parts are summed side by side, then joined.
template <int64_t PART>
inline uint64_t thirds(uint64_t crc, const uint8_t*& p, int64_t& n) {
    static const Zeros zeros(PART);
    for (; n >= 3 * PART; p += 3 * PART, n -= 3 * PART) {
        uint64_t second = 0, third = 0;
        for (int64_t line = 0; line < PART; line += 64) {
            // What comes after these parts; three streams that jump are more than the machine foresees.
            for (int64_t k = 0; k < 3; k++) __builtin_prefetch(p + 3 * (PART + line) + 64 * k);
            for (int64_t k = line; k < line + 64; k += 8) {
                crc = step8(crc, word_at(p + k));
                second = step8(second, word_at(p + PART + k));
                third = step8(third, word_at(p + 2 * PART + k));
            }
        }
        crc = zeros.after(zeros.after(crc) ^ second) ^ third;
    }
    return crc;
}

inline uint32_t sum(const uint8_t* p, int64_t n) {
    uint64_t crc = 0xffffffffu;
    crc = thirds<2048>(crc, p, n);
    crc = thirds<128>(crc, p, n);
    for (; n >= 8; p += 8, n -= 8) crc = step8(crc, word_at(p));
    uint32_t last = static_cast<uint32_t>(crc);
    for (; n > 0; p++, n--) last = step1(last, *p);
    return ~last;
}

}  // namespace crc

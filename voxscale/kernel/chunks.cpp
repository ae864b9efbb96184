// Decodes the chunks of a Zarr v3 shard that a box touches, straight into the box.
//
// Each chunk is [Blosc frame][crc32c, 4 bytes little-endian]. The checksum is
// compared before the frame is decoded, so a damaged byte never reaches the
// decoder. All sizes come from the caller, which has checked that every chunk
// lies inside the buffer.
//
// 16-bit numbers lie in bit planes. Of those only the rows that the box touches
// are put together, in the first-level cache, and converted on their way into
// the box. Everything else is decoded whole by the blosc2 library.
#include <cstdint>
#include <cstring>
#include <vector>

#include "bits.h"
#include "blosc2.h"
#include "crc32c.h"

extern "C" int LZ4_decompress_safe(const char* from, char* to, int size, int room);  // part of blosc2

namespace {

struct Place {  // one chunk: where it is in the buffer, and which part of it goes where in the box
    int64_t offset, bytes;
    int64_t from[3], to[3], count[3];
};

struct Decoded {  // voxels, or the planes of the low and of the high bits
    const uint8_t *voxels, *low, *high;
};

struct Target {  // the box, the edges of a chunk, and whether chunks hold signed numbers
    void* box;
    const int64_t *shape, *chunk;
    bool is_signed;
};

thread_local blosc2_context* context = nullptr;
thread_local std::vector<uint8_t> decoded;  // chunks side by side
thread_local std::vector<int16_t> slices;   // one slice of each

constexpr int64_t SHORT = 32;         // numbers of a row of the usual chunk
constexpr int64_t SIDE_BY_SIDE = 16;  // most chunks along x that are decoded before they are written

template <typename In, typename Out>
void write_row(const uint8_t* from, void* box, int64_t at, int64_t n) {
    Out* to = static_cast<Out*>(box) + at;
    if (sizeof(In) == sizeof(Out)) {
        std::memcpy(to, from, static_cast<size_t>(n) * sizeof(In));
        return;
    }
    for (int64_t x = 0; x < n; x++) {
        In value;
        std::memcpy(&value, from + x * static_cast<int64_t>(sizeof(In)), sizeof(In));
        to[x] = static_cast<Out>(value);
    }
}

using WriteRow = void (*)(const uint8_t* from, void* box, int64_t at, int64_t n);

// Same type in and out goes by size alone; a conversion to float32 by the type.
WriteRow chosen(char kind, int size, bool to_float) {
    if (to_float) {
        if (kind == 'i') return size == 1 ? write_row<int8_t, float> : size == 2 ? write_row<int16_t, float> : nullptr;
        if (kind == 'u') return size == 1 ? write_row<uint8_t, float> : size == 2 ? write_row<uint16_t, float> : nullptr;
        return kind == 'f' && size == 4 ? write_row<float, float> : nullptr;
    }
    return size == 1   ? write_row<uint8_t, uint8_t>
           : size == 2 ? write_row<uint16_t, uint16_t>
           : size == 4 ? write_row<uint32_t, uint32_t>
           : size == 8 ? write_row<uint64_t, uint64_t>
                       : nullptr;
}

// Writes a run of chunks that lie side by side along x, so that whole rows of the box are written at once.
void scatter(const Decoded* run, const Place* places, int64_t length, int64_t size, const Target& target, WriteRow write) {
    const int64_t* chunk = target.chunk;
    for (int64_t z = 0; z < places->count[0]; z++) {
        for (int64_t y = 0; y < places->count[1]; y++) {
            const int64_t row = ((places->from[0] + z) * chunk[1] + places->from[1] + y) * chunk[2];
            const int64_t at = ((places->to[0] + z) * target.shape[1] + places->to[1] + y) * target.shape[2];
            for (int64_t i = 0; i < length; i++)
                write(run[i].voxels + (row + places[i].from[2]) * size, target.box, at + places[i].to[2],
                      places[i].count[2]);
        }
    }
}

#if HAVE_UNBIT
// The same from bit planes, slice by slice.
template <bool TO_FLOAT, bool SIGNED>
__attribute__((target("avx2"))) void scatter_bits(const Decoded* run, const Place* places, int64_t length,
                                                  const Target& target) {
    const int64_t* chunk = target.chunk;
    const int64_t room = chunk[1] * chunk[2] + 2 * bits::NUMBERS;
    slices.resize(static_cast<size_t>(SIDE_BY_SIDE * room));
    int16_t* const slice = slices.data();
    const bits::Unbit unbit = bits::chosen_unbit();
    const int64_t plane = chunk[0] * chunk[1] * chunk[2] / 8;
    for (int64_t z = 0; z < places->count[0]; z++) {
        const int64_t first = ((places->from[0] + z) * chunk[1] + places->from[1]) * chunk[2];
        const int64_t start = first / 8, stop = (first + places->count[1] * chunk[2] + 7) / 8;
        for (int64_t i = 0; i < length; i++)
            unbit(run[i].low, run[i].high, plane, start, stop - start, slice + i * room);
        for (int64_t y = 0; y < places->count[1]; y++) {
            const int64_t row = first % 8 + y * chunk[2];
            const int64_t at = ((places->to[0] + z) * target.shape[1] + places->to[1] + y) * target.shape[2];
            if (TO_FLOAT && chunk[2] <= SHORT) {  // short rows are joined, then converted at once
                int16_t joined[(SIDE_BY_SIDE + 1) * SHORT];
                int64_t width = 0;
                for (int64_t i = 0; i < length; width += places[i].count[2], i++)  // what is too much is written over
                    std::memcpy(joined + width, slice + i * room + row + places[i].from[2], SHORT * 2);
                bits::stream_float<SIGNED>(reinterpret_cast<const uint16_t*>(joined),
                                           static_cast<float*>(target.box) + at + places->to[2], width);
                continue;
            }
            for (int64_t i = 0; i < length; i++) {
                const int16_t* from = slice + i * room + row + places[i].from[2];
                const int64_t to = at + places[i].to[2], n = places[i].count[2];
                if (TO_FLOAT)
                    bits::stream_float<SIGNED>(reinterpret_cast<const uint16_t*>(from), static_cast<float*>(target.box) + to, n);
                else if (n == SHORT)
                    bits::copy_row(from, static_cast<int16_t*>(target.box) + to);
                else
                    std::memcpy(static_cast<int16_t*>(target.box) + to, from, static_cast<size_t>(n) * 2);
            }
        }
    }
    bits::fence();
}
#endif

int32_t int_at(const uint8_t* p) {
    int32_t value;
    std::memcpy(&value, p, 4);
    return value;
}

// Finds the bit planes of a frame: one block of 16-bit numbers in two streams, each LZ4 or as it is. False if the frame
// is of another kind or not right; the library, which is asked next, tells these apart.
bool find_planes(const uint8_t* frame, int32_t bytes, int32_t raw, uint8_t* room, Decoded* found) {
    constexpr int HEADER = 16, LZ4_BITSHUFFLED_SPLIT = 0x24;
    if (bytes < HEADER + 4 || frame[0] != 2 || frame[2] != LZ4_BITSHUFFLED_SPLIT || frame[3] != 2) return false;
    if (int_at(frame + 4) != raw || int_at(frame + 8) != raw || raw % 16 != 0) return false;
    const int32_t half = raw / 2;
    const uint8_t* planes[2];
    int64_t at = int_at(frame + HEADER);
    for (int k = 0; k < 2; k++) {
        if (at < HEADER + 4 || at + 4 > bytes) return false;
        const int32_t size = int_at(frame + at);
        at += 4;
        if (size <= 0 || at + size > bytes) return false;
        planes[k] = size == half ? frame + at : room + k * half;
        if (size != half && LZ4_decompress_safe(reinterpret_cast<const char*>(frame + at),
                                                reinterpret_cast<char*>(room + k * half), size, half) != half)
            return false;
        at += size;
    }
    *found = {nullptr, planes[0], planes[1]};
    return true;
}

}  // namespace

// Returns 0; i + 1 if chunk i is damaged; -1 if the number type is not known.
extern "C" int64_t read_chunks(const uint8_t* buffer, const Place* places, int64_t count, const int64_t* chunk,
                               char kind, int size, int to_float, void* box, const int64_t* shape) {
    if (context == nullptr) {
        blosc2_dparams params = BLOSC2_DPARAMS_DEFAULTS;
        params.nthreads = 1;
        context = blosc2_create_dctx(params);
    }
    const WriteRow write = chosen(kind, size, to_float != 0);
    if (write == nullptr || context == nullptr) return -1;
    const int64_t raw = chunk[0] * chunk[1] * chunk[2] * size;
    const Target target = {box, shape, chunk, kind == 'i'};
    decoded.resize(static_cast<size_t>(SIDE_BY_SIDE * raw));
    Decoded run[SIDE_BY_SIDE];
    for (int64_t first = 0; first < count;) {
        bool planes = false;
        int64_t length = 0;
        for (; length < SIDE_BY_SIDE && first + length < count; length++) {
            const Place& p = places[first + length];
            if (p.to[0] != places[first].to[0] || p.to[1] != places[first].to[1]) break;
            const uint8_t* frame = buffer + p.offset;
            const int32_t bytes = static_cast<int32_t>(p.bytes - 4);
            if (bytes < 16 || crc::sum(frame, bytes) != static_cast<uint32_t>(int_at(frame + bytes)))
                return first + length + 1;
            uint8_t* room = decoded.data() + length * raw;
#if HAVE_UNBIT
            if (size == 2 && (length == 0 || planes) && bits::can()) {
                planes = find_planes(frame, bytes, static_cast<int32_t>(raw), room, run + length);
                if (planes) continue;
                if (length > 0) {
                    planes = true;
                    break;  // those before are written first
                }
            }
#endif
            if (blosc2_decompress_ctx(context, frame, bytes, room, static_cast<int32_t>(raw)) != raw)
                return first + length + 1;
            run[length] = {room, nullptr, nullptr};
        }
#if HAVE_UNBIT
        if (planes) {
            const auto scatter_planes = !to_float            ? scatter_bits<false, false>
                                        : target.is_signed ? scatter_bits<true, true>
                                                           : scatter_bits<true, false>;
            scatter_planes(run, places + first, length, target);
        } else
#endif
            scatter(run, places + first, length, size, target, write);
        first += length;
    }
    return 0;
}

// Converts a box of an array, whose rows are in one piece, to float32. Returns 0; -1 if the number type is not known.
extern "C" int64_t to_float(const uint8_t* from, const int64_t* shape, const int64_t* strides, char kind, int size,
                            float* out) {
    const WriteRow write = chosen(kind, size, true);
    if (write == nullptr) return -1;
    for (int64_t z = 0; z < shape[0]; z++)
        for (int64_t y = 0; y < shape[1]; y++) {
            const uint8_t* row = from + z * strides[0] + y * strides[1];
            const int64_t at = (z * shape[1] + y) * shape[2];
#if HAVE_UNBIT
            if (size == 2 && bits::can()) {
                (kind == 'i' ? bits::to_float<true> : bits::to_float<false>)(reinterpret_cast<const uint16_t*>(row),
                                                                             out + at, shape[2]);
                continue;
            }
#endif
            write(row, out, at, shape[2]);
        }
    return 0;
}

// For tests: limits the instructions to 0 (none beyond the compiler's), 1 (AVX2) or 2 (GFNI); returns what was in use.
// A machine is never asked for more than `start` found.
extern "C" int limit(int variant) {
#if HAVE_UNBIT
    static const int best = bits::variant();
    const int before = bits::variant();
    bits::variant() = variant < best ? variant : best;
    return before;
#else
    return 0;
#endif
}

extern "C" void start() { blosc2_init(); }

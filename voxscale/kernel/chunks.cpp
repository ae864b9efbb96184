// Decodes the chunks of a Zarr v3 shard that boxes touch, each once, straight into the boxes.
//
// Each chunk is [Blosc frame][crc32c, 4 bytes little-endian]. The checksum is
// compared before the frame is decoded, so a damaged byte never reaches the
// decoder. All sizes come from the caller, which has checked that every chunk
// lies inside the buffer.
//
// 16-bit numbers lie in bit planes. Of those only the rows that boxes touch are
// put together, in the first-level cache, and converted on their way into the
// boxes. Everything else is decoded whole by the blosc2 library.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bits.h"
#include "blosc2.h"
#include "crc32c.h"

extern "C" int LZ4_decompress_safe(const char* from, char* to, int size, int room);  // part of blosc2

namespace {

struct Chunk {  // where it is in the buffer, and its first voxel
    int64_t offset, bytes, start[3];
};

struct Target {  // a box: its memory, its first voxel and its edges
    void* voxels;
    int64_t low[3], shape[3];
};

struct Decoded {  // voxels, or the planes of the low and of the high bits
    const uint8_t *voxels, *low, *high;
};

thread_local blosc2_context* context = nullptr;
thread_local std::vector<uint8_t> room;    // chunks side by side
thread_local std::vector<int16_t> slices;  // one slice of all of them, in rows
thread_local std::vector<int16_t> single;  // one slice of one

constexpr int64_t ROW = 32;           // numbers of a row of the usual chunk
constexpr int64_t SIDE_BY_SIDE = 16;  // most chunks along x that are decoded before they are written

struct Window {  // what a box shows of a run of chunks: its first voxels, ends, and which chunks
    const Target* target;
    int64_t z, z_end, y, y_end, first, end, width;
    int64_t from[SIDE_BY_SIDE], count[SIDE_BY_SIDE];  // of a row of each chunk; all counts make the width

    int64_t place(const Chunk& chunk, int64_t slice, int64_t row) const {  // of the first voxel of a row in the box
        const int64_t* low = target->low;
        const int64_t x = chunk.start[2] + from[first] - low[2];
        return ((slice - low[0]) * target->shape[1] + row - low[1]) * target->shape[2] + x;
    }
};

thread_local std::vector<Window> windows;  // of one run

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

// What the boxes show of a run of chunks.
int64_t look(const Chunk* run, int64_t length, const int64_t* edges, const Target* targets, int64_t count, Window* found) {
    int64_t n = 0;
    for (const Target* target = targets; target < targets + count; target++) {
        Window& w = found[n];
        const int64_t *low = target->low, *shape = target->shape, *start = run[0].start;
        w.target = target;
        w.z = std::max(low[0], start[0]), w.z_end = std::min(low[0] + shape[0], start[0] + edges[0]);
        w.y = std::max(low[1], start[1]), w.y_end = std::min(low[1] + shape[1], start[1] + edges[1]);
        w.first = w.end = w.width = 0;
        for (int64_t i = 0; i < length; i++) {
            w.from[i] = std::max<int64_t>(low[2] - run[i].start[2], 0);
            w.count[i] = std::min(low[2] + shape[2] - run[i].start[2], edges[2]) - w.from[i];
            if (w.count[i] <= 0) continue;
            if (w.first == w.end) w.first = i;
            w.end = i + 1, w.width += w.count[i];
        }
        if (w.z < w.z_end && w.y < w.y_end && w.first < w.end) n++;
    }
    return n;
}

// Writes a run of chunks that lie side by side along x, so that whole rows of a box are written at once.
void scatter(const Decoded* decoded, const Chunk* run, const Window* windows, int64_t count, const int64_t* edges,
             int64_t size, WriteRow write) {
    for (const Window* w = windows; w < windows + count; w++)
        for (int64_t z = w->z; z < w->z_end; z++)
            for (int64_t y = w->y; y < w->y_end; y++) {
                const int64_t row = ((z - run[0].start[0]) * edges[1] + y - run[0].start[1]) * edges[2];
                int64_t at = w->place(run[w->first], z, y);
                for (int64_t i = w->first; i < w->end; at += w->count[i], i++)
                    write(decoded[i].voxels + (row + w->from[i]) * size, w->target->voxels, at, w->count[i]);
            }
}

#if HAVE_UNBIT
// Bytes that are read next, asked for while others are written. Pages of a file that are not mapped yet cannot be asked
// for, so one byte is read wherever the system begins to map the next 16 of them.
struct Ahead {
    const uint8_t *at, *begin;
    int64_t bytes;

    void touch(int64_t part, int64_t parts) {
        const uint8_t* end = begin + bytes * part / parts;
        for (; at < end; at += 64) {
            const bool mapped = at != begin && (reinterpret_cast<uintptr_t>(at) & 0xffff) >= 64;
            if (!mapped) static_cast<void>(*static_cast<const volatile uint8_t*>(at));
            __builtin_prefetch(at, 0, 2);
        }
    }
};

// The chunks side by side that come next, if they lie in one piece.
Ahead ahead_of(const uint8_t* buffer, const Chunk* next, const Chunk* end) {
    if (next == end) return {nullptr, nullptr, 0};
    const int64_t first = next->offset;
    int64_t last = first;
    for (const Chunk* chunk = next; chunk < end && chunk < next + SIDE_BY_SIDE; chunk++) {
        if (chunk->offset != last || chunk->start[0] != next->start[0] || chunk->start[1] != next->start[1]) break;
        last += chunk->bytes;
    }
    return {buffer + first, buffer + first, last - first};
}

// Puts rows of one slice of a chunk together, from the bit planes; the first of them has that number in the planes.
void join_rows(const Decoded& chunk, int64_t plane, int64_t first, int64_t rows, int64_t edge, int16_t* to, int64_t stride) {
    const bits::Unbit unbit = bits::chosen_unbit();
    const int64_t begin = first * edge, from = begin / 8;
    if (edge == ROW && rows % 8 == 0) return unbit(chunk.low + from, chunk.high + from, plane, rows * 4, to, stride);
    const int64_t length = (begin + rows * edge + 7) / 8 - from;
    single.resize(static_cast<size_t>(8 * length + bits::NUMBERS));
    unbit(chunk.low + from, chunk.high + from, plane, length, single.data(), ROW);
    const int16_t* row = single.data() + begin % 8;
    for (int64_t y = 0; y < rows; y++, row += edge, to += stride) std::memcpy(to, row, static_cast<size_t>(edge) * 2);
}

// The same as `scatter` from bit planes, slice by slice: each is put together once for all boxes, with the rows of all
// chunks in one piece, and rows of a box that has no more of them follow one another in it.
template <typename Kind>
void scatter_bits(const Decoded* decoded, const Chunk* run, const Window* windows, int64_t count, const int64_t* edges,
                  Ahead ahead) {
    const int64_t edge = edges[2], *start = run[0].start, plane = edges[0] * edges[1] * edge / 8;
    slices.resize(static_cast<size_t>(SIDE_BY_SIDE * edges[1] * edge));
    int16_t* slice = slices.data();
    const int64_t whole = edges[1] % 8 == 0 ? 8 : 1;  // rows that are put together at once
    for (int64_t z = start[0]; z < start[0] + edges[0]; z++) {
        int64_t top = start[1] + edges[1], bottom = start[1], first = SIDE_BY_SIDE, end = 0;
        for (const Window* w = windows; w < windows + count; w++) {
            if (z < w->z || z >= w->z_end) continue;
            top = std::min(top, w->y), bottom = std::max(bottom, w->y_end);
            first = std::min(first, w->first), end = std::max(end, w->end);
        }
        ahead.touch(z - start[0] + 1, edges[0]);
        if (first >= end) continue;
        const int64_t skip = (top - start[1]) / whole * whole, stride = (end - first) * edge;
        const int64_t rows = (bottom - start[1] - skip + whole - 1) / whole * whole;
        for (int64_t i = first; i < end; i++)
            join_rows(decoded[i], plane, (z - start[0]) * edges[1] + skip, rows, edge, slice + (i - first) * edge, stride);
        for (const Window* w = windows; w < windows + count; w++) {
            if (z < w->z || z >= w->z_end) continue;
            const int64_t side = w->target->shape[2], high = w->y_end - w->y;
            const int16_t* row = slice + (w->y - start[1] - skip) * stride + (w->first - first) * edge + w->from[w->first];
            const auto* from = reinterpret_cast<const uint16_t*>(row);
            auto* to = static_cast<typename Kind::Out*>(w->target->voxels) + w->place(run[w->first], z, w->y);
            if (w->width == side)
                bits::stream<Kind>(from, stride, side, high, to);
            else
                for (int64_t y = 0; y < high; y++) bits::stream<Kind>(from + y * stride, stride, w->width, 1, to + y * side);
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
extern "C" int64_t read_chunks(const uint8_t* buffer, const Chunk* chunks, int64_t count, const int64_t* edges, char kind,
                               int size, int to_float, const Target* targets, int64_t boxes) {
    if (context == nullptr) {
        blosc2_dparams params = BLOSC2_DPARAMS_DEFAULTS;
        params.nthreads = 1;
        context = blosc2_create_dctx(params);
    }
    const WriteRow write = chosen(kind, size, to_float != 0);
    if (write == nullptr || context == nullptr) return -1;
    const int64_t raw = edges[0] * edges[1] * edges[2] * size;
    room.resize(static_cast<size_t>(SIDE_BY_SIDE * raw));
    windows.resize(static_cast<size_t>(boxes));
    Decoded decoded[SIDE_BY_SIDE];
    for (int64_t first = 0; first < count;) {
        const Chunk* run = chunks + first;
        bool planes = false;
        int64_t length = 0;
        for (; length < SIDE_BY_SIDE && first + length < count; length++) {
            const Chunk& chunk = run[length];
            if (chunk.start[0] != run[0].start[0] || chunk.start[1] != run[0].start[1]) break;
            const uint8_t* frame = buffer + chunk.offset;
            const int32_t bytes = static_cast<int32_t>(chunk.bytes - 4);
            if (bytes < 16 || crc::sum(frame, bytes) != static_cast<uint32_t>(int_at(frame + bytes)))
                return first + length + 1;
            uint8_t* own = room.data() + length * raw;
#if HAVE_UNBIT
            if (size == 2 && (length == 0 || planes) && bits::can()) {
                planes = find_planes(frame, bytes, static_cast<int32_t>(raw), own, decoded + length);
                if (planes) continue;
                if (length > 0) {
                    planes = true;
                    break;  // those before are written first
                }
            }
#endif
            if (blosc2_decompress_ctx(context, frame, bytes, own, static_cast<int32_t>(raw)) != raw)
                return first + length + 1;
            decoded[length] = {own, nullptr, nullptr};
        }
        const int64_t seen = look(run, length, edges, targets, boxes, windows.data());
#if HAVE_UNBIT
        if (planes) {
            const auto scatter_planes = !to_float     ? scatter_bits<bits::Copies>
                                        : kind == 'i' ? scatter_bits<bits::Floats<true>>
                                                      : scatter_bits<bits::Floats<false>>;
            scatter_planes(decoded, run, windows.data(), seen, edges, ahead_of(buffer, run + length, chunks + count));
        } else
#endif
            scatter(decoded, run, windows.data(), seen, edges, size, write);
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

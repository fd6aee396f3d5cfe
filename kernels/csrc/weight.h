// How a weight lies in memory, and how a few of its channels become the panel that a product reads.
//
// Tile     kTile rows that are multiplied together. Channels are the outer dimension: what one channel (of bfloat16, two
//          neighbours) of the kTile rows needs lies side by side, so that a vector's lanes are rows, and a sum over
//          channels stays in its lane.
// Floats   [tiles][K][kTile], bfloat16 in pairs [tiles][K / 2][kTile][2], K rounded up to even, padding is zeros.
// Integers [tiles / kQuad][blocks][kQuad], so that tiles which are read together are one stream (the last ones may be
//          fewer); a block is for `block` channels (the last one may be shorter):
//            scales   [kTile] of scale_dtype        minimums likewise, if there are any        two levels: one for all
//                                                   groups of the block, which have factors
//            factors  [groups][kTile] int8, then those of minimums uint8; one level: a block is a group, or all of its
//                     groups share the scale
//            values   for each 8 channels, pairs j = 0 to 3, lane l = 2 row + channel % 2:
//                       4, 5, 6 bits   [32] uint16, bits 4 j to 4 j + 3 of lane l: the low 4 bits
//                       2, 3 bits      [32] uint8, bits 2 j and 2 j + 1 of lane l: the low 2 bits
//                       3, 5 bits      then [4] uint32, bit l of word j: the next bit
//                       6 bits         then [32] uint8, bits 2 j and 2 j + 1 of lane l: the next 2 bits
//                       8 bits         where they are looked up, pairs 0 and 1, then 2 and 3, each [4][2][8]: 8 lanes of
//                                      one, and of the other; bit 7 is the sign, the others the magnitude, and -0 stands
//                                      for -128. Where they are converted, [8][kTile] int8
//          A weight is (integer - offset) * scale * factor + minimum * factor of minimums.
// Panel    some channels of a tile by themselves: floats that lie in rows, turned around, or integers as numbers.

#pragma once

#include <type_traits>

#include "dtypes.h"
#include "kernels.h"

namespace PS_ISA {

constexpr long kTile = 16;
constexpr long kQuad = 4;          // tiles
constexpr long kChunk = 8;         // channels of integers that lie together

// Whether integers of 8 bits lie as what looks them up wants them (see integers.h).
#if defined(__AVX512BF16__)
constexpr bool kByMagnitude = true;
#else
constexpr bool kByMagnitude = false;
#endif

inline long rounded_up(long n, long to) { return (n + to - 1) / to * to; }

inline long bytes_of(int32_t dtype) { return dtype == ps::kFloat32 ? 4 : dtype == ps::kInt8 || dtype == ps::kFloat8 ? 1 : 2; }

// Where the parts of a weight lie, in bytes.
struct Layout {
  explicit Layout(const ps::Weight& w)
      : data(static_cast<const uint8_t*>(w.data)), bits(w.bits), tiles((w.rows + kTile - 1) / kTile),
        channels(w.bits != 0 ? rounded_up(w.channels, kChunk) : w.dtype == ps::kBFloat16 ? rounded_up(w.channels, 2) : w.channels) {
    if (w.bits == 0) {
      tile = channels * kTile * bytes_of(w.dtype);
      return;
    }
    num_groups = (channels + w.group - 1) / w.group;
    while (w.group << log_groups < w.block) ++log_groups;
    scales = kTile * bytes_of(w.scale_dtype) * (1 + w.has_min);
    factors = w.two_level ? kTile * (1 + w.has_min) : 0;
    values = w.group * kTile * w.bits / 8;
    block = block_bytes(w.block / w.group, w.block);
    whole_blocks = channels / w.block;
    rest = channels % w.block == 0 ? 0 : block_bytes(num_groups - (whole_blocks << log_groups), channels % w.block);
    tile = whole_blocks * block + rest;
  }

  const uint8_t* data;
  long bits, tiles, channels;  // channels that a tile has in memory
  long num_groups = 0, log_groups = 0, whole_blocks = 0;  // groups of a tile, those of a block, blocks that are whole
  long scales = 0, factors = 0, values = 0;               // bytes of a block's scales; of a group's factors and integers
  long block = 0, rest = 0, tile = 0;                     // bytes of a whole block, of the last one if it is not, of a tile

 private:
  long block_bytes(long groups, long num_channels) const {
    return scales + groups * factors + num_channels * kTile * bits / 8;
  }
};

// Block b of a tile.
inline const uint8_t* block_of(const Layout& layout, long tile, long b) {
  const long first = tile / kQuad * kQuad, together = std::min(kQuad, layout.tiles - first);
  return layout.data + first * layout.tile + b * layout.block * together + (tile - first) * (b < layout.whole_blocks ? layout.block : layout.rest);
}

// One group of a tile after another: its block, its number there and how many the block has, and its integers.
class Place {
 public:
  Place(const Layout& layout, long tile, long g) : layout_(layout), tile_(tile), number_(g >> layout.log_groups) {
    enter(block_of(layout, tile, number_));
    index = g - (number_ << layout.log_groups);
    values += index * layout.values;
  }
  void next() {
    if (++index < groups) {
      values += layout_.values;
    } else {
      enter(++number_ < layout_.whole_blocks ? block + step_ : block_of(layout_, tile_, number_));
    }
  }
  // Bytes from the block of a tile to that of the next tile of its quad.
  long to_next_tile() const { return number_ < layout_.whole_blocks ? layout_.block : layout_.rest; }

  const uint8_t *block, *values;
  long index, groups;

 private:
  void enter(const uint8_t* at) {
    block = at;
    index = 0;
    groups = std::min(1L << layout_.log_groups, layout_.num_groups - (number_ << layout_.log_groups));
    values = at + layout_.scales + groups * layout_.factors;
  }

  const Layout& layout_;
  const long tile_;
  long number_;  // of the block
  const long step_ = layout_.block * std::min(kQuad, layout_.tiles - tile_ / kQuad * kQuad);
};

inline vf load_scales(const void* p, int32_t dtype, long i) {
  switch (dtype) {
    case ps::kFloat32: return load(static_cast<const float*>(p) + i);
    case ps::kBFloat16: return load(static_cast<const bf16*>(p) + i);
    default: return load(static_cast<const fp16*>(p) + i);
  }
}

inline vf load_unsigned(const uint8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
}

// What W rows' sums of a group are multiplied with, from row i of the tile on. block: that of `place`, or of another tile.
inline vf scales_of(const ps::Weight& w, const Layout& layout, const Place& place, const uint8_t* block, long i) {
  const vf scale = load_scales(block, w.scale_dtype, i);
  if (!w.two_level) return scale;
  return mul(scale, load(reinterpret_cast<const int8_t*>(block) + layout.scales + place.index * kTile + i));
}
inline vf minimums_of(const ps::Weight& w, const Layout& layout, const Place& place, const uint8_t* block, long i) {
  const vf minimum = load_scales(block, w.scale_dtype, kTile + i);
  if (!w.two_level) return minimum;
  return mul(minimum, load_unsigned(block + layout.scales + (place.groups + place.index) * kTile + i));
}

// The integer of lane l of pair j of 8 channels, as it is stored.
template <int BITS>
inline int integer_of(const uint8_t* chunk, int j, int l) {
  if constexpr (BITS == 8 && !kByMagnitude) return static_cast<int8_t>(chunk[(2 * j + l % 2) * kTile + l / 2]);
  if constexpr (BITS == 8) {
    const int code = chunk[64 * (j / 2) + 16 * (l / 8) + 8 * (j % 2) + l % 8], magnitude = code & 127;
    return code < 128 ? magnitude : magnitude == 0 ? -128 : -magnitude;
  }
  int x;
  const uint8_t* high;
  if constexpr (BITS <= 3) {
    x = chunk[l] >> (2 * j) & 3;
    high = chunk + 32;
  } else {
    uint16_t word;
    std::memcpy(&word, chunk + 2 * l, 2);
    x = word >> (4 * j) & 15;
    high = chunk + 64;
  }
  if constexpr (BITS == 6) return x | (high[l] >> (2 * j) & 3) << 4;
  if constexpr (BITS == 3 || BITS == 5) {
    uint32_t word;
    std::memcpy(&word, high + 4 * j, 4);
    return x | static_cast<int>(word >> l & 1) << (BITS - 1);
  }
  return x;
}

// Call body with the number of bits as a constant.
template <class Body>
inline void with_bits(int bits, Body body) {
  switch (bits) {
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    case 6: return body(std::integral_constant<int, 6>{});
    default: return body(std::integral_constant<int, 8>{});
  }
}

// Floats of rows that lie as torch keeps them: channels of up to kTile rows turned around. Padding is zeros.
template <class T>
inline void turn(const ps::Weight& w, long tile, long channel, long channels, T* panel) {
  const T* rows = static_cast<const T*>(w.data) + tile * kTile * w.stride;
  const long count = std::min(kTile, w.rows - tile * kTile), known = std::min(channels, w.channels - channel);
  if (count < kTile || known < channels) std::memset(static_cast<void*>(panel), 0, sizeof(T) * channels * kTile);
  constexpr long at_once = kTile * 4 / sizeof(T);  // channels whose words make a square with kTile rows
  long turned = 0;
  if constexpr (!std::is_same_v<T, fp16>) {
    for (; count == kTile && turned + at_once <= known; turned += at_once) {
      for (long r = 0; r < kTile; r += W) {
        for (long word = 0; word < kTile; word += W) {
          const T* const from = rows + r * w.stride + channel + turned + word * at_once / kTile;
          turn_words(from, w.stride * sizeof(T), panel + (turned * kTile + (word * kTile + r) * at_once / kTile), 64);
        }
      }
    }
  }
  for (long r = 0; r < count; ++r) {
    const T* row = rows + r * w.stride + channel;
    for (long c = turned; c < known; ++c) {
      panel[std::is_same_v<T, bf16> ? c / 2 * 2 * kTile + 2 * r + c % 2 : c * kTile + r] = row[c];
    }
  }
}

// Channels of a tile of floats: where they lie, if they lie as one, else as a panel in `own`.
template <class T>
inline const T* panel_of(const ps::Weight& w, const Layout& layout, long tile, long channel, long channels, T* own) {
  if (w.stride == 0) return static_cast<const T*>(w.data) + (tile * layout.channels + channel) * kTile;
  turn(w, tile, channel, channels, own);
  return own;
}

}  // namespace PS_ISA

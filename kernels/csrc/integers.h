// Integers of a packed weight as numbers that a product multiplies: 8 channels of a tile at a time, in registers.
//
// bfloat16  looked up in a table, where the processor multiplies pairs of them
// float32   shifted, masked and converted, elsewhere
// Both hold every integer less its offset exactly: scales are for the sums of groups.

#pragma once

#include <type_traits>

#include "weight.h"

namespace PS_ISA {

// What a weight's integers become, whatever their number of bits; and the same in registers.
template <class P>
struct Table;
template <int BITS, class P>
struct Lookup;

// The lanes of W rows of a tile, from `row` on, of 8 channels: `lane(i)` for channel i, or for pair i of bfloat16.
template <int BITS, class P>
class Chunk;

template <>
struct Table<float> {
  explicit Table(const ps::Weight& w) : offset(w.offset) {}
  const int32_t offset;
};

template <int BITS>
struct Lookup<BITS, float> {
  explicit Lookup(const Table<float>& table) : offset(set_words(table.offset)) {}
  const vi offset;
};

template <int BITS>
class Chunk<BITS, float> {
 public:
  Chunk(const uint8_t* chunk, long row, const Lookup<BITS, float>& lookup) : chunk_(chunk), row_(row), offset_(lookup.offset) {
    if constexpr (BITS <= 3) low_ = load_halves(chunk + 2 * row);
    if constexpr (BITS > 3 && BITS < 8) low_ = load_words(chunk + 4 * row);
    if constexpr (BITS == 6) high_ = load_halves(chunk + 4 * kTile + 2 * row);
    if constexpr (BITS == 3 || BITS == 5) places_ = load_words(&kPlaces[row]);
  }

  vf lane(int c) const {
    if constexpr (BITS == 8) {
      if constexpr (!kByMagnitude) return load(reinterpret_cast<const int8_t*>(chunk_) + c * kTile + row_);
      float numbers[W];
      for (int i = 0; i < W; ++i) numbers[i] = static_cast<float>(integer_of<8>(chunk_, c / 2, static_cast<int>(2 * (row_ + i)) + c % 2));
      return load(numbers);
    }
    constexpr int low_bits = BITS <= 3 ? 2 : 4, odd = BITS <= 3 ? 8 : 16;
    vi x = right(low_, low_bits * (c / 2) + odd * (c % 2));
    if (BITS <= 3 || c != 7) x = both(x, set_words((1 << low_bits) - 1));  // nothing lies above the last of a word
    if constexpr (BITS == 6) x = either(x, left(both(right(high_, 2 * (c / 2) + 8 * (c % 2)), set_words(3)), 4));
    if constexpr (BITS == 3 || BITS == 5) {
      int32_t word;
      std::memcpy(&word, chunk_ + low_bits * kTile + 4 * (c / 2), 4);
      const vi bit = right(set_words(word), places_);
      x = either(x, left(both(c % 2 == 0 ? bit : right(bit, 1), set_words(1)), BITS - 1));
    }
    return converted(minus(x, offset_));
  }

 private:
  static constexpr int32_t kPlaces[kTile] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};  // of a row's two bits

  const uint8_t* const chunk_;
  const long row_;
  const vi offset_;
  vi low_, high_, places_;
};

#if defined(__AVX512BF16__)

// bfloat16 of each integer less its offset. The bits of an index above the weight's own do not count. Of 8 bits by
// magnitude, in bytes: the low ones, then the high ones with a plus and with a minus.
template <>
struct Table<bf16> {
  alignas(64) bf16 entries[64];
  alignas(64) uint8_t bytes[3][128];
  explicit Table(const ps::Weight& w) {
    if (w.bits == 8) {
      for (int i = 0; i < 128; ++i) {
        const uint16_t plus = rounded<bf16>(static_cast<float>(i)).bits, minus = rounded<bf16>(static_cast<float>(i == 0 ? -128 : -i)).bits;
        bytes[0][i] = static_cast<uint8_t>(plus);  // 0 and -128 have the same
        bytes[1][i] = static_cast<uint8_t>(plus >> 8);
        bytes[2][i] = static_cast<uint8_t>(minus >> 8);
      }
      return;
    }
    for (int i = 0; i < 64; ++i) entries[i] = rounded<bf16>(static_cast<float>((i & ((1 << w.bits) - 1)) - w.offset));
  }
};

template <int BITS>
struct Lookup<BITS, bf16> {
  vi parts[BITS == 8 ? 6 : BITS == 6 ? 2 : 1];
  explicit Lookup(const Table<bf16>& table) {
    const uint8_t* from = BITS == 8 ? table.bytes[0] : reinterpret_cast<const uint8_t*>(table.entries);
    for (vi& part : parts) {
      part = _mm512_load_si512(from);
      from += 64;
    }
  }
};

template <int BITS>
class Chunk<BITS, bf16> {
 public:
  Chunk(const uint8_t* chunk, long, const Lookup<BITS, bf16>& lookup) {
    const vi* const parts = lookup.parts;
    if constexpr (BITS == 8) {
      for (int half = 0; half < 2; ++half) {
        const vi codes = _mm512_loadu_si512(chunk + 64 * half);
        const __mmask64 minus = _mm512_movepi8_mask(codes);
        const vi low = _mm512_permutex2var_epi8(parts[0], codes, parts[1]);
        vi high = _mm512_mask2_permutex2var_epi8(parts[4], codes, minus, parts[5]);
        high = _mm512_mask2_permutex2var_epi8(parts[2], high, _knot_mask64(minus), parts[3]);
        pairs_[2 * half] = _mm512_unpacklo_epi8(low, high);
        pairs_[2 * half + 1] = _mm512_unpackhi_epi8(low, high);
      }
      return;
    }
    constexpr int low_bits = BITS <= 3 ? 2 : 4;
    const vi mask = _mm512_set1_epi16((1 << low_bits) - 1);
    const vi base = BITS <= 3 ? _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(chunk))) : _mm512_loadu_si512(chunk);
    const uint8_t* more = chunk + (BITS <= 3 ? 32 : 64);
    const vi upper = BITS == 6 ? _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(more))) : base;
    for (int j = 0; j < 4; ++j) {
      vi index = _mm512_srli_epi16(base, low_bits * j);
      if constexpr (BITS == 3 || BITS >= 5) index = _mm512_and_si512(index, mask);  // the others' tables repeat
      if constexpr (BITS == 3 || BITS == 5) {
        uint32_t bits;
        std::memcpy(&bits, more + 4 * j, 4);
        index = _mm512_or_si512(index, _mm512_maskz_set1_epi16(bits, 1 << (BITS - 1)));
      }
      if constexpr (BITS == 6) {
        const vi two = _mm512_and_si512(_mm512_srli_epi16(upper, 2 * j), _mm512_set1_epi16(3));
        pairs_[j] = _mm512_permutex2var_epi16(parts[0], _mm512_or_si512(index, _mm512_slli_epi16(two, 4)), parts[1]);
      } else {
        pairs_[j] = _mm512_permutexvar_epi16(index, parts[0]);
      }
    }
  }

  vi lane(int j) const { return pairs_[j]; }

 private:
  vi pairs_[4];
};

#endif

}  // namespace PS_ISA

// The block formats of GGUF: integers, scales and factors of one block, with every bit they have.
//
// A weight is d * factor * (integer - offset) + m * factor of minimums; m is -dmin in the K formats.
// Source   https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h   The numbers are GGML's own for the types.

#pragma once

#include <cstdint>
#include <cstring>

namespace ps {

struct Block {
  uint8_t integers[256];  // as they are stored: less `offset` of the weight later; those of 8 bits have a sign
  uint8_t scales[8];      // the scale, then the minimum if there is one
  int8_t factors[16];     // of the scale, for each group
  uint8_t min_factors[16];
};

enum Gguf : int32_t { kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ2_K = 10, kQ3_K = 11, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14 };

inline long bytes_of_block(int32_t type) {
  switch (type) {
    case kQ4_0: return 18;
    case kQ4_1: return 20;
    case kQ5_0: return 22;
    case kQ5_1: return 24;
    case kQ8_0: return 34;
    case kQ2_K: return 84;
    case kQ3_K: return 110;
    case kQ4_K: return 144;
    case kQ5_K: return 176;
    default: return 210;  // kQ6_K
  }
}

inline void copy_scale(Block& b, const uint8_t* d) { std::memcpy(b.scales, d, 2); }
inline void copy_minimum(Block& b, const uint8_t* m) { std::memcpy(b.scales + 2, m, 2); }
inline void copy_negated(Block& b, const uint8_t* m) {
  copy_minimum(b, m);
  b.scales[3] ^= 0x80;
}

// 32 channels: the first half in the low nibbles, the second in the high ones; 5 bits have one more bit a channel.
inline void read_32(const uint8_t* nibbles, const uint8_t* fifth, Block& b) {
  for (int i = 0; i < 32; ++i) {
    const int low = i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
    b.integers[i] = static_cast<uint8_t>(fifth == nullptr ? low : low | (fifth[i / 8] >> (i % 8) & 1) << 4);
  }
}

// 8 factors of scales and 8 of minimums, 6 bits each, in 12 bytes (Q4_K and Q5_K).
inline void read_factors(const uint8_t* p, Block& b) {
  for (int g = 0; g < 4; ++g) {
    b.factors[g] = p[g] & 63;
    b.min_factors[g] = p[g + 4] & 63;
    b.factors[g + 4] = static_cast<int8_t>((p[g + 8] & 15) | (p[g] >> 6) << 4);
    b.min_factors[g + 4] = static_cast<uint8_t>(p[g + 8] >> 4 | (p[g + 4] >> 6) << 4);
  }
}

inline void read_q2_k(const uint8_t* p, Block& b) {  // scales [16] | quarters [64] | d | dmin
  for (int g = 0; g < 16; ++g) {
    b.factors[g] = p[g] & 15;
    b.min_factors[g] = p[g] >> 4;
  }
  for (int i = 0; i < 256; ++i) b.integers[i] = p[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
  copy_scale(b, p + 80);
  copy_negated(b, p + 82);
}

inline void read_q3_k(const uint8_t* p, Block& b) {  // third bits [32] | quarters [64] | scales [12] | d
  for (int i = 0; i < 256; ++i) {
    const int low = p[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    b.integers[i] = static_cast<uint8_t>(low | (p[i % 32] >> (i / 32) & 1) << 2);
  }
  const uint8_t* s = p + 96;  // low 4 bits of 16 factors, then 2 more bits of each
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4;
    b.factors[g] = static_cast<int8_t>((low | (s[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32);
  }
  copy_scale(b, p + 108);
}

inline void read_q4_k(const uint8_t* p, Block& b) {  // d | dmin | factors [12] | nibbles [128]
  copy_scale(b, p);
  copy_negated(b, p + 2);
  read_factors(p + 4, b);
  for (int i = 0; i < 256; ++i) b.integers[i] = p[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
}

inline void read_q5_k(const uint8_t* p, Block& b) {  // d | dmin | factors [12] | fifth bits [32] | nibbles [128]
  copy_scale(b, p);
  copy_negated(b, p + 2);
  read_factors(p + 4, b);
  for (int i = 0; i < 256; ++i) {
    const int low = p[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
    b.integers[i] = static_cast<uint8_t>(low | (p[16 + i % 32] >> (i / 32) & 1) << 4);
  }
}

inline void read_q6_k(const uint8_t* p, Block& b) {  // nibbles [128] | upper 2 bits [64] | factors [16] | d
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
    const int low = p[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
    b.integers[i] = static_cast<uint8_t>(low | (p[128 + half * 32 + l] >> (quarter * 2) & 3) << 4);
  }
  std::memcpy(b.factors, p + 192, 16);
  copy_scale(b, p + 208);
}

inline void read_block(int32_t type, const uint8_t* p, Block& b) {
  switch (type) {
    case kQ4_0: copy_scale(b, p); return read_32(p + 2, nullptr, b);
    case kQ4_1: copy_scale(b, p); copy_minimum(b, p + 2); return read_32(p + 4, nullptr, b);
    case kQ5_0: copy_scale(b, p); return read_32(p + 6, p + 2, b);
    case kQ5_1: copy_scale(b, p); copy_minimum(b, p + 2); return read_32(p + 8, p + 4, b);
    case kQ8_0:
      copy_scale(b, p);
      std::memcpy(b.integers, p + 2, 32);
      return;
    case kQ2_K: return read_q2_k(p, b);
    case kQ3_K: return read_q3_k(p, b);
    case kQ4_K: return read_q4_k(p, b);
    case kQ5_K: return read_q5_k(p, b);
    default: return read_q6_k(p, b);
  }
}

}  // namespace ps

// Vectors of float32 for one instruction set: what every kernel is written in.
//
// Each kernel's source is compiled once for every instruction set (see setup.py), in a namespace of its own, and sees
// here either 16 lanes (AVX-512) or 8 (AVX2). Another machine's lanes (NEON, SVE) would be one more section of this file.
//
// Bits    A sum of a vector's lanes always pairs lane i with lane i + n/2, then halves n: `sum` for one vector and
//         `sums` for many give the same float. Nothing is contracted to a fused multiply-add that is not spelled `fma`.
// Source  exp: Cody and Waite, "Software Manual for the Elementary Functions" (1980), chapter 6

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace ps {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

}  // namespace ps

namespace PS_ISA {

using ps::bf16;
using ps::fp16;

#if defined(__AVX512F__)

constexpr int W = 16;  // lanes
using vf = __m512;
using vi = __m512i;

inline __mmask16 first(long n) { return static_cast<__mmask16>((1u << n) - 1); }  // n < 16

inline vf zero() { return _mm512_setzero_ps(); }
inline vf set(float x) { return _mm512_set1_ps(x); }
inline vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf max(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf min(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf nearest(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf times_power_of_two(vf a, vf n) { return _mm512_scalef_ps(a, n); }
inline vf where_less(vf a, vf b, vf x, vf y) {  // a < b ? x : y
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline vf load(const float* p, long n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store(float* p, vf x) { _mm512_storeu_ps(p, x); }
inline void store(float* p, vf x, long n) { _mm512_mask_storeu_ps(p, first(n), x); }

inline vf widen_bf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline vf load(const bf16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline vf load(const bf16* p, long n) { return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
inline vf load(const fp16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline vf load(const fp16* p, long n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
inline vf load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline __m256i round_bf16(vf x) {  // to the nearest, ties to even; a NaN stays one
  const vi bits = _mm512_castps_si512(x);
  const vi odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const vi rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const vi quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const vi kept = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), rounded, quiet);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}
inline __m256i round_fp16(vf x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(bf16* p, vf x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_bf16(x)); }
inline void store(bf16* p, vf x, long n) { _mm256_mask_storeu_epi16(p, first(n), round_bf16(x)); }
inline void store(fp16* p, vf x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_fp16(x)); }
inline void store(fp16* p, vf x, long n) { _mm256_mask_storeu_epi16(p, first(n), round_fp16(x)); }

// W words of 32 bits, and what is made of them; from halves and to floats.
inline vi load_words(const void* p) { return _mm512_loadu_si512(p); }
inline vi load_halves(const void* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline vi set_words(int32_t x) { return _mm512_set1_epi32(x); }
inline vi minus(vi a, vi b) { return _mm512_sub_epi32(a, b); }
inline vi both(vi a, vi b) { return _mm512_and_si512(a, b); }
inline vi either(vi a, vi b) { return _mm512_or_si512(a, b); }
inline vi right(vi a, int bits) { return _mm512_srli_epi32(a, bits); }
inline vi left(vi a, int bits) { return _mm512_slli_epi32(a, bits); }
inline vi right(vi a, vi bits) { return _mm512_srlv_epi32(a, bits); }
inline vf converted(vi x) { return _mm512_cvtepi32_ps(x); }

// 2 W bfloat16, pairs of neighbours in one lane.
inline vi load_pairs(const bf16* p) { return _mm512_loadu_si512(p); }
inline vi load_pairs(const bf16* p, long n) {
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p);
}
inline vf even_of(vi x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
inline vf odd_of(vi x) { return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff0000))); }

// W x W words of 32 bits turned around: word j of row i becomes word i of row j. Strides in bytes.
inline void turn_words(const void* from, long stride, void* to, long to_stride) {
  const char* const rows = static_cast<const char*>(from);
  char* const columns = static_cast<char*>(to);
  vi pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    const vi a = _mm512_loadu_si512(rows + i * stride), b = _mm512_loadu_si512(rows + (i + 1) * stride);
    pairs[i] = _mm512_unpacklo_epi32(a, b);
    pairs[i + 1] = _mm512_unpackhi_epi32(a, b);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
      fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
    }
  }
  for (int j = 0; j < 4; ++j) {
    const vi a = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x44), b = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x44);
    const vi c = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xee), d = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xee);
    _mm512_storeu_si512(columns + j * to_stride, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(columns + (4 + j) * to_stride, _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_storeu_si512(columns + (8 + j) * to_stride, _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_storeu_si512(columns + (12 + j) * to_stride, _mm512_shuffle_i32x4(c, d, 0xdd));
  }
}

inline float sum(vf x) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

// The sums of 16 vectors at once: each level adds one half of the lanes to the other, of two vectors in one instruction.
inline vf sums(const vf x[16]) {
  vf a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    a[i] = add(_mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0x44), _mm512_shuffle_f32x4(x[2 * i], x[2 * i + 1], 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = add(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88), _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    c[i] = add(_mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44), _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xee));
  }
  const vf d = add(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
  // lane 4 g + j now has vector 4 j + g, g in the order of the shuffles above
  const vi order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_ps(order, d);
}

// Half of a vector's lanes as float64, for the few sums and products whose error would show.
using vd = __m512d;
inline vd low_half(vf x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline vd high_half(vf x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
inline vf narrowed(vd low, vd high) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}
inline vd set(double x) { return _mm512_set1_pd(x); }
inline vd add(vd a, vd b) { return _mm512_add_pd(a, b); }
inline vd sub(vd a, vd b) { return _mm512_sub_pd(a, b); }
inline vd mul(vd a, vd b) { return _mm512_mul_pd(a, b); }
inline vd fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
inline void store(double* p, vd x) { _mm512_storeu_pd(p, x); }

inline float largest(vf x) { return _mm512_reduce_max_ps(x); }
inline float first_lane(vf x) { return _mm512_cvtss_f32(x); }

#elif defined(__AVX2__)

constexpr int W = 8;
using vf = __m256;
using vi = __m256i;

inline __m256i first(long n) {  // n < 8
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline vf zero() { return _mm256_setzero_ps(); }
inline vf set(float x) { return _mm256_set1_ps(x); }
inline vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf max(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf min(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf nearest(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf power_of_two(vi n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
inline vf times_power_of_two(vf a, vf n) {  // in two steps, since 2^128 is no float
  const vi whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return mul(mul(a, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}
inline vf where_less(vf a, vf b, vf x, vf y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }

inline vf load(const float* p) { return _mm256_loadu_ps(p); }
inline vf load(const float* p, long n) { return _mm256_maskload_ps(p, first(n)); }
inline void store(float* p, vf x) { _mm256_storeu_ps(p, x); }
inline void store(float* p, vf x, long n) { _mm256_maskstore_ps(p, first(n), x); }

template <class T>
inline __m128i first_halves(const T* p, long n) {
  alignas(16) uint16_t copy[8] = {};
  std::memcpy(copy, p, 2 * n);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(copy));
}
inline vf widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline vf load(const bf16* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline vf load(const bf16* p, long n) { return widen_bf16(first_halves(p, n)); }
inline vf load(const fp16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline vf load(const fp16* p, long n) { return _mm256_cvtph_ps(first_halves(p, n)); }
inline vf load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

inline __m128i round_bf16(vf x) {
  const vi bits = _mm256_castps_si256(x);
  const vi odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const vi rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const vi quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const vi is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const vi kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}
inline __m128i round_fp16(vf x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(bf16* p, vf x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_bf16(x)); }
inline void store(fp16* p, vf x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_fp16(x)); }
template <class T>
inline void store(T* p, vf x, long n) {
  T copy[8];
  store(copy, x);
  std::memcpy(static_cast<void*>(p), copy, sizeof(T) * n);
}

inline vi load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline vi load_halves(const void* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline vi set_words(int32_t x) { return _mm256_set1_epi32(x); }
inline vi minus(vi a, vi b) { return _mm256_sub_epi32(a, b); }
inline vi both(vi a, vi b) { return _mm256_and_si256(a, b); }
inline vi either(vi a, vi b) { return _mm256_or_si256(a, b); }
inline vi right(vi a, int bits) { return _mm256_srli_epi32(a, bits); }
inline vi left(vi a, int bits) { return _mm256_slli_epi32(a, bits); }
inline vi right(vi a, vi bits) { return _mm256_srlv_epi32(a, bits); }
inline vf converted(vi x) { return _mm256_cvtepi32_ps(x); }

inline vi load_pairs(const bf16* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline vi load_pairs(const bf16* p, long n) {
  alignas(32) uint16_t copy[16] = {};
  std::memcpy(copy, p, 2 * n);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(copy));
}
inline vf even_of(vi x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
inline vf odd_of(vi x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff0000))); }

// W x W words of 32 bits turned around: word j of row i becomes word i of row j. Strides in bytes.
inline void turn_words(const void* from, long stride, void* to, long to_stride) {
  const char* const rows = static_cast<const char*>(from);
  char* const columns = static_cast<char*>(to);
  const auto row = [&](int i) { return _mm256_loadu_si256(reinterpret_cast<const vi*>(rows + i * stride)); };
  const auto put = [&](int j, vi x) { _mm256_storeu_si256(reinterpret_cast<vi*>(columns + j * to_stride), x); };
  vi pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(row(i), row(i + 1));
    pairs[i + 1] = _mm256_unpackhi_epi32(row(i), row(i + 1));
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm256_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
      fours[i + 2 * j + 1] = _mm256_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
    }
  }
  for (int j = 0; j < 4; ++j) {
    put(j, _mm256_permute2x128_si256(fours[j], fours[4 + j], 0x20));
    put(4 + j, _mm256_permute2x128_si256(fours[j], fours[4 + j], 0x31));
  }
}

inline float sum(vf x) {
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

inline vf sums(const vf x[8]) {
  vf a[4], b[2];
  for (int i = 0; i < 4; ++i) {
    a[i] = add(_mm256_permute2f128_ps(x[2 * i], x[2 * i + 1], 0x20), _mm256_permute2f128_ps(x[2 * i], x[2 * i + 1], 0x31));
  }
  for (int i = 0; i < 2; ++i) {
    b[i] = add(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44), _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
  }
  const vf d = add(_mm256_shuffle_ps(b[0], b[1], 0x88), _mm256_shuffle_ps(b[0], b[1], 0xdd));
  return _mm256_permutevar8x32_ps(d, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

using vd = __m256d;
inline vd low_half(vf x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
inline vd high_half(vf x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
inline vf narrowed(vd low, vd high) { return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low)); }
inline vd set(double x) { return _mm256_set1_pd(x); }
inline vd add(vd a, vd b) { return _mm256_add_pd(a, b); }
inline vd sub(vd a, vd b) { return _mm256_sub_pd(a, b); }
inline vd mul(vd a, vd b) { return _mm256_mul_pd(a, b); }
inline vd fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
inline void store(double* p, vd x) { _mm256_storeu_pd(p, x); }

inline float largest(vf x) {
  const __m128 a = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
inline float first_lane(vf x) { return _mm256_cvtss_f32(x); }

#else
#error "no vectors for this instruction set"
#endif

// acc + a b over the two bfloat16 of each lane
inline vf dot_pairs(vf acc, vi a, vi b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
  return fma(odd_of(a), odd_of(b), fma(even_of(a), even_of(b), acc));
#endif
}

// exp within 1 unit of the last place; 0 where the result would be below the normal numbers, as at -inf
inline vf exp(vf x) {
  const vf n = nearest(mul(x, set(1.44269504088896341f)));
  vf r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  vf p = set(1.9875691500e-4f);
  p = fma(p, r, set(1.3981999507e-3f));
  p = fma(p, r, set(8.3334519073e-3f));
  p = fma(p, r, set(4.1665795894e-2f));
  p = fma(p, r, set(1.6666665459e-1f));
  p = fma(p, r, set(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set(1.0f));
  const vf bounded = max(min(n, set(128.0f)), set(-126.0f));
  const vf y = times_power_of_two(p, bounded);
  const vf no_overflow = where_less(x, set(88.7228394f), y, set(std::numeric_limits<float>::infinity()));
  const vf result = where_less(x, set(-87.3365448f), zero(), no_overflow);
  return where_less(x, set(std::numeric_limits<float>::infinity()), result, x);  // +inf and NaN as they are
}

// 1 - 2 / (exp(2 |x|) + 1), with a series where that would cancel
inline vf tanh(vf x) {
  const vf a = max(x, sub(zero(), x)), s = mul(x, x);
  const vf tail = fma(s, fma(s, fma(s, set(62.0f / 2835), set(-17.0f / 315)), set(2.0f / 15)), set(-1.0f / 3));
  const vf series = fma(mul(x, s), tail, x);
  const vf e = exp(mul(a, set(-2.0f)));
  const vf ratio = div(sub(set(1.0f), e), add(set(1.0f), e));
  const vf whole = where_less(x, zero(), sub(zero(), ratio), ratio);
  return where_less(a, set(0.25f), series, whole);
}

}  // namespace PS_ISA

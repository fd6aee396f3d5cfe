// One number of each dtype: to float32 and back, and from a dtype's number to its type.

#pragma once

#include "kernels.h"
#include "simd.h"

namespace PS_ISA {

inline float widened(float x) { return x; }
inline float widened(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline float widened(fp16 x) { return _cvtsh_ss(x.bits); }

template <class T>
T rounded(float x);
template <>
inline float rounded<float>(float x) {
  return x;
}
template <>
inline bf16 rounded<bf16>(float x) {  // to the nearest, ties to even; a NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = x == x ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
  return {static_cast<uint16_t>(bits >> 16)};
}
template <>
inline fp16 rounded<fp16>(float x) {
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))};
}

// Call body with a number of the type that `dtype` names.
template <class Body>
inline void with_dtype(int32_t dtype, Body body) {
  switch (dtype) {
    case ps::kFloat32: return body(float{});
    case ps::kBFloat16: return body(bf16{});
    case ps::kFloat16: return body(fp16{});
  }
}

// The same for a cache, which may also hold int8 and float8 (as uint8_t).
template <class Body>
inline void with_cache_dtype(int32_t dtype, Body body) {
  switch (dtype) {
    case ps::kInt8: return body(int8_t{});
    case ps::kFloat8: return body(uint8_t{});
    default: return with_dtype(dtype, body);
  }
}

// body(i) for every whole vector of a row of n numbers, then body(i, rest) for what is left.
template <class Body>
inline void for_vectors(long n, Body body) {
  long i = 0;
  for (; i + W <= n; i += W) body(i);
  if (i < n) body(i, n - i);
}

// The sum of two vectors' lanes: first those of one place, then one place after another.
inline double sum_of_lanes(vd low, vd high) {
  double lanes[W / 2], sum = 0;
  store(lanes, add(low, high));
  for (double lane : lanes) sum += lane;
  return sum;
}

}  // namespace PS_ISA

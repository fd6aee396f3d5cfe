// Rotary positions, and keys and values into their slots of the cache.
//
//   each pair (a, b) of a head's R leading elements turns to (a cos - b sin, b cos + a sin)
//   pairs: elements i and i + R / 2, or 2 i and 2 i + 1 if interleaved
// A key is rounded to its own dtype before it is stored in the cache's. int8 and float8 are stored divided by the largest
// magnitude of the head over that of the dtype, which is the head's scale.

#include <cstring>
#include <vector>

#include "dtypes.h"
#include "kernels.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kRotaryGrain = 4;  // tokens

template <class T>
void rotated_head(const ps::RotaryArgs& a, const T* x, long t, T* y) {
  const long half = a.cos == nullptr ? 0 : a.R / 2;
  const float *cos = a.cos + t * half, *sin = a.sin + t * half;
  if (a.interleaved) {
    for (long i = 0; i < half; ++i) {
      const float even = widened(x[2 * i]), odd = widened(x[2 * i + 1]);
      y[2 * i] = rounded<T>(even * cos[i] - odd * sin[i]);
      y[2 * i + 1] = rounded<T>(odd * cos[i] + even * sin[i]);
    }
  } else {
    for_vectors(half, [&](long i, auto... n) {
      const vf first = load(x + i, n...), second = load(x + half + i, n...);
      const vf c = load(cos + i, n...), s = load(sin + i, n...);
      store(y + i, sub(mul(first, c), mul(second, s)), n...);
      store(y + half + i, add(mul(second, c), mul(first, s)), n...);
    });
  }
  if (2 * half < a.D) std::memcpy(static_cast<void*>(y + 2 * half), x + 2 * half, sizeof(T) * (a.D - 2 * half));
}

inline uint8_t float8_of(float x) {  // e4m3fn, to the nearest, ties to even; |x| is at most 448
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 24 & 0x80;
  const float magnitude = std::fabs(x);
  if (magnitude < 0x1p-6f) return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 512)));
  std::memcpy(&bits, &magnitude, 4);
  bits += 0x7ffff + (bits >> 20 & 1);
  return static_cast<uint8_t>(sign | ((bits >> 20) - (120 << 3)));
}

template <class T, class Stored>
void stored_head(const T* x, long D, Stored* y, float*) {
  for_vectors(D, [&](long d, auto... n) { store(y + d, load(x + d, n...), n...); });
}
template <class T>
float largest_magnitude(const T* x, long D) {
  float most = 0;
  for (long d = 0; d < D; ++d) most = std::max(most, std::fabs(widened(x[d])));
  return most;
}
template <class T>
void stored_head(const T* x, long D, int8_t* y, float* scale) {
  *scale = largest_magnitude(x, D) / 127.0f;
  const float by = *scale > 0 ? *scale : 1.0f;
  for (long d = 0; d < D; ++d) y[d] = static_cast<int8_t>(std::nearbyint(widened(x[d]) / by));
}
template <class T>
void stored_head(const T* x, long D, uint8_t* y, float* scale) {
  *scale = largest_magnitude(x, D) / 448.0f;
  const float by = *scale > 0 ? *scale : 1.0f;
  for (long d = 0; d < D; ++d) y[d] = float8_of(widened(x[d]) / by);
}

template <class T, class Stored>
void written_token(const ps::RotaryArgs& a, long t, T* head) {
  const long slot = a.slots[t];
  if (slot < 0 || slot >= a.num_slots) return;
  for (long h = 0; h < a.Hkv; ++h) {
    const long place = slot * a.Hkv + h;
    rotated_head<T>(a, static_cast<const T*>(a.k) + t * a.k_token + h * a.k_head, t, head);
    stored_head(head, a.D, static_cast<Stored*>(a.k_cache) + place * a.D, a.k_scales ? a.k_scales + place : nullptr);
    const T* v = static_cast<const T*>(a.v) + t * a.v_token + h * a.v_head;
    stored_head(v, a.D, static_cast<Stored*>(a.v_cache) + place * a.D, a.v_scales ? a.v_scales + place : nullptr);
  }
}

}  // namespace

void rotary(const ps::RotaryArgs& a) {
  with_dtype(a.dtype, [&](auto number) {
    using T = decltype(number);
    ps::parallel(a.T, kRotaryGrain, a.threads, [&](long begin, long end) {
      std::vector<T> head(a.D);
      for (long t = begin; t < end; ++t) {
        for (long h = 0; h < a.Hq; ++h) {
          rotated_head<T>(a, static_cast<const T*>(a.q) + t * a.q_token + h * a.q_head, t,
                          static_cast<T*>(a.q_out) + (t * a.Hq + h) * a.D);
        }
        if (a.v == nullptr) {
          for (long h = 0; h < a.Hkv; ++h) {
            rotated_head<T>(a, static_cast<const T*>(a.k) + t * a.k_token + h * a.k_head, t,
                            static_cast<T*>(a.k_out) + (t * a.Hkv + h) * a.D);
          }
        } else {
          with_cache_dtype(a.cache_dtype, [&](auto stored) { written_token<T, decltype(stored)>(a, t, head.data()); });
        }
      }
    });
  });
}

}  // namespace PS_ISA

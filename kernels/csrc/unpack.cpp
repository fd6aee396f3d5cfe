// Rows of weights in float32, as they are multiplied: words of an embedding that is packed because it is the head, too.

#include <vector>

#include "kernels.h"
#include "threads.h"
#include "weight.h"

namespace PS_ISA {
namespace {

template <class T>
void unpack_floats(const ps::Weight& w, long row, float* y) {
  const T* data = static_cast<const T*>(w.data);
  if (w.stride != 0) {
    for (long k = 0; k < w.channels; ++k) y[k] = widened(data[row * w.stride + k]);
    return;
  }
  constexpr long together = std::is_same_v<T, bf16> ? 2 : 1;
  const T* tile = data + row / kTile * kTile * Layout(w).channels + row % kTile * together;
  for (long k = 0; k < w.channels; ++k) y[k] = widened(tile[k / together * together * kTile + k % together]);
}

template <int BITS>
void unpack_integers(const ps::Weight& w, long row, float* y) {
  const Layout layout(w);
  const long lane = row % kTile;
  alignas(64) float scales[kTile], minimums[kTile] = {};
  for (long k = 0; k < w.channels; ++k) {
    const Place place(layout, row / kTile, k / w.group);
    if (k % w.group == 0) {
      for (long i = 0; i < kTile; i += W) {
        store(scales + i, scales_of(w, layout, place, place.block, i));
        if (w.has_min) store(minimums + i, minimums_of(w, layout, place, place.block, i));
      }
    }
    const int x = integer_of<BITS>(place.values + k % w.group / kChunk * kTile * BITS, k % kChunk / 2, 2 * lane + k % 2) - w.offset;
    y[k] = static_cast<float>(x) * scales[lane] + minimums[lane];
  }
}

void unpack_row(const ps::Weight& w, long row, float* y) {
  if (w.bits == 0) {
    with_dtype(w.dtype, [&](auto x) { unpack_floats<decltype(x)>(w, row, y); });
  } else {
    with_bits(w.bits, [&](auto bits) { unpack_integers<decltype(bits)::value>(w, row, y); });
  }
}

}  // namespace

void unpack(const ps::UnpackArgs& a) {
  ps::parallel(a.num_rows, 4, a.threads, [&](long begin, long end) {
    for (long i = begin; i < end; ++i) {
      const ps::Weight* w = a.weights;
      long row = a.rows[i];
      while (row >= w->rows) row -= w++->rows;
      unpack_row(*w, row, a.y + i * a.weights->channels);
    }
  });
}

}  // namespace PS_ISA

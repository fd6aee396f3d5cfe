// y = x w^T + bias, with float32 sums and one rounding at the end.
//
// Traffic  w once for every kCacheBytes of x, which stay in the second-level cache meanwhile
// Threads  each takes a run of tiles of w

#include "kernels.h"
#include "product.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kCacheBytes = 1 << 19;  // of x that are kept while w passes by
constexpr long kTilesAtATime = 8;      // whose sums are kept, until they are rounded

template <class T, class Out>
void product(const ps::MatmulArgs& a) {
  using P = Panel<T>;
  const T* bias = static_cast<const T*>(a.bias);
  std::vector<P> own;
  const Rows<P> x = prepared<P>(static_cast<const T*>(a.x), a.x_stride, a.T, a.K, own);
  const long rows_at_a_time = std::max<long>(kMostRows, kCacheBytes / static_cast<long>(sizeof(P)) / std::max<long>(a.K, 1) / kMostRows * kMostRows);
  for (long first = 0; first < a.T; first += rows_at_a_time) {
    const long M = std::min(rows_at_a_time, a.T - first);
    long column = 0;
    for (const ps::Weight* w = a.weights; w < a.weights + a.num_weights; column += w++->rows) {
      const Product<P> product(*w, {x[first], x.stride}, M);
      Out* y = static_cast<Out*>(a.y) + first * a.N + column;
      ps::parallel((w->rows + kTile - 1) / kTile, kQuad, a.threads, [&](long begin, long end) {
        static thread_local std::vector<float> sums;
        sums.resize(M * kTilesAtATime * kTile);
        for (long tile = begin; tile < end; tile += kTilesAtATime) {
          const long count = std::min(kTilesAtATime, end - tile), from = tile * kTile;
          product.tiles(tile, count, sums.data(), count * kTile);
          for (long m = 0; m < M; ++m) {
            const float* row = &sums[m * count * kTile];
            for_vectors(std::min(count * kTile, w->rows - from), [&](long i, auto... n) {
              const vf total = load(row + i, n...);
              store(y + m * a.N + from + i, bias == nullptr ? total : add(total, load(bias + column + from + i, n...)), n...);
            });
          }
        }
      });
    }
  }
}

}  // namespace

void matmul(const ps::MatmulArgs& a) {
  with_dtype(a.dtype, [&](auto in) {
    with_dtype(a.out_dtype, [&](auto out) { product<decltype(in), decltype(out)>(a); });
  });
}

}  // namespace PS_ISA

// y = x w^T + bias, with float32 sums and one rounding at the end.
//
// Traffic  w once for every kRowsAtATime rows of x, which stay in the second-level cache meanwhile
// Threads  each takes a run of rows of w

#include "dtypes.h"
#include "kernels.h"
#include "product.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kCacheBytes = 1 << 19;  // of x that are kept while w passes by
constexpr long kGrain = 16;            // rows of w

template <class T, class Out>
void product(const ps::MatmulArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* w = static_cast<const T*>(a.w);
  const T* bias = static_cast<const T*>(a.bias);
  Out* y = static_cast<Out*>(a.y);
  const long rows_at_a_time = std::max<long>(kRows, kCacheBytes / static_cast<long>(sizeof(T)) / std::max<long>(a.K, 1) / kRows * kRows);
  ps::parallel(a.N, kGrain, a.threads, [&](long begin, long end) {
    for (long t = 0; t < a.T; t += rows_at_a_time) {
      const T* x_first = x + t * a.x_stride;
      const T* w_first = w + begin * a.w_stride;
      Out* y_first = y + t * a.N + begin;
      dot_rows<T>(
          std::min(rows_at_a_time, a.T - t), end - begin, a.K, [=](long m) { return x_first + m * a.x_stride; },
          [=](long n) { return w_first + n * a.w_stride; },
          [=](long m, long n, float sum) {
            y_first[m * a.N + n] = rounded<Out>(bias == nullptr ? sum : sum + widened(bias[begin + n]));
          });
    }
  });
}

}  // namespace

void matmul(const ps::MatmulArgs& a) {
  with_dtype(a.dtype, [&](auto in) {
    with_dtype(a.out_dtype, [&](auto out) { product<decltype(in), decltype(out)>(a); });
  });
}

}  // namespace PS_ISA

// Causal attention of packed sequences or of the paged cache: decoding, chunks of prompts and training are one loop.
//
// How      Keys go in tiles of kKeyTile at absolute positions. A tile gives each row a partial (maximum m, sum l, output
//          o), and partials are folded in ascending order; one in which a row sees no key leaves its state exactly as it
//          is. A row is one query of one head: its bits depend on its own query, keys and values alone.
// Work     an item is a few queries of one sequence and the query heads of one key head: its rows share every key they
//          read.
// Caches   read as they are where they have q's dtype; else a tile's keys and values are widened to float32 first
// Source   https://arxiv.org/abs/2205.14135; folding partials: Flash-Decoding (Dao et al., 2023)
// Shapes   R rows of an item   D head size

#include <vector>

#include "dtypes.h"
#include "kernels.h"
#include "dots.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kItemRows = 32;
constexpr long kItemsPerThread = 8;  // with fewer, threads share the tiles of each
constexpr long kKeysAhead = 16;      // that are on their way from memory
constexpr float kLowest = std::numeric_limits<float>::lowest();  // for -inf, so that a difference of maxima is no NaN

struct Item {
  long sequence, kv_head;
  long first_row;  // of q
  long tokens, position;  // queries, and where the first one stands
};

struct Scratch {  // of one thread
  std::vector<float> scores, m, l, o, tile_m, tile_l, tile_o, q, k, v;
  std::vector<const void*> q_rows;
  Scratch(long rows, long D) : scores(rows * ps::kKeyTile), m(rows), l(rows), o(rows * D), tile_m(rows), tile_l(rows), tile_o(rows * D), q_rows(rows) {}
};

std::vector<Item> items_of(const ps::AttentionArgs& a) {
  const long group = a.Hq / a.Hkv, most = std::max<long>(1, kItemRows / group);
  std::vector<Item> items;
  for (long s = 0; s < a.S; ++s) {
    const long begin = a.cu_seqlens_q == nullptr ? s : a.cu_seqlens_q[s];
    const long count = a.cu_seqlens_q == nullptr ? 1 : a.cu_seqlens_q[s + 1] - begin;
    const long length = a.seq_lens == nullptr ? count : a.seq_lens[s];
    for (long done = 0; done < count && length > 0; done += most) {
      for (long h = 0; h < a.Hkv; ++h) {
        items.push_back({s, h, begin + done, std::min(most, count - done), length - count + done});
      }
    }
  }
  return items;
}

alignas(64) constexpr float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// out[r] = sum over j of p[r, j] v[j], for RB rows and NV vectors of elements; `rest` elements of the last one, 0: all
template <class T, int RB, int NV>
inline void weighted_sum(const float* p, const T* const* v, long begin, long end, long rest, float* out, long D) {
  vf acc[RB][NV];
  for (int r = 0; r < RB; ++r) {
    for (int i = 0; i < NV; ++i) acc[r][i] = zero();
  }
  for (long j = begin; j < end; ++j) {
    for (int i = 0; i < NV; ++i) {
      const vf x = i == NV - 1 && rest > 0 ? load(v[j] + i * W, rest) : load(v[j] + i * W);
      for (int r = 0; r < RB; ++r) acc[r][i] = fma(set(p[r * ps::kKeyTile + j]), x, acc[r][i]);
    }
  }
  for (int r = 0; r < RB; ++r) {
    for (int i = 0; i < NV; ++i) {
      if (i == NV - 1 && rest > 0) {
        store(out + r * D + i * W, acc[r][i], rest);
      } else {
        store(out + r * D + i * W, acc[r][i]);
      }
    }
  }
}

template <class T, int RB>
inline void weighted_sums(const float* p, const T* const* v, long begin, long end, float* out, long D) {
  const T* shifted[ps::kKeyTile];
  for (long d = 0; d < D;) {
    const long left = D - d;
    for (long j = begin; j < end; ++j) shifted[j] = v[j] + d;
    if (left >= 4 * W) {
      weighted_sum<T, RB, 4>(p, shifted, begin, end, 0, out + d, D);
      d += 4 * W;
    } else {
      weighted_sum<T, RB, 1>(p, shifted, begin, end, left < W ? left : 0, out + d, D);
      d += W;
    }
  }
}

// One tile's keys or values, [kKeyTile] rows of elements of type T.
template <class T>
struct TileRows {
  const T* rows[ps::kKeyTile];
};

// Where the tile's keys from `begin` to `end` lie, in elements from the beginning of k (or v).
inline void places_of(const ps::AttentionArgs& a, const Item& item, long start, long begin, long end, long token_stride,
                      long head_stride, long* places) {
  const long head = item.kv_head * head_stride;
  if (a.block_tables == nullptr) {
    const long first = (a.cu_seqlens_q == nullptr ? item.sequence : a.cu_seqlens_q[item.sequence]) + start;
    for (long j = begin; j < end; ++j) places[j] = (first + j) * token_stride + head;
    return;
  }
  const int32_t* blocks = a.block_tables + item.sequence * a.max_blocks;
  for (long j = begin; j < end;) {
    const long offset = (start + j) % a.block_size, first = blocks[(start + j) / a.block_size] * a.block_size + offset - j;
    for (const long next = std::min(end, j + a.block_size - offset); j < next; ++j) places[j] = (first + j) * token_stride + head;
  }
}

inline float number_of(float x) { return x; }
inline float number_of(bf16 x) { return widened(x); }
inline float number_of(fp16 x) { return widened(x); }
inline float number_of(int8_t x) { return x; }
inline float number_of(uint8_t x) {  // float8 e4m3fn
  const float sign = x & 0x80 ? -1.0f : 1.0f;
  const int exponent = x >> 3 & 15, fraction = x & 7;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9) : std::ldexp(8.0f + fraction, exponent - 10));
}

// The tile's rows as they are, or widened into `wide` where the product needs float32.
template <class T, class Stored>
void rows_of(const Stored* stored, const float* scales, long head_stride, const long* places, long begin, long end, long D,
             std::vector<float>& wide, TileRows<T>& rows) {
  if constexpr (std::is_same_v<T, Stored>) {
    for (long j = begin; j < end; ++j) rows.rows[j] = stored + places[j];
  } else {
    static_assert(std::is_same_v<T, float>);
    wide.resize(ps::kKeyTile * D);
    for (long j = begin; j < end; ++j) {
      const float scale = scales == nullptr ? 1.0f : scales[places[j] / head_stride];
      for (long d = 0; d < D; ++d) wide[j * D + d] = number_of(stored[places[j] + d]) * scale;
      rows.rows[j] = &wide[j * D];
    }
  }
}

// Scores of one row become exp(score - m); returns the row's partial maximum m and sum.
inline void softmax_partial(const ps::AttentionArgs& a, float* scores, long start, long position, float slope, float* m, float* l) {
  const vf offsets = load(kLanes), hidden = set(-std::numeric_limits<float>::infinity());
  const vf newest = set(static_cast<float>(position)), oldest = set(a.window > 0 ? static_cast<float>(position - a.window) : -1.0f);
  vf most = set(kLowest);
  for (long j = 0; j < ps::kKeyTile; j += W) {
    const vf key = add(set(static_cast<float>(start + j)), offsets);  // exact: positions are below 2^24
    vf x = mul(load(scores + j), set(a.scale));
    if (a.soft_cap > 0) x = mul(set(a.soft_cap), tanh(div(x, set(a.soft_cap))));
    if (a.alibi_slopes != nullptr) x = add(x, mul(set(slope), sub(key, newest)));
    x = where_less(newest, key, hidden, where_less(oldest, key, x, hidden));
    store(scores + j, x);
    most = max(most, x);
  }
  *m = largest(most);
  vf total = zero();
  for (long j = 0; j < ps::kKeyTile; j += W) {
    const vf p = exp(sub(load(scores + j), set(*m)));
    store(scores + j, p);
    total = add(total, p);
  }
  *l = sum(total);
}

inline float exp_of(float x) { return first_lane(exp(set(x))); }

// The one expression that folds a partial into a row's state.
inline void merge(Scratch& s, long r, long D, float tile_m, float tile_l, const float* tile_o) {
  const float m = std::max(s.m[r], tile_m);
  const float before = exp_of(s.m[r] - m), now = exp_of(tile_m - m);
  s.m[r] = m;
  s.l[r] = s.l[r] * before + tile_l * now;
  float* o = &s.o[r * D];
  for_vectors(D, [&](long d, auto... n) {
    store(o + d, fma(load(tile_o + d, n...), set(now), mul(load(o + d, n...), set(before))), n...);
  });
}

// Where one tile's partial goes: maxima and sums [rows], outputs [rows, D].
struct TilePartial {
  float *m, *l, *o;
};

// Bring a row into the first-level cache.
template <class T>
inline void prefetch_row(const T* row, long D) {
  for (long byte = 0; byte < D * static_cast<long>(sizeof(T)); byte += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(row) + byte, _MM_HINT_T0);
  }
}

// One tile's partial of an item's rows: the keys from `begin` to `end` of the tile are those that any row sees.
template <class T, class Stored>
void tile_partial(const ps::AttentionArgs& a, const Item& item, Scratch& s, long start, long begin, long end, TilePartial to) {
  const long group = a.Hq / a.Hkv, rows = item.tokens * group, D = a.D;
  long places[ps::kKeyTile];
  TileRows<T> keys, values;
  places_of(a, item, start, begin, end, a.k_token, a.k_head, places);
  rows_of(static_cast<const Stored*>(a.k), a.k_scales, a.k_head, places, begin, end, D, s.k, keys);
  if (a.v_token != a.k_token || a.v_head != a.k_head) places_of(a, item, start, begin, end, a.v_token, a.v_head, places);
  rows_of(static_cast<const Stored*>(a.v), a.v_scales, a.v_head, places, begin, end, D, s.v, values);
  std::fill_n(s.scores.begin(), rows * ps::kKeyTile, 0.0f);
  // Few rows share what is read, so they wait for memory; the first head brings in what lies beside its own, too.
  const bool waits = rows <= kRows;
  if (waits) {
    for (long j = begin; j < std::min(end, begin + kKeysAhead); ++j) prefetch_row(keys.rows[j], D);
  }
  dot_rows<T>(
      rows, end - begin, D, [&](long r) { return static_cast<const T*>(s.q_rows[r]); },
      [&](long n) {
        if (waits) {
          prefetch_row(keys.rows[std::min(begin + n + kKeysAhead, end - 1)], item.kv_head == 0 ? a.k_token : D);
          prefetch_row(values.rows[begin + n], item.kv_head == 0 ? a.v_token : D);
        }
        return keys.rows[begin + n];
      },
      [&](long r, long n, float score) { s.scores[r * ps::kKeyTile + begin + n] = score; });
  for (long r = 0; r < rows;) {
    const int count = static_cast<int>(std::min<long>(4, rows - r));
    float* p = &s.scores[r * ps::kKeyTile];
    for (int i = 0; i < count; ++i) {
      const float slope = a.alibi_slopes == nullptr ? 0.0f : a.alibi_slopes[item.kv_head * group + (r + i) % group];
      softmax_partial(a, p + i * ps::kKeyTile, start, item.position + (r + i) / group, slope, to.m + r + i, to.l + r + i);
    }
    switch (count) {
      case 4: weighted_sums<T, 4>(p, values.rows, begin, end, to.o + r * D, D); break;
      case 3: weighted_sums<T, 3>(p, values.rows, begin, end, to.o + r * D, D); break;
      case 2: weighted_sums<T, 2>(p, values.rows, begin, end, to.o + r * D, D); break;
      default: weighted_sums<T, 1>(p, values.rows, begin, end, to.o + r * D, D);
    }
    r += count;
  }
}

// The state of an item's rows before any key.
void clear(const ps::AttentionArgs& a, const Item& item, Scratch& s) {
  const long rows = item.tokens * (a.Hq / a.Hkv);
  std::fill_n(s.m.begin(), rows, kLowest);
  std::fill_n(s.l.begin(), rows, 0.0f);
  std::fill_n(s.o.begin(), rows * a.D, 0.0f);
}

void fold(const ps::AttentionArgs& a, const Item& item, Scratch& s, TilePartial tile) {
  for (long r = 0; r < item.tokens * (a.Hq / a.Hkv); ++r) merge(s, r, a.D, tile.m[r], tile.l[r], tile.o + r * a.D);
}

template <class Q>
void finish(const ps::AttentionArgs& a, const Item& item, Scratch& s) {
  const long group = a.Hq / a.Hkv, D = a.D;
  for (long r = 0; r < item.tokens * group; ++r) {
    const long place = (item.first_row + r / group) * a.Hq + item.kv_head * group + r % group;
    Q* out = static_cast<Q*>(a.out) + place * D;
    const vf total = set(s.l[r]);
    for_vectors(D, [&](long d, auto... n) { store(out + d, div(load(&s.o[r * D] + d, n...), total), n...); });
    if (a.lse != nullptr) a.lse[place] = s.m[r] + std::log(s.l[r]);
  }
}

template <class Q, class Stored>
class Attention {
 public:
  explicit Attention(const ps::AttentionArgs& args) : a(args), items_(items_of(args)) {}

  void run() const {
    const long num_items = static_cast<long>(items_.size());
    if (num_items >= kItemsPerThread * a.threads) {
      ps::parallel(num_items, 1, a.threads, [&](long begin, long end) {
        Scratch scratch = new_scratch();
        for (long i = begin; i < end; ++i) whole(items_[i], scratch);
      });
    } else {
      tile_by_tile();
    }
  }

 private:
  using T = std::conditional_t<std::is_same_v<Q, Stored>, Q, float>;  // what products are made of

  Scratch new_scratch() const { return Scratch(std::max(kItemRows, a.Hq / a.Hkv), a.D); }

  void whole(const Item& item, Scratch& s) const {
    clear(a, item, s);
    take_queries(item, s);
    for (long t = first_tile(item); t <= last_tile(item); ++t) {
      const TilePartial tile = {s.tile_m.data(), s.tile_l.data(), s.tile_o.data()};
      partial(item, t, s, tile);
      fold(a, item, s, tile);
    }
    finish<Q>(a, item, s);
  }

  // Few items: threads share the tiles of each, and partials wait until all are there.
  void tile_by_tile() const {
    struct Unit {
      long item, tile, place;
    };
    std::vector<Unit> units;
    const long group = a.Hq / a.Hkv;
    long size = 0;
    for (long i = 0; i < static_cast<long>(items_.size()); ++i) {
      for (long t = first_tile(items_[i]); t <= last_tile(items_[i]); ++t) {
        units.push_back({i, t, size});
        size += items_[i].tokens * group * (2 + a.D);
      }
    }
    static thread_local std::vector<float> memory;
    if (static_cast<long>(memory.size()) < size) memory.resize(size);
    float* const partials = memory.data();
    const auto place_of = [&](const Unit& unit) {
      float* m = partials + unit.place;
      const long rows = items_[unit.item].tokens * group;
      return TilePartial{m, m + rows, m + 2 * rows};
    };
    ps::parallel(static_cast<long>(units.size()), 1, a.threads, [&](long begin, long end) {
      Scratch scratch = new_scratch();
      for (long u = begin; u < end; ++u) {
        const Item& item = items_[units[u].item];
        if (u == begin || units[u].item != units[u - 1].item) take_queries(item, scratch);
        partial(item, units[u].tile, scratch, place_of(units[u]));
      }
    });
    Scratch scratch = new_scratch();
    for (const Unit& unit : units) {
      const Item& item = items_[unit.item];
      if (unit.tile == first_tile(item)) clear(a, item, scratch);
      fold(a, item, scratch, place_of(unit));
      if (unit.tile == last_tile(item)) finish<Q>(a, item, scratch);
    }
  }

  void take_queries(const Item& item, Scratch& s) const {
    const long group = a.Hq / a.Hkv, rows = item.tokens * group, D = a.D;
    if constexpr (!std::is_same_v<T, Q>) s.q.resize(rows * D);
    for (long r = 0; r < rows; ++r) {
      const Q* q = static_cast<const Q*>(a.q) + (item.first_row + r / group) * a.q_token + (item.kv_head * group + r % group) * a.q_head;
      s.q_rows[r] = q;
      if constexpr (!std::is_same_v<T, Q>) {
        for (long d = 0; d < D; ++d) s.q[r * D + d] = widened(q[d]);
        s.q_rows[r] = &s.q[r * D];
      }
    }
  }

  void partial(const Item& item, long tile, Scratch& s, TilePartial to) const {
    const long start = tile * ps::kKeyTile;
    tile_partial<T, Stored>(a, item, s, start, std::max(oldest(item) - start, 0L), std::min(last(item) - start + 1, ps::kKeyTile), to);
  }

  static long last(const Item& item) { return item.position + item.tokens - 1; }
  long oldest(const Item& item) const { return a.window > 0 ? std::max<long>(0, item.position - a.window + 1) : 0; }
  long first_tile(const Item& item) const { return oldest(item) / ps::kKeyTile; }
  static long last_tile(const Item& item) { return last(item) / ps::kKeyTile; }

  const ps::AttentionArgs& a;
  const std::vector<Item> items_;
};

}  // namespace

void attention(const ps::AttentionArgs& a) {
  with_dtype(a.dtype, [&](auto q) {
    with_cache_dtype(a.cache_dtype, [&](auto stored) { Attention<decltype(q), decltype(stored)>(a).run(); });
  });
}

}  // namespace PS_ISA

// What sampling and scoring need of hidden states times the vocabulary, a tile of kVocabTile ids at a time.
//
// Logits   a tile's are dot products as in `matmul`: a logit has the same bits wherever it is computed
// Edits    (logit > 0 ? logit / repetition : logit * repetition) + bias, -inf where not allowed, then / temperature
// Sums     each tile gives (maximum, sum of exponentials); tiles are folded in ascending order, whoever computed them
// Draw     tiles race with -log(-log(u0)) + log-sum-exp of the tile; inside the winner, which is computed once more for
//          that row, u1 draws by inverse CDF
// Threads  each takes a run of tiles and keeps the best of them; the best of all are chosen among those
// Traffic  the head's weights once for every kRowsAtATime rows
// Shapes   S rows   n ids of a tile   K candidates

#include <mutex>
#include <vector>

#include "dtypes.h"
#include "kernels.h"
#include "product.h"
#include "threads.h"

namespace PS_ISA {
namespace {

constexpr long kHeadRows = 128;  // rows at a time: their logits of a tile stay in the second-level cache
constexpr float kNoLogit = -std::numeric_limits<float>::infinity();

struct Partial {  // of one tile
  float m, l;
};

struct Candidate {
  float value, raw;
  int64_t id;
};

inline float comparable(float value) { return value == value ? value : kNoLogit; }

inline bool better(const Candidate& a, const Candidate& b) {
  const float x = comparable(a.value), y = comparable(b.value);
  return x > y || (x == y && a.id < b.id);
}

// The best k of what was offered, in ascending order of id: among equals the first one is kept.
class Best {
 public:
  explicit Best(long k) : k_(k) {}

  void offer(const float* values, const float* raw, long first, long n) {
    if (k_ == 0) return;
    long i = 0;
    for (; i < n && !full_; ++i) push(values[i], raw[i], first + i);
    while (i < n) {
      const long end = std::min(n, i + W);
      if (end - i == W && !(largest(load(values + i)) > bar_)) {
        i = end;
        continue;
      }
      for (; i < end; ++i) {
        if (values[i] > bar_) push(values[i], raw[i], first + i);
      }
    }
  }

  std::vector<Candidate>& kept() { return kept_; }

 private:
  void push(float value, float raw, long id) {
    kept_.push_back({value, raw, id});
    if (static_cast<long>(kept_.size()) < (full_ ? 2 * k_ : k_)) return;
    std::nth_element(kept_.begin(), kept_.begin() + (k_ - 1), kept_.end(), better);
    kept_.resize(k_);
    bar_ = comparable(kept_[k_ - 1].value);
    full_ = true;
  }

  long k_;
  bool full_ = false;
  float bar_ = kNoLogit;
  std::vector<Candidate> kept_;
};

class Head {
 public:
  explicit Head(const ps::HeadArgs& args) : a(args), tiles_((a.V + ps::kVocabTile - 1) / ps::kVocabTile) {}

  bool edits() const { return a.num_edits > 0 || a.allowed != nullptr || a.temperature != nullptr; }

  // Raw logits of rows [row, row + rows) and the ids of a tile, [rows, n].
  template <class T>
  void raw_logits(const Product<Panel<T>>& product, long rows, long first, long n, float* raw) const {
    if (n % kTile == 0) {
      product.tiles(first / kTile, n / kTile, raw, n);
    } else {
      const long padded = rounded_up(n, kTile);
      std::vector<float> whole(rows * padded);
      product.tiles(first / kTile, padded / kTile, whole.data(), padded);
      for (long r = 0; r < rows; ++r) std::memcpy(raw + r * n, &whole[r * padded], sizeof(float) * n);
    }
    if (a.soft_cap > 0) {
      for_vectors(rows * n, [&](long i, auto... rest) {
        store(raw + i, mul(set(a.soft_cap), tanh(div(load(raw + i, rest...), set(a.soft_cap)))), rest...);
      });
    }
  }

  // The edited values of raw logits [rows, n].
  void edit(long row, long rows, long first, long n, const float* raw, float* edited) const {
    std::memcpy(edited, raw, sizeof(float) * rows * n);
    const int64_t* const end = a.edit_ids + a.num_edits;
    for (const int64_t* id = std::lower_bound(a.edit_ids, end, first); id < end && *id < first + n; ++id) {
      const long e = id - a.edit_ids, r = a.edit_rows[e] - row;
      if (r < 0 || r >= rows) continue;
      float& x = edited[r * n + *id - first];
      x = (x > 0 ? x / a.edit_repetition[e] : x * a.edit_repetition[e]) + a.edit_bias[e];
    }
    for (long r = 0; r < rows; ++r) {
      float* values = edited + r * n;
      if (a.allowed != nullptr) {
        const int32_t* words = a.allowed + (row + r) * ((a.V + 31) / 32);
        for (long i = 0; i < n; ++i) {
          if (((words[(first + i) / 32] >> ((first + i) % 32)) & 1) == 0) values[i] = kNoLogit;
        }
      }
      if (a.temperature != nullptr) {
        const vf t = set(a.temperature[row + r]);
        for_vectors(n, [&](long i, auto... rest) { store(values + i, div(load(values + i, rest...), t), rest...); });
      }
    }
  }

  template <class T>
  void run() {
    for (long row = 0; row < a.S; row += kHeadRows) rows_at_a_time<T>(row, std::min(kHeadRows, a.S - row));
  }

 private:
  static Partial partial_of(const float* x, long n) {
    vf most = set(std::numeric_limits<float>::lowest());
    for_vectors(n, [&](long i, auto... rest) { most = max(padded(x + i, rest...), most); });
    const float m = largest(most);
    vf total = zero();
    for_vectors(n, [&](long i, auto... rest) { total = add(total, exp(sub(padded(x + i, rest...), set(m)))); });
    return {m, sum(total)};
  }

  static vf padded(const float* x) { return load(x); }
  static vf padded(const float* x, long n) {
    alignas(64) float whole[W];
    std::fill_n(whole, W, kNoLogit);
    std::memcpy(whole, x, sizeof(float) * n);
    return load(whole);
  }

  template <class T>
  void rows_at_a_time(long row, long rows) {
    std::vector<Partial> edited_sums(rows * tiles_), raw_sums(edits() ? rows * tiles_ : 0);
    std::vector<std::vector<Candidate>> best(rows), top(rows);
    std::mutex merging;
    std::vector<Panel<T>> own;
    const Rows<Panel<T>> hidden = prepared<Panel<T>>(static_cast<const T*>(a.hidden) + row * a.hidden_stride, a.hidden_stride, rows, a.C, own);
    const Product<Panel<T>> product(*a.weight, hidden, rows);
    ps::parallel(tiles_, 1, a.threads, [&](long begin, long end) {
      std::vector<float> raw(rows * ps::kVocabTile), changed(edits() ? rows * ps::kVocabTile : 0);
      std::vector<Best> own_best(rows, Best(a.K)), own_top(rows, Best(a.num_top));
      for (long tile = begin; tile < end; ++tile) {
        const long first = tile * ps::kVocabTile, n = std::min(ps::kVocabTile, a.V - first);
        raw_logits<T>(product, rows, first, n, raw.data());
        if (edits()) edit(row, rows, first, n, raw.data(), changed.data());
        const float* values = edits() ? changed.data() : raw.data();
        for (long r = 0; r < rows; ++r) {
          edited_sums[r * tiles_ + tile] = partial_of(values + r * n, n);
          if (edits()) raw_sums[r * tiles_ + tile] = partial_of(&raw[r * n], n);
          own_best[r].offer(values + r * n, &raw[r * n], first, n);
          own_top[r].offer(&raw[r * n], &raw[r * n], first, n);
          keep_asked(row + r, first, n, &raw[r * n], values + r * n);
        }
      }
      const std::lock_guard<std::mutex> lock(merging);
      for (long r = 0; r < rows; ++r) {
        best[r].insert(best[r].end(), own_best[r].kept().begin(), own_best[r].kept().end());
        top[r].insert(top[r].end(), own_top[r].kept().begin(), own_top[r].kept().end());
      }
    });
    ps::parallel(rows, 1, a.threads, [&](long begin, long end) {
      for (long r = begin; r < end; ++r) {
        const Partial* sums = &edited_sums[r * tiles_];
        if (a.lse != nullptr) a.lse[row + r] = log_sum_exp(sums);
        if (a.raw_lse != nullptr) a.raw_lse[row + r] = log_sum_exp(edits() ? &raw_sums[r * tiles_] : sums);
        put_best(best[r], a.K, row + r, a.ids, a.values, a.raw);
        put_best(top[r], a.num_top, row + r, a.top_ids, nullptr, a.top_raw);
        if (a.uniforms != nullptr) draw<T>(row + r, {*a.weight, {hidden[r], hidden.stride}, 1}, sums);
      }
    });
  }

  void keep_asked(long row, long first, long n, const float* raw, const float* values) const {
    if (a.targets != nullptr) {
      const int64_t target = a.targets[row];
      if (target >= first && target < first + n) a.target_raw[row] = raw[target - first];
    }
    if (a.all_raw != nullptr) std::memcpy(a.all_raw + row * a.V + first, raw, sizeof(float) * n);
    if (a.all_edited != nullptr) std::memcpy(a.all_edited + row * a.V + first, values, sizeof(float) * n);
  }

  float log_sum_exp(const Partial* tiles) const {
    float m = tiles[0].m, l = tiles[0].l;
    for (long t = 1; t < tiles_; ++t) {
      const float most = std::max(m, tiles[t].m);
      l = l * std::exp(m - most) + tiles[t].l * std::exp(tiles[t].m - most);
      m = most;
    }
    return m + std::log(l);
  }

  static void put_best(std::vector<Candidate>& candidates, long k, long row, int64_t* ids, float* values, float* raw) {
    if (k == 0 || ids == nullptr) return;
    std::partial_sort(candidates.begin(), candidates.begin() + k, candidates.end(), better);
    for (long i = 0; i < k; ++i) {
      ids[row * k + i] = candidates[i].id;
      raw[row * k + i] = candidates[i].raw;
      if (values != nullptr) values[row * k + i] = candidates[i].value;
    }
  }

  template <class T>
  void draw(long row, const Product<Panel<T>>& product, const Partial* sums) const {
    const float* u = a.uniforms + 2 * row * tiles_;
    double lead = -std::numeric_limits<double>::infinity();
    long winner = -1;
    for (long t = 0; t < tiles_; ++t) {
      const double race = sums[t].m + std::log(static_cast<double>(sums[t].l)) - std::log(-std::log(static_cast<double>(u[2 * t])));
      if (race > lead) lead = race, winner = t;
    }
    a.drawn_ids[row] = -1;
    a.drawn_raw[row] = kNoLogit;
    if (winner < 0) return;
    const long first = winner * ps::kVocabTile, n = std::min(ps::kVocabTile, a.V - first);
    std::vector<float> raw(n), edited(n);
    raw_logits<T>(product, 1, first, n, raw.data());
    if (edits()) {
      edit(row, 1, first, n, raw.data(), edited.data());
    } else {
      edited = raw;
    }
    std::vector<double> cdf(n);
    double total = 0;
    for (long i = 0; i < n; ++i) cdf[i] = total += std::exp(static_cast<double>(edited[i]) - sums[winner].m);
    const long place = std::upper_bound(cdf.begin(), cdf.end(), total * u[2 * winner + 1]) - cdf.begin();
    a.drawn_ids[row] = first + std::min(place, n - 1);
    a.drawn_raw[row] = raw[std::min(place, n - 1)];
  }

  const ps::HeadArgs& a;
  const long tiles_;
};

}  // namespace

void head(const ps::HeadArgs& a) {
  with_dtype(a.dtype, [&](auto number) { Head(a).run<decltype(number)>(); });
}

}  // namespace PS_ISA

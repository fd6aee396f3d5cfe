#include "threads.h"

#include <immintrin.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace ps {
namespace {

constexpr int kSpins = 10'000;  // a few tenths of a millisecond
constexpr long kMaxParts = 1024;

class Pool {
 public:
  void run(int parts, const std::function<void(int)>& part) {
    const std::lock_guard<std::mutex> one_loop_at_a_time(calls_);
    while (static_cast<int>(workers_.size()) < parts - 1) {
      const int number = static_cast<int>(workers_.size()) + 1;
      workers_.emplace_back([this, number, loop = loop_.load()] { work(number, loop); });
      workers_.back().detach();  // they sleep until the process ends
    }
    part_ = &part;
    left_.store(parts - 1, std::memory_order_relaxed);
    {
      const std::lock_guard<std::mutex> lock(sleep_);
      loop_.store((loop_.load(std::memory_order_relaxed) / kMaxParts + 1) * kMaxParts + parts, std::memory_order_release);
    }
    wake_.notify_all();
    part(0);
    for (int i = 0; left_.load(std::memory_order_acquire) > 0; ++i) {
      if (i < kSpins) {
        _mm_pause();
      } else {
        std::this_thread::yield();  // whoever is waited for may want this core
      }
    }
  }

 private:
  void work(int number, long loop) {
    for (;;) {
      loop = next_loop(loop);
      if (number >= loop % kMaxParts) continue;  // it has no part in this one, which does not wait for it either
      (*part_)(number);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  long next_loop(long seen) {
    for (int i = 0; i < kSpins; ++i) {
      const long now = loop_.load(std::memory_order_acquire);
      if (now != seen) return now;
      _mm_pause();
    }
    std::unique_lock<std::mutex> lock(sleep_);
    wake_.wait(lock, [&] { return loop_.load(std::memory_order_acquire) != seen; });
    return loop_.load(std::memory_order_acquire);
  }

  std::mutex calls_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<long> loop_{0};  // how many loops there were, times kMaxParts, plus the parts of the last
  std::atomic<int> left_{0};   // parts of the last loop that others still compute
  const std::function<void(int)>* part_ = nullptr;
};

}  // namespace

void parallel(long n, long grain, int threads, const std::function<void(long, long)>& body) {
  const long pieces = (n + grain - 1) / grain;
  const int parts = static_cast<int>(std::min<long>({threads, pieces, kMaxParts - 1}));
  if (parts <= 1) {
    if (n > 0) body(0, n);
    return;
  }
  static Pool& pool = *new Pool;  // never destroyed: its threads outlive main
  pool.run(parts, [&](int part) {
    const long begin = pieces * part / parts * grain, end = std::min(n, pieces * (part + 1) / parts * grain);
    if (begin < end) body(begin, end);
  });
}

}  // namespace ps

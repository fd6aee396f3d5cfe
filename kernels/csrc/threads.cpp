#include "threads.h"

#include <immintrin.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace ps {
namespace {

constexpr int kSpins = 10'000;    // a few tenths of a millisecond
constexpr int kYields = 2'000;    // a millisecond or two, more where others want the core
constexpr long kChunksPerThread = 4;

class Pool {
 public:
  // Call part() in this thread, and in others, up to `threads`, that come before it returns here.
  void run(int threads, const std::function<void()>& part) {
    const std::lock_guard<std::mutex> one_loop_at_a_time(calls_);
    while (static_cast<int>(workers_.size()) < threads - 1) {
      const int number = static_cast<int>(workers_.size()) + 1;
      workers_.emplace_back([this, number] { work(number); });
      workers_.back().detach();  // they sleep until the process ends
    }
    part_ = &part;
    threads_.store(threads, std::memory_order_relaxed);
    {
      const std::lock_guard<std::mutex> lock(sleep_);
      state_.store((state_.load(std::memory_order_relaxed) / kLoop + 1) * kLoop, std::memory_order_release);
    }
    wake_.notify_all();
    part();
    state_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (int i = 0; (state_.load(std::memory_order_acquire) & kActive) != 0; ++i) {
      if (i < kSpins) {
        _mm_pause();
      } else {
        std::this_thread::yield();  // whoever is waited for may want this core
      }
    }
  }

 private:
  // The state of the last loop: its number, whether it is closed to those who have not begun, how many others compute.
  static constexpr uint64_t kLoop = uint64_t{1} << 32, kClosed = uint64_t{1} << 31, kActive = kClosed - 1;

  void work(int number) {
    uint64_t done = 0;  // the last loop that this thread knows
    for (;;) {
      uint64_t state = next_loop(done);
      done = state / kLoop;
      // A changed state means another loop, or none: threads_ was that of this loop only if the exchange succeeds.
      while ((state & kClosed) == 0 && state / kLoop == done && number < threads_.load(std::memory_order_relaxed)) {
        if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
          (*part_)();
          state_.fetch_sub(1, std::memory_order_release);
          break;
        }
      }
    }
  }

  uint64_t next_loop(uint64_t done) {
    for (int i = 0; i < kSpins; ++i) {
      const uint64_t state = state_.load(std::memory_order_acquire);
      if (state / kLoop != done) return state;
      _mm_pause();
    }
    for (int i = 0; i < kYields; ++i) {  // Python is between two steps: waking up takes longer than most loops
      const uint64_t state = state_.load(std::memory_order_acquire);
      if (state / kLoop != done) return state;
      std::this_thread::yield();
    }
    std::unique_lock<std::mutex> lock(sleep_);
    wake_.wait(lock, [&] { return state_.load(std::memory_order_acquire) / kLoop != done; });
    return state_.load(std::memory_order_acquire);
  }

  std::mutex calls_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> state_{kClosed};
  std::atomic<int> threads_{0};
  const std::function<void()>* part_ = nullptr;
};

}  // namespace

void parallel(long n, long grain, int threads, const std::function<void(long, long)>& body) {
  const long pieces = (n + grain - 1) / grain;
  threads = static_cast<int>(std::min<long>(threads, pieces));
  if (threads <= 1) {
    if (n > 0) body(0, n);
    return;
  }
  const long chunks = std::min(pieces, threads * kChunksPerThread);
  std::atomic<long> next{0};
  static Pool& pool = *new Pool;  // never destroyed: its threads outlive main
  pool.run(threads, [&] {
    for (long chunk = next++; chunk < chunks; chunk = next++) {
      body(pieces * chunk / chunks * grain, std::min(n, pieces * (chunk + 1) / chunks * grain));
    }
  });
}

}  // namespace ps

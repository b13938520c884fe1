// A pool of threads that share the chunks of one job after the other.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <unistd.h>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

inline void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A job is `total` chunks. Threads take them one by one from a counter, so that a thread that the system holds up
// delays only the chunk that it has. The counter, the total and the number of the job share one word: a thread that
// comes late can take no chunk of a job that it has not seen.
class Pool {
 public:
  using Chunk = void (*)(void*, int64_t);

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  // Threads of the pool that help from now on; starts those that are missing.
  void begin(int helpers) {
    try {
      while ((int)threads_.size() < helpers) threads_.emplace_back([this, id = (int)threads_.size()] { work(id); });
    } catch (const std::exception&) {  // no memory or no permission for more: the others do their work
      helpers = (int)threads_.size();
    }
    if (helpers_.load(std::memory_order_relaxed) == helpers) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_.store(helpers);
    }
    wake_.notify_all();
  }

  void run(int64_t total, Chunk chunk, void* context) {
    if (total <= 0) return;
    if (helpers_.load(std::memory_order_relaxed) == 0 || total == 1 || total > LIMIT) {
      for (int64_t i = 0; i < total; i++) chunk(context, i);
      return;
    }
    chunk_ = chunk, context_ = context;
    done_.store(0, std::memory_order_relaxed);
    job_ = (job_ + 1) & 0xffffff;
    // A thread counts itself asleep before it looks at the word for the last time, so that one of both sees the other.
    word_.store((uint64_t)job_ << 40 | (uint64_t)total << 20);
    if (asleep_.load()) notify(wake_);
    take();
    auto finished = [&] { return done_.load() >= total; };
    if (spin_until(finished)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    waiting_.store(true);
    finished_.wait(lock, finished);
    waiting_.store(false);
  }

 private:
  static constexpr int64_t LIMIT = (1 << 20) - 1;

  // A thread that waits keeps its core for about as long as it takes to sleep and to wake up, and no longer: where
  // other programs run, too, the thread that it waits for may need the core.
  template <typename Condition>
  static bool spin_until(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(30);
    do {
      for (int i = 0; i < 32; i++) {
        if (condition()) return true;
        spin_pause();
      }
    } while (std::chrono::steady_clock::now() < end);
    return false;
  }

  void notify(std::condition_variable& condition) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
    condition.notify_all();
  }

  bool has_work(int id) const {
    const uint64_t word = word_.load();
    return id < helpers_.load(std::memory_order_relaxed) && (word & LIMIT) < (word >> 20 & LIMIT);
  }

  void take() {
    for (;;) {
      uint64_t word = word_.load(std::memory_order_acquire);
      uint64_t next = word & LIMIT, total = word >> 20 & LIMIT;
      if (next >= total) return;
      if (!word_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
      chunk_(context_, next);
      if (done_.fetch_add(1) + 1 == (int64_t)total && waiting_.load()) notify(finished_);
    }
  }

  void work(int id) {
    for (;;) {
      if (!spin_until([&] { return has_work(id); })) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (!stop_) {
          const bool counts = id < helpers_.load();
          asleep_ += counts;
          if (!has_work(id)) wake_.wait(lock);
          asleep_ -= counts;
          if (has_work(id)) break;
        }
        if (stop_) return;
      }
      take();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  std::atomic<int> helpers_{0}, asleep_{0};
  std::atomic<bool> waiting_{false};
  bool stop_ = false;
  std::atomic<uint64_t> word_{0};
  std::atomic<int64_t> done_{0};
  uint32_t job_ = 0;
  Chunk chunk_ = nullptr;
  void* context_ = nullptr;
};

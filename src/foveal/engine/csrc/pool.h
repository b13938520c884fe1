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
    {
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_.store(helpers);
      active_.store(true);
    }
    wake_.notify_all();
  }

  void end() { active_.store(false); }

  void run(int64_t total, Chunk chunk, void* context) {
    if (total <= 0) return;
    if (helpers_.load(std::memory_order_relaxed) == 0 || total == 1 || total > LIMIT) {
      for (int64_t i = 0; i < total; i++) chunk(context, i);
      return;
    }
    chunk_ = chunk, context_ = context;
    done_.store(0, std::memory_order_relaxed);
    job_ = (job_ + 1) & 0xffffff;
    word_.store((uint64_t)job_ << 40 | (uint64_t)total << 20, std::memory_order_release);
    take();
    for (int spins = 0; done_.load(std::memory_order_acquire) < total; spins++)
      spins < 2000 ? spin_pause() : std::this_thread::yield();
  }

 private:
  static constexpr int64_t LIMIT = (1 << 20) - 1;

  bool take() {
    bool any = false;
    for (;;) {
      uint64_t word = word_.load(std::memory_order_acquire);
      uint64_t next = word & LIMIT, total = word >> 20 & LIMIT;
      if (next >= total) return any;
      if (!word_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
      chunk_(context_, next);
      done_.fetch_add(1, std::memory_order_acq_rel);
      any = true;
    }
  }

  void work(int id) {
    for (;;) {
      auto idle = std::chrono::steady_clock::now();
      for (int spins = 0; active_.load(std::memory_order_relaxed) && id < helpers_.load(std::memory_order_relaxed);
           spins++) {
        if (take()) {
          spins = 0;
          idle = std::chrono::steady_clock::now();
        } else {
          spins < 4000 ? spin_pause() : std::this_thread::yield();
          if (spins > 4000 && std::chrono::steady_clock::now() - idle > std::chrono::milliseconds(20)) break;
        }
      }
      std::unique_lock<std::mutex> lock(mutex_);
      if (stop_) return;
      if (active_.load() && id < helpers_.load())
        wake_.wait_for(lock, std::chrono::milliseconds(1));  // one thread alone is at work
      else
        wake_.wait(lock);
      if (stop_) return;
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> helpers_{0};
  std::atomic<bool> active_{false};
  bool stop_ = false;
  std::atomic<uint64_t> word_{0};
  std::atomic<int64_t> done_{0};
  uint32_t job_ = 0;
  Chunk chunk_ = nullptr;
  void* context_ = nullptr;
};

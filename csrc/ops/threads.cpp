#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#endif

#include "denormals.h"

namespace dynloader {
namespace {

using Nanoseconds = int64_t;

// About how long a sleeping thread takes to start working. One thread does any work below this.
constexpr Nanoseconds kAlone = 20'000;
// How long it takes the caller to wake a sleeping thread.
constexpr Nanoseconds kCall = 4'000;
// The time for which a thread takes tiles at once. Others may have to wait for the last of them.
constexpr Nanoseconds kClaim = 10'000;
// How long a helper without a tile spins before it sleeps, because operations have several loops,
// and how long a caller spins while it waits for helpers.
constexpr Nanoseconds kLook = 50'000;
// The kernel preempts a thread after 3 ms or more if other threads want the processor. A helper
// yields before that, between two tiles, when the caller is not waiting for it.
constexpr Nanoseconds kTurn = 2'000'000;

constexpr uint64_t kTileMask = 0xffffffffu;  // greater than any tile

std::atomic<bool> is_eager = false;
// Set while this thread runs a task: a nested loop must not wait for threads that wait for it.
thread_local bool is_at_work = false;

Nanoseconds now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

int64_t processors() {
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) return CPU_COUNT(&mask);
#endif
  return std::thread::hardware_concurrency();
}

struct AtWork {
  AtWork() { is_at_work = true; }
  ~AtWork() { is_at_work = false; }
};

// Returns how many tiles take `time`, given that `tiles` took `spent`; in [1, most].
int64_t claim(Nanoseconds time, int64_t tiles, Nanoseconds spent, int64_t most) {
  return std::clamp<int64_t>(time * tiles / std::max<Nanoseconds>(spent, 1), 1, most);
}

struct Job {
  TileTask task;
  void* context;
  int64_t first, tiles, claim, helpers;
};

// The threads of a process, which work on one job at a time.
//
// Each job has a number. `place_` holds the number and the next tile, and a thread takes tiles by a
// compare-exchange of both. So a thread that is late takes nothing once the job and its memory are
// gone, and does not use what it has read of the next job.
class Threads {
 public:
  // Returns those of this process. Never destroyed: at exit, the threads sleep until the end.
  static Threads& here() {
    Threads* found = of_process.load(std::memory_order_acquire);
    if (found != nullptr) return *found;
    auto* made = new Threads;
    if (of_process.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
    delete made;
    return *found;
  }

  // For a forked process, which has none of the threads and does not know their state.
  static void forget() { of_process.store(nullptr, std::memory_order_release); }

  // Returns false, without running the job, if another caller is using the threads.
  bool run(const Job& job) {
    if (is_taken_.exchange(true, std::memory_order_acquire)) return false;
    const int64_t helpers = start(job.helpers);
    const uint64_t begin = post(job);
    for (int64_t j = 0; j < helpers; ++j) helpers_[static_cast<size_t>(j)]->call();
    if (is_eager.load(std::memory_order_relaxed)) await_a_helper(begin);
    const int64_t mine = work(0, begin);
    wait_for(job.tiles - job.first - mine);
    std::exception_ptr error;
    if (has_failed_) std::swap(error, error_);
    is_taken_.store(false, std::memory_order_release);
    if (error) std::rethrow_exception(error);
    return true;
  }

 private:
  struct Helper {
    std::atomic<uint32_t> calls = 0;

    void call() {
      calls.fetch_add(1, std::memory_order_release);
      calls.notify_one();
    }
  };

  // Starts missing helpers, and returns min(wanted, number of helpers): the system may refuse more.
  int64_t start(int64_t wanted) {
    try {
      while (static_cast<int64_t>(helpers_.size()) < wanted) {
        helpers_.reserve(helpers_.size() + 1);
        auto made = std::make_unique<Helper>();
        const auto slot = static_cast<int64_t>(helpers_.size()) + 1;
        std::thread thread([this, slot, helper = made.get()] { help(slot, *helper); });
#if defined(__linux__)
        pthread_setname_np(thread.native_handle(), "dynloader_ops");
#endif
        thread.detach();
        helpers_.push_back(std::move(made));
      }
    } catch (const std::exception&) {
      return static_cast<int64_t>(helpers_.size());
    }
    return wanted;
  }

  // Publishes the job, and returns the place of its first tile.
  uint64_t post(const Job& job) {
    const uint64_t number = (place_.load(std::memory_order_relaxed) & ~kTileMask) + kTileMask + 1;
    // From here on, no thread can take a tile of the previous job, nor yet one of this job.
    place_.store(number | kTileMask, std::memory_order_release);
    task_.store(job.task, std::memory_order_release);
    context_.store(job.context, std::memory_order_release);
    tiles_.store(job.tiles, std::memory_order_release);
    claim_.store(job.claim, std::memory_order_release);
    threads_.store(job.helpers + 1, std::memory_order_release);
    done_.store(0, std::memory_order_relaxed);
    has_failed_.store(false, std::memory_order_relaxed);
    const uint64_t begin = number | static_cast<uint64_t>(job.first);
    place_.store(begin, std::memory_order_release);
    return begin;
  }

  // Processes tiles as the thread with this slot until none are left. Returns how many it took.
  int64_t work(int64_t slot, uint64_t place) {
    const AtWork mark;
    int64_t mine = 0;
    Nanoseconds turn = slot == 0 ? 0 : now();
    for (;;) {
      if (mine < 2 && is_eager.load(std::memory_order_relaxed)) std::this_thread::yield();
      const auto first = static_cast<int64_t>(place & kTileMask);
      const TileTask task = task_.load(std::memory_order_acquire);
      void* context = context_.load(std::memory_order_acquire);
      const int64_t tiles = tiles_.load(std::memory_order_acquire);
      const int64_t threads = threads_.load(std::memory_order_acquire);
      const int64_t claim = claim_.load(std::memory_order_acquire);
      if (first >= tiles || slot >= threads) return mine;
      // Takes fewer tiles near the end, so that all threads finish together.
      const int64_t share = (tiles - first + threads - 1) / threads;
      const int64_t last = first + std::min(claim, share);
      const uint64_t following = (place & ~kTileMask) | static_cast<uint64_t>(last);
      if (!place_.compare_exchange_strong(place, following, std::memory_order_acq_rel,
                                          std::memory_order_acquire)) {
        continue;
      }
      try {
        task(context, slot, first, last);
      } catch (...) {
        if (!has_failed_.exchange(true)) error_ = std::current_exception();
      }
      mine += last - first;
      if (slot != 0) {
        done_.fetch_add(static_cast<uint32_t>(last - first), std::memory_order_release);
        done_.notify_one();
        if (now() - turn > kTurn) {
          std::this_thread::yield();
          turn = now();
        }
      }
      place = place_.load(std::memory_order_acquire);
    }
  }

  // For tests: without it, the caller would often finish before another thread wakes up.
  void await_a_helper(uint64_t begin) {
    const Nanoseconds until = now() + 1'000'000;
    while (place_.load(std::memory_order_relaxed) == begin && now() < until) {
      std::this_thread::yield();
    }
  }

  // Waits until the helpers have finished this many tiles.
  void wait_for(int64_t tiles) {
    const auto wanted = static_cast<uint32_t>(tiles);
    uint32_t done = done_.load(std::memory_order_acquire);
    if (done == wanted) return;
    for (const Nanoseconds until = now() + kLook; done != wanted && now() < until;) {
      relax();
      done = done_.load(std::memory_order_acquire);
    }
    for (; done != wanted; done = done_.load(std::memory_order_acquire)) {
      done_.wait(done, std::memory_order_acquire);
    }
  }

  [[noreturn]] void help(int64_t slot, Helper& helper) {
    const KeepDenormals keep;
    uint64_t seen = 0;  // the number of the last job
    for (uint32_t calls = 0;;) {
      helper.calls.wait(calls, std::memory_order_acquire);
      for (Nanoseconds until = now() + kLook; now() < until; relax()) {
        // Reads `calls` first: a later call is for a job that this iteration may miss.
        calls = helper.calls.load(std::memory_order_acquire);
        const uint64_t place = place_.load(std::memory_order_acquire);
        const uint64_t number = place & ~kTileMask;
        if (number == seen || (place & kTileMask) == kTileMask) continue;
        seen = number;
        // Only after work, so that jobs with fewer threads do not keep the other helpers awake.
        if (work(slot, place) > 0) until = now() + kLook;
      }
    }
  }

  static inline std::atomic<Threads*> of_process = nullptr;

  std::atomic<bool> is_taken_ = false;
  std::vector<std::unique_ptr<Helper>> helpers_;  // accessed by the caller that set is_taken_
  std::exception_ptr error_;                      // written by the thread that set has_failed_

  std::atomic<TileTask> task_ = nullptr;
  std::atomic<void*> context_ = nullptr;
  std::atomic<int64_t> tiles_ = 0, claim_ = 1, threads_ = 0;
  std::atomic<bool> has_failed_ = false;
  alignas(64) std::atomic<uint64_t> place_ = kTileMask;
  alignas(64) std::atomic<uint32_t> done_ = 0;  // tiles that helpers have finished
};

#if defined(__unix__) || defined(__APPLE__)
// Registers when the library is loaded. Later, another thread could fork during the registration.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, Threads::forget);
#endif

}  // namespace

void share_eagerly(bool eagerly) { is_eager = eagerly; }

void share_out(int64_t threads, int64_t tiles, TileTask task, void* context) {
  if (threads <= 1 || tiles <= 1 || is_at_work || static_cast<uint64_t>(tiles) >= kTileMask) {
    if (tiles > 0) task(context, 0, 0, tiles);
    return;
  }
  const bool eagerly = is_eager;
  const Nanoseconds begin = now();
  Job job = {task, context, 0, tiles, 1, 0};
  for (;;) {
    const int64_t last = std::min(job.first + job.claim, tiles);
    task(context, 0, job.first, last);
    job.first = last;
    const int64_t left = tiles - job.first;
    if (left == 0) return;
    const Nanoseconds spent = now() - begin;
    const Nanoseconds to_come = spent * left / job.first;
    job.claim = claim(kClaim, job.first, spent, 2 * job.claim);
    if (eagerly) {
      job.claim = 1;
      job.helpers = std::min(threads - 1, left);
      break;
    }
    if (spent < kAlone || to_come < kAlone) continue;
    job.helpers = std::min({threads, processors(), left}) - 1;
    while (job.helpers > 1 && job.helpers * job.helpers * kCall > to_come) --job.helpers;
    // With more threads, each waits longer for the counter.
    job.claim = claim(kClaim * (1 + job.helpers / 8), job.first, spent, tiles);
    break;
  }
  if (job.helpers > 0 && Threads::here().run(job)) return;
  task(context, 0, job.first, tiles);
}

}  // namespace dynloader

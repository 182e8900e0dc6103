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

// A thread that sleeps takes about so long until it works. Less is done by one thread.
constexpr Nanoseconds kAlone = 20'000;
// To call a thread that sleeps takes the caller so long.
constexpr Nanoseconds kCall = 4'000;
// A thread takes tiles for so long at a time: the others may have to wait for the last of them.
constexpr Nanoseconds kClaim = 10'000;
// A helper that finds no tile looks so long for another loop, since operations have several. A
// caller looks so long for the end of what helpers are at. Then they sleep.
constexpr Nanoseconds kLook = 50'000;
// Where others want the processor, the kernel takes it from a thread after 3 ms or more. A helper
// offers it before, between two tiles, when nobody waits for it.
constexpr Nanoseconds kTurn = 2'000'000;

constexpr uint64_t kTileMask = 0xffffffffu;  // a job's last tile is below it

std::atomic<bool> is_eager = false;
// A task that shares out work of its own must not wait for threads that wait for it.
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

// How many tiles to take for a time, if `tiles` took `spent`; from 1 to `most`.
int64_t claim(Nanoseconds time, int64_t tiles, Nanoseconds spent, int64_t most) {
  return std::clamp<int64_t>(time * tiles / std::max<Nanoseconds>(spent, 1), 1, most);
}

struct Job {
  TileTask task;
  void* context;
  int64_t first, tiles, claim, helpers;
};

// The threads of a process, and the one job that they can have.
//
// A job is known by its number. `place_` holds the number and the next tile, and every tile is
// taken by a compare-exchange of both. So a thread that comes late, when the job is gone and its
// memory with it, takes nothing. What it has read of the next job meanwhile it does not use.
class Threads {
 public:
  // Of this process. Never destroyed: at exit the threads sleep, and end with the process.
  static Threads& here() {
    Threads* found = of_process.load(std::memory_order_acquire);
    if (found != nullptr) return *found;
    auto* made = new Threads;
    if (of_process.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
    delete made;
    return *found;
  }

  // A forked process has none of the threads, and does not know what they were at.
  static void forget() { of_process.store(nullptr, std::memory_order_release); }

  // False if another caller has the threads.
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

  // Returns how many there are, at most as many as wanted: a system may refuse more.
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

  // Returns the place of its first tile.
  uint64_t post(const Job& job) {
    const uint64_t number = (place_.load(std::memory_order_relaxed) & ~kTileMask) + kTileMask + 1;
    // From here on nobody takes a tile of the job before, and nobody one of this job yet.
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

  // Takes tiles while there are any, as the thread of a slot. Returns how many.
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
      // Towards the end less, so that all end together.
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

  // For tests. Else the caller would often have done everything before another thread wakes up.
  void await_a_helper(uint64_t begin) {
    const Nanoseconds until = now() + 1'000'000;
    while (place_.load(std::memory_order_relaxed) == begin && now() < until) {
      std::this_thread::yield();
    }
  }

  // Until the helpers have ended so many tiles.
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
        // First the calls: a call that comes after them is for a job that this look may miss.
        calls = helper.calls.load(std::memory_order_acquire);
        const uint64_t place = place_.load(std::memory_order_acquire);
        const uint64_t number = place & ~kTileMask;
        if (number == seen || (place & kTileMask) == kTileMask) continue;
        seen = number;
        // Only for those that have work: jobs of fewer threads must not keep the others awake.
        if (work(slot, place) > 0) until = now() + kLook;
      }
    }
  }

  static inline std::atomic<Threads*> of_process = nullptr;

  std::atomic<bool> is_taken_ = false;
  std::vector<std::unique_ptr<Helper>> helpers_;  // of whoever has taken the threads
  std::exception_ptr error_;                      // of whoever has set has_failed_

  std::atomic<TileTask> task_ = nullptr;
  std::atomic<void*> context_ = nullptr;
  std::atomic<int64_t> tiles_ = 0, claim_ = 1, threads_ = 0;
  std::atomic<bool> has_failed_ = false;
  alignas(64) std::atomic<uint64_t> place_ = kTileMask;
  alignas(64) std::atomic<uint32_t> done_ = 0;  // tiles that helpers have ended
};

#if defined(__unix__) || defined(__APPLE__)
// When the library is loaded. Later, another thread could fork in the middle of it.
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
    // The more threads, the longer they have to wait for the counter.
    job.claim = claim(kClaim * (1 + job.helpers / 8), job.first, spent, tiles);
    break;
  }
  if (job.helpers > 0 && Threads::here().run(job)) return;
  task(context, 0, job.first, tiles);
}

}  // namespace dynloader

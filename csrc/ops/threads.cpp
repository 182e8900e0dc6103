#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "denormals.h"
#include "helper.h"
#include "pace.h"
#include "processors.h"

namespace dynloader {
namespace {

// About how long a sleeping thread takes to start working. One thread does any work below this.
constexpr Nanoseconds kAlone = 20'000;
// How long it takes the caller to wake a sleeping thread.
constexpr Nanoseconds kCall = 4'000;
// The time for which a thread takes tiles at once. Others may have to wait for the last of them.
constexpr Nanoseconds kClaim = 10'000;
// How long a helper without a tile spins before it sleeps, and how long a caller spins while it
// waits for helpers.
constexpr Nanoseconds kLook = 50'000;
// How often a caller that sleeps looks whether the helpers with a tile have a processor.
constexpr Nanoseconds kCheck = 200'000;
// How long a helper spins between two loops of an operation.
constexpr Nanoseconds kPause = 1'000'000;
// The kernel preempts a thread after 3 ms or more if other threads want the processor. A helper
// yields before that, between two tiles, when the caller is not waiting for it.
constexpr Nanoseconds kTurn = 2'000'000;

constexpr uint64_t kTileMask = 0xffffffffu;  // greater than any tile

std::atomic<bool> is_eager = false;
// Set while this thread runs a task: a nested loop must not wait for threads that wait for it.
thread_local bool is_at_work = false;

struct AtWork {
  AtWork() { is_at_work = true; }
  ~AtWork() { is_at_work = false; }
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

  // Lets helpers that find no work sleep.
  static void release() {
    Threads* found = of_process.load(std::memory_order_acquire);
    if (found != nullptr) found->is_in_use_.store(false, std::memory_order_relaxed);
  }

  // For a forked process, which has none of the threads and does not know their state.
  static void forget() { of_process.store(nullptr, std::memory_order_release); }

  // Returns false, without running the job, if another caller is using the threads.
  bool run(int64_t threads, int64_t tiles, TileTask task, void* context) {
    if (is_taken_.exchange(true, std::memory_order_acquire)) return false;
    is_in_use_.store(true, std::memory_order_relaxed);
    const uint64_t begin = post(threads, tiles, task, context);
    is_called_ = is_eager.load(std::memory_order_relaxed);
    if (is_called_) {
      call(std::min(threads, tiles) - 1);
      await_a_helper(begin);
    }
    wait_for(tiles - work(0, begin));
    std::exception_ptr error;
    if (has_failed_) std::swap(error, error_);
    is_taken_.store(false, std::memory_order_release);
    if (error) std::rethrow_exception(error);
    return true;
  }

 private:
  // Makes sure that this many helpers look for work.
  void call(int64_t wanted) {
    const int64_t helpers = start(wanted);
    const int here = current_processor();
    for (int64_t j = 0; j < helpers; ++j) {
      helpers_[static_cast<size_t>(j)]->call(here);
    }
  }

  // Wakes helpers once, if what is left takes the caller longer than waking them.
  void call_for(int64_t tiles, int64_t threads, const Pace& pace) {
    if (is_called_) return;
    const Nanoseconds to_come = pace.time_for(tiles);
    if (to_come < kAlone || pace.spent + to_come < 3 * kAlone) return;
    is_called_ = true;
    int64_t helpers = std::min({threads, processors(), tiles}) - 1;
    while (helpers > 1 && helpers * helpers * kCall > to_come) --helpers;
    call(helpers);
  }

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
  uint64_t post(int64_t threads, int64_t tiles, TileTask task, void* context) {
    const uint64_t number = (place_.load(std::memory_order_relaxed) & ~kTileMask) + kTileMask + 1;
    // From here on, no thread can take a tile of the previous job, nor yet one of this job.
    place_.store(number | kTileMask, std::memory_order_release);
    task_.store(task, std::memory_order_release);
    context_.store(context, std::memory_order_release);
    tiles_.store(tiles, std::memory_order_release);
    threads_.store(threads, std::memory_order_release);
    done_.store(0, std::memory_order_relaxed);
    has_failed_.store(false, std::memory_order_relaxed);
    place_.store(number, std::memory_order_release);
    return number;
  }

  // Processes tiles as the thread with this slot until none are left. Returns how many it took.
  int64_t work(int64_t slot, uint64_t place) {
    const AtWork mark;
    Pace pace;
    Nanoseconds turn = pace.begin;
    for (;;) {
      const bool eagerly = is_eager.load(std::memory_order_relaxed);
      if (eagerly && pace.tiles < 2) std::this_thread::yield();
      const auto first = static_cast<int64_t>(place & kTileMask);
      const TileTask task = task_.load(std::memory_order_acquire);
      void* context = context_.load(std::memory_order_acquire);
      const int64_t tiles = tiles_.load(std::memory_order_acquire);
      const int64_t threads = threads_.load(std::memory_order_acquire);
      if (first >= tiles || slot >= threads) return pace.tiles;
      // With more threads, each waits longer for the counter.
      const int64_t claim = eagerly ? 1 : pace.claim(kClaim * (1 + (threads - 1) / 8));
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
      pace.add(last - first);
      if (slot == 0) {
        call_for(tiles - last, threads, pace);
      } else {
        done_.fetch_add(static_cast<uint32_t>(last - first));
        if (is_waiting_.load()) wake(done_);
        if (pace.begin + pace.spent - turn > kTurn) {
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
    if (spin_until(wanted)) return;
    move_waiting_helpers();  // notes what time they have used
    if (spin_until(wanted)) return;
    is_waiting_.store(true);
    for (uint32_t done = done_.load(); done != wanted; done = done_.load()) {
      move_waiting_helpers();
      sleep_while(done_, done, kCheck);
    }
    is_waiting_.store(false);
  }

  // Returns whether the helpers finish this many tiles while the caller spins.
  bool spin_until(uint32_t wanted) {
    for (const Nanoseconds until = now() + kLook / 2;; relax()) {
      if (done_.load(std::memory_order_acquire) == wanted) return true;
      if (now() >= until) return false;
    }
  }

  void move_waiting_helpers() {
    for (const auto& helper : helpers_) helper->move_if_waiting();
  }

  [[noreturn]] void help(int64_t slot, Helper& helper) {
    const KeepDenormals keep;
    take_short_turns();
    helper.thread = kernel_thread();
    uint64_t seen = 0;  // the number of the last job
    for (;;) {
      const uint32_t calls = helper.calls.load(std::memory_order_acquire);
      // Without work, spins only while the operation goes on: a helper that wakes too late would
      // use up its time, and wake even later for the next operation.
      Nanoseconds last = now() - kLook;
      for (;; relax()) {
        if (helper.is_moved.load(std::memory_order_relaxed)) break;
        const Nanoseconds idle = now() - last;
        if (idle > kLook && (idle > kPause || !is_in_use_.load(std::memory_order_relaxed))) break;
        const uint64_t place = place_.load(std::memory_order_acquire);
        const uint64_t number = place & ~kTileMask;
        if (number == seen || (place & kTileMask) == kTileMask) continue;
        seen = number;
        // Only after work, so that jobs with fewer threads do not keep the other helpers awake.
        helper.may_have_tile.store(true, std::memory_order_relaxed);
        if (work(slot, place) > 0) last = now();
        helper.may_have_tile.store(false, std::memory_order_relaxed);
      }
      helper.is_asleep.store(true, std::memory_order_relaxed);
      sleep_while(helper.calls, calls);
    }
  }

  static inline std::atomic<Threads*> of_process = nullptr;

  std::atomic<bool> is_taken_ = false;
  std::vector<std::unique_ptr<Helper>> helpers_;  // accessed by the caller that set is_taken_
  std::exception_ptr error_;                      // written by the thread that set has_failed_

  std::atomic<TileTask> task_ = nullptr;
  std::atomic<void*> context_ = nullptr;
  std::atomic<int64_t> tiles_ = 0, threads_ = 0;
  std::atomic<bool> is_in_use_ = false;  // by an operation, which may have more loops
  bool is_called_ = false;               // of the caller
  std::atomic<bool> has_failed_ = false;
  alignas(64) std::atomic<uint64_t> place_ = kTileMask;
  alignas(64) std::atomic<uint32_t> done_ = 0;  // tiles that helpers have finished
  std::atomic<bool> is_waiting_ = false;        // the caller, for done_
};

#if defined(__unix__) || defined(__APPLE__)
// Registers when the library is loaded. Later, another thread could fork during the registration.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, Threads::forget);
#endif

}  // namespace

Sharing::~Sharing() { Threads::release(); }

void share_eagerly(bool eagerly) { is_eager = eagerly; }

void share_out(int64_t threads, int64_t tiles, TileTask task, void* context) {
  if (threads <= 1 || tiles <= 1 || is_at_work || static_cast<uint64_t>(tiles) >= kTileMask) {
    if (tiles > 0) task(context, 0, 0, tiles);
    return;
  }
  if (!Threads::here().run(threads, tiles, task, context)) task(context, 0, 0, tiles);
}

}  // namespace dynloader

// What threads ask of the processors and of the kernel's scheduler. All of it affects speed only.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dynloader {

using Nanoseconds = int64_t;

inline Nanoseconds now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Call in a loop that spins.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Sleeps unless the word has another value, until a call of wake(); on Linux at most for `limit`,
// unless that is 0. May return for no reason. Unlike std::atomic::wait, does not yield first: a
// thread that yields to one that spins comes back only after a time slice, and cannot be woken
// before.
inline void sleep_while(const std::atomic<uint32_t>& word, uint32_t value,
                        [[maybe_unused]] Nanoseconds limit = 0) {
#if defined(__linux__)
  static_assert(sizeof(word) == sizeof(value), "the kernel compares 32 bits");
  timespec time = {};
  time.tv_sec = static_cast<time_t>(limit / 1'000'000'000);
  time.tv_nsec = static_cast<long>(limit % 1'000'000'000);
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, limit > 0 ? &time : nullptr, nullptr, 0);
#else
  word.wait(value);
#endif
}

// Wakes a thread that sleeps in sleep_while().
inline void wake(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
#else
  word.notify_one();
#endif
}

// Returns the number of processors that the current thread may use.
inline int64_t processors() {
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) return CPU_COUNT(&mask);
#endif
  return std::thread::hardware_concurrency();
}

// Returns the kernel's number of the current thread, or 0 if there is none.
inline int32_t kernel_thread() {
#if defined(__linux__)
  return static_cast<int32_t>(syscall(SYS_gettid));
#else
  return 0;
#endif
}

// Returns the processor that the current thread runs on, or -1 if it is unknown.
inline int current_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

#if defined(__linux__)
// Returns whether the current thread may run on `processor` and on others, and sets `mask` to
// those. Fails on a machine with more processors than the mask can hold.
inline bool find_others(int processor, cpu_set_t& mask) {
  if (processor < 0 || sched_getaffinity(0, sizeof(mask), &mask) != 0) return false;
  if (!CPU_ISSET(processor, &mask) || CPU_COUNT(&mask) < 2) return false;
  CPU_CLR(processor, &mask);
  return true;
}
#endif

// Lets another thread of the process run on all processors of the current thread but this one. If
// all are busy, the kernel would often wake the thread on this one, where it would only interrupt.
// Returns whether it does so.
inline bool keep_off([[maybe_unused]] int32_t thread, [[maybe_unused]] int processor) {
#if defined(__linux__)
  cpu_set_t mask;
  if (thread == 0 || !find_others(processor, mask)) return false;
  return sched_setaffinity(thread, sizeof(mask), &mask) == 0;
#else
  return false;
#endif
}

// Lets another thread of the process run on this processor only, at once if it waits for another.
// Returns false, and does nothing, if keep_off() could not undo it.
inline bool move_to([[maybe_unused]] int32_t thread, [[maybe_unused]] int processor) {
#if defined(__linux__)
  cpu_set_t mask;
  if (thread == 0 || !find_others(processor, mask)) return false;
  CPU_ZERO(&mask);
  CPU_SET(processor, &mask);
  return sched_setaffinity(thread, sizeof(mask), &mask) == 0;
#else
  return false;
#endif
}

// Returns the processor time that another thread of the process has used, or -1 if it is unknown.
inline Nanoseconds time_used_by([[maybe_unused]] int32_t thread) {
#if defined(__linux__)
  // The clock that pthread_getcpuclockid() returns, for the kernel's number of a thread.
  const auto clock = static_cast<clockid_t>((~static_cast<uint32_t>(thread) << 3) | 6);
  timespec time = {};
  if (thread == 0 || clock_gettime(clock, &time) != 0) return -1;
  return time.tv_sec * Nanoseconds{1'000'000'000} + time.tv_nsec;
#else
  return -1;
#endif
}

// Asks the kernel to run the current thread for short times, but soon after it wakes: from Linux
// 6.12 on, it then interrupts a thread that has spun for longer, such as OpenMP's after a call of
// torch. Takes no more time from others.
inline void take_short_turns() {
#if defined(SYS_sched_setattr) && defined(SYS_sched_getattr)
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes = {};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.size = sizeof(attributes);
  attributes.flags = 0;
  attributes.runtime = 100'000;  // the least
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

}  // namespace dynloader

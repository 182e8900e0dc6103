// A thread that helps the callers of share_out().
#pragma once

#include <atomic>
#include <cstdint>

#include "processors.h"

namespace dynloader {

// What a helper and its callers tell each other.
struct Helper {
  std::atomic<uint32_t> calls = 0;
  std::atomic<bool> is_asleep = false;
  std::atomic<int32_t> thread = 0;  // the kernel's number
  std::atomic<bool> may_have_tile = false;
  std::atomic<bool> is_moved = false;  // to the caller's processor

  // Wakes the helper if it sleeps, on another processor than the caller's.
  void call(int here) {
    if (!is_asleep.load(std::memory_order_relaxed)) return;
    is_asleep.store(false, std::memory_order_relaxed);
    is_moved.store(false, std::memory_order_relaxed);
    if (avoids_ != here && keep_off(thread, here)) avoids_ = here;
    calls.fetch_add(1, std::memory_order_release);
    wake(calls);
  }

  // If the helper has a tile and has not run since the last call of this function, lets it use the
  // caller's processor, which is about to be free. Most such helpers wait for their own until
  // another thread's turn is over; to one that waits for a disk, it makes little difference.
  void move_if_waiting() {
    if (!may_have_tile.load(std::memory_order_relaxed)) return;
    const Nanoseconds used = time_used_by(thread);
    const bool is_waiting = used >= 0 && used == used_;
    used_ = used;
    if (!is_waiting || is_moved.load(std::memory_order_relaxed)) return;
    if (!move_to(thread, current_processor())) return;
    is_moved.store(true, std::memory_order_relaxed);
    avoids_ = -1;
  }

 private:
  // Accessed by the caller.
  int avoids_ = -1;        // a processor
  Nanoseconds used_ = -1;  // processor time, when the caller last looked
};

}  // namespace dynloader

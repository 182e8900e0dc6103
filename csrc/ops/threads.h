// Threads that share a loop. The caller never waits for a thread that has not started to work.
#pragma once

#include <cstdint>

namespace dynloader {

// Processes the tiles [first, last). Concurrent calls have different slots.
using TileTask = void (*)(void* context, int64_t slot, int64_t first, int64_t last);

// Calls the task for ranges that cover [0, tiles) once, in any order, with slots in [0, threads),
// and returns when all calls have returned. If calls throw, rethrows one of their exceptions.
//
// The caller takes tiles from the first to the last, and other threads that are awake take tiles
// from the same counter. Others are woken only if the work takes longer than waking them. The
// caller waits only for tiles that another thread has taken and not finished, so on a busy machine,
// where the other threads get no processor, it processes all tiles itself; a thread that loses its
// processor within a tile gets the caller's. The caller decides on which of its processors the
// other threads may run. If the threads are already working for another caller, or if a task calls
// this function, the caller works alone.
void share_out(int64_t threads, int64_t tiles, TileTask task, void* context);

// Lives for as long as an operation, which may have several loops. Between them, threads that were
// woken stay awake, unless they work on the caller's processor.
struct Sharing {
  Sharing() = default;
  Sharing(const Sharing&) = delete;
  Sharing& operator=(const Sharing&) = delete;
  ~Sharing();
};

// For tests: if true, every loop of more than one tile wakes as many other threads as it asks for,
// even if there are fewer processors.
void share_eagerly(bool eagerly);

}  // namespace dynloader

// Threads that help with a loop, and are never waited for before they have begun.
#pragma once

#include <cstdint>

namespace dynloader {

// Works on the tiles from `first` to before `last`. No two calls at the same time have one slot.
using TileTask = void (*)(void* context, int64_t slot, int64_t first, int64_t last);

// Calls the task for ranges that make up [0, tiles), with slots below `threads`, in any order, and
// returns when all calls have ended. If some throw, it throws what one of them threw.
//
// The caller works from the first tile to the last. Other threads are called only if it is at work
// for longer than they take to wake up, and take tiles from the same counter. So on a busy machine,
// where they get no processor, the caller does everything by itself: it waits only for tiles that
// another thread has taken and not finished. A caller that finds the threads at work for another
// caller, and a task that calls this, go on alone.
void share_out(int64_t threads, int64_t tiles, TileTask task, void* context);

// For tests: calls the other threads for every loop of more than one tile, and as many as are asked
// for, even if there are fewer processors.
void share_eagerly(bool eagerly);

}  // namespace dynloader

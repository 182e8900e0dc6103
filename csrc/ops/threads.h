// Threads that share a loop. The caller never waits for a thread that has not started to work.
#pragma once

#include <cstdint>

namespace dynloader {

// Processes the tiles [first, last). Concurrent calls have different slots.
using TileTask = void (*)(void* context, int64_t slot, int64_t first, int64_t last);

// Calls the task for ranges that cover [0, tiles) once, in any order, with slots in [0, threads),
// and returns when all calls have returned. If calls throw, rethrows one of their exceptions.
//
// The caller takes tiles from the first to the last. Other threads are woken only if the work takes
// longer than waking them, and take tiles from the same counter. The caller waits only for tiles
// that another thread has taken and not finished, so on a busy machine, where the other threads get
// no processor, it processes all tiles itself. If the threads are already working for another
// caller, or if a task calls this function, the caller works alone.
void share_out(int64_t threads, int64_t tiles, TileTask task, void* context);

// For tests: if true, every loop of more than one tile wakes as many other threads as it asks for,
// even if there are fewer processors.
void share_eagerly(bool eagerly);

}  // namespace dynloader

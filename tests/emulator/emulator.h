// Executes CUDA kernels on the CPU: the threads of a block are fibers, the blocks come one after
// another. The order of both is drawn, so that a result that depends on it does not stay the same.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kNumProcessors = 3;
// The only stream there is; work on another one is an error.
inline void* const kStream = reinterpret_cast<void*>(0x57);

struct Index {
  unsigned x, y, z;
};
Index thread_index();
Index block_index();
Index grid_size();

// What a thread calls to wait for others: for the whole block, or for the lanes of `mask` of its
// warp. `line` is that of the call: all must come to the same.
void wait_for_block(int line);
// Puts down this lane's value, waits, and takes that of another; its own where there is no such
// lane.
uint64_t exchange(unsigned mask, uint64_t value, int lane, int line);
// Bit l: the vote of lane l.
unsigned ballot(unsigned mask, bool vote, int line);
void fence();

// Runs a kernel; `call(context)` is one thread of it.
void launch(const void* kernel, unsigned blocks, unsigned threads, void* stream,
            void (*call)(void*), void* context);

// Device memory is apart from the host's: the host can touch it by these only. It comes filled with
// 0xa5, and is followed by memory that is not accessible.
void* allocate(size_t bytes);
void set(void* address, int value, size_t bytes);
void copy_to_device(void* to, const void* from, size_t bytes);
void copy_to_host(void* to, const void* from, size_t bytes);
void free_all();

// Whether a thread of the block may use the address as its own: its stack.
bool is_on_stack(const void* address);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulator

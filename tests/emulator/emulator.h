// Executes CUDA kernels on the CPU: the threads of a block are fibers, and blocks run one after
// another. The order of both is random, so that results that depend on it vary.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kNumProcessors = 3;
// The only stream. Work on another stream is an error.
inline void* const kStream = reinterpret_cast<void*>(0x57);

struct Index {
  unsigned x, y, z;
};
Index thread_index();
Index block_index();
Index grid_size();

// A thread calls these to wait for the whole block, or for the lanes of `mask` in its warp. `line`
// is the line of the call, which must be the same for all of them.
void wait_for_block(int line);
// Stores this lane's value, waits, and returns the value of another lane, or its own value if there
// is no such lane.
uint64_t exchange(unsigned mask, uint64_t value, int lane, int line);
// Bit l is the vote of lane l.
unsigned ballot(unsigned mask, bool vote, int line);
void fence();

// Runs a kernel; `call(context)` runs one of its threads.
void launch(const void* kernel, unsigned blocks, unsigned threads, void* stream,
            void (*call)(void*), void* context);

// Device memory is separate from host memory: the host accesses it with these functions only. It is
// initially filled with 0xa5, and followed by inaccessible memory.
void* allocate(size_t bytes);
void set(void* address, int value, size_t bytes);
void copy_to_device(void* to, const void* from, size_t bytes);
void copy_to_host(void* to, const void* from, size_t bytes);
void free_all();

// Returns whether the address is on the stack of a thread of the block.
bool is_on_stack(const void* address);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulator

// Allocates results and working memory.
#pragma once

#include <cstdint>
#include <vector>

#include "../backends/scratch.h"
#include "tensor.h"

namespace dynloader {

// Return tensors with undefined values, contiguous unless strides are given. Large tensors on the
// CPU use large pages if the kernel has some.
Tensor empty_tensor(Extents sizes, int32_t dtype, Device device);
Tensor empty_strided(Extents sizes, Extents strides, int32_t dtype, Device device);
// A vector of 32 MiB or more on the CPU is like that of empty_reused.
Tensor empty_vector(int64_t count, int32_t dtype, Device device);
inline Tensor empty_scalar(int32_t dtype, Device device) {
  return empty_tensor({nullptr, 0}, dtype, device);
}

// Returns a dense tensor that must not be resized. Large tensors on the CPU reuse the memory of an
// earlier tensor or call if there is some; memory.cpp says why. Works in any thread, regardless of
// its torch modes.
Tensor empty_reused(Extents sizes, Extents strides, int32_t dtype, Device device);
// Like empty_reused, on the CPU, optionally in pinned memory.
Tensor empty_batch(Extents sizes, Extents strides, int32_t dtype, bool pin_memory);

// Returns the first `count` elements of a vector that was allocated for the maximum, so that saving
// or sending the result does not include the rest.
Tensor cut_short(const Tensor& vector, int64_t count);

// Working memory, freed once the call is queued: on CUDA, the caching allocator reuses it in stream
// order. Small pieces share a block, because each block costs a call of the allocator.
class WorkingMemory {
 public:
  explicit WorkingMemory(Device device) : device_(device) {}
  WorkingMemory(const WorkingMemory&) = delete;
  WorkingMemory& operator=(const WorkingMemory&) = delete;
  ~WorkingMemory() {
    for (const Block& block : blocks_) give_back(block);
  }

  Scratch view() { return {this, &WorkingMemory::allocate}; }

 private:
  static constexpr int64_t kAlignment = 256;
  static constexpr int64_t kBlock = int64_t{64} << 10;

  struct Block {
    void* memory;
    int64_t bytes;
    AtenTensorHandle tensor;  // on CUDA
  };

  static void* allocate(void* context, int64_t bytes);
  Block take(int64_t bytes) const;
  static void give_back(const Block& block);

  const Device device_;
  std::vector<Block> blocks_;
  char* next_ = nullptr;
  int64_t left_ = 0;
};

}  // namespace dynloader

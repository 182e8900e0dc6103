// Memory for results and for work.
#pragma once

#include <cstdint>
#include <vector>

#include "../backends/scratch.h"
#include "tensor.h"

namespace dynloader {

// Tensors, their values undefined, contiguous unless strides are given. Large ones on the CPU are
// in large pages of memory, where the kernel has some.
Tensor empty_tensor(Extents sizes, int32_t dtype, Device device);
Tensor empty_strided(Extents sizes, Extents strides, int32_t dtype, Device device);
inline Tensor empty_vector(int64_t count, int32_t dtype, Device device) {
  return empty_tensor({&count, 1}, dtype, device);
}
inline Tensor empty_scalar(int32_t dtype, Device device) {
  return empty_tensor({nullptr, 0}, dtype, device);
}

// Dense, and not resized by anyone. Large ones on the CPU are made of memory that an earlier one or
// a call's work left, if there is some: memory.cpp tells why. For any thread, whatever modes of
// torch it is in.
Tensor empty_reused(Extents sizes, Extents strides, int32_t dtype, Device device);
// On the CPU, and as above.
Tensor empty_batch(Extents sizes, Extents strides, int32_t dtype, bool pin_memory);

// The first `count` elements of a vector that was allocated for the most there could be. What is
// saved or sent elsewhere is no longer than they are.
Tensor cut_short(const Tensor& vector, int64_t count);

// Working memory, given back when the call has been queued: on CUDA the caching allocator hands it
// out again in stream order. Small pieces share a block, for every block is a call of the
// allocator.
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

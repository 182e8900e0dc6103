// Memory for results and for work, from torch's allocators.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "../backends/scratch.h"

namespace dynloader {

// A one-dimensional tensor, its values undefined. Large ones on the CPU are made of memory that an
// earlier result left, if there is some: memory.cpp tells why.
at::Tensor empty_vector(int64_t count, const at::TensorOptions& options);

// A dense tensor on the CPU for a batch, its values undefined, whatever modes of torch the calling
// thread is in. Large ones are made as above.
at::Tensor empty_batch(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype,
                       bool pin_memory);

// The first `count` elements of a result that was allocated for the most there could be. What is
// saved or sent elsewhere is no longer than they are.
at::Tensor cut_short(at::Tensor result, int64_t count);

// Working memory, given back when the call has been queued: on CUDA the caching allocator hands it
// out again in stream order. Small pieces share a block, for every block is a call of the
// allocator.
class TensorScratch {
 public:
  explicit TensorScratch(c10::Device device) : options_(at::device(device).dtype(at::kByte)) {}

  Scratch view() { return {this, &TensorScratch::allocate}; }

 private:
  static constexpr int64_t kAlignment = 256;
  static constexpr int64_t kBlock = int64_t{64} << 10;

  static void* allocate(void* context, int64_t bytes) {
    auto& self = *static_cast<TensorScratch*>(context);
    const int64_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (size > self.left_) {
      const int64_t block = size > kBlock / 2 ? size : kBlock;
      self.held_.push_back(empty_vector(block, self.options_));
      auto* begin = static_cast<char*>(self.held_.back().mutable_data_ptr());
      if (block == size) return begin;
      self.next_ = begin;
      self.left_ = block;
    }
    char* piece = self.next_;
    self.next_ += size;
    self.left_ -= size;
    return piece;
  }

  at::TensorOptions options_;
  std::vector<at::Tensor> held_;
  char* next_ = nullptr;
  int64_t left_ = 0;
};

}  // namespace dynloader

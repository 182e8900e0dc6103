// Large tensors on the CPU.
//
// Fresh memory comes from the kernel page by page, each filled with zeros when it is first touched:
// for ten million samples that takes two to three times as long as the selection itself. So memory
// of this size is asked for in large pages, and what one selection has left the next one takes, as
// torch's allocator does on CUDA. Large pages are worth as much again to a table, whose rows are
// visited at random: the processor remembers where far more of it is.
#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>

#include <cstdlib>
#include <mutex>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dynloader {
namespace {

constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kPage = size_t{2} << 20;
// Of what is left over, so much at most is kept for the next call: the result of the selection
// before the last, and the working memory of the last one.
constexpr size_t kMostKept = size_t{1} << 30;
constexpr size_t kMostBlocks = 16;

struct Block {
  void* memory;
  size_t bytes;
};

class LeftOver {
 public:
  // Never destroyed: tensors may outlive everything.
  static LeftOver& instance() {
    static auto* left_over = new LeftOver;
    return *left_over;
  }

  // Memory that is left over, or else fresh. What does not fit gives way to it, the oldest first,
  // so that what is kept never adds to a need that it could not serve.
  Block take(size_t bytes) {
    Blocks surplus;
    {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock.owns_lock()) {
        for (size_t j = 0; j < blocks_.count; ++j) {
          const Block block = blocks_.items[j];
          if (bytes <= block.bytes && block.bytes <= bytes + bytes / 4 + kPage) {
            blocks_.remove(j);
            return block;
          }
        }
        size_t given_up = 0;
        while (blocks_.count > 0 && given_up < bytes) {
          given_up += blocks_.items[0].bytes;
          surplus.add(blocks_.remove(0));
        }
      }
    }
    surplus.free_all();
    return fresh(bytes);
  }

  void give(Block block) {
    Blocks surplus;
    {
      // A process forked while another thread held the lock must not wait for it.
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (!lock.owns_lock() || block.bytes > kMostKept) {
        surplus.add(block);
      } else {
        while (blocks_.count > 0 &&
               (blocks_.count == kMostBlocks || blocks_.bytes() + block.bytes > kMostKept)) {
          surplus.add(blocks_.remove(0));
        }
        blocks_.add(block);
      }
    }
    surplus.free_all();
  }

 private:
  // The one that was given back last at the end. Of fixed size: to give back must not fail.
  struct Blocks {
    Block items[kMostBlocks + 1];
    size_t count = 0;

    void add(Block block) { items[count++] = block; }
    Block remove(size_t j) {
      const Block found = items[j];
      for (--count; j < count; ++j) items[j] = items[j + 1];
      return found;
    }
    size_t bytes() const {
      size_t sum = 0;
      for (size_t j = 0; j < count; ++j) sum += items[j].bytes;
      return sum;
    }
    // Not under the lock: the kernel takes its time.
    void free_all() const {
      for (size_t j = 0; j < count; ++j) std::free(items[j].memory);
    }
  };

  static Block fresh(size_t bytes) {
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    void* memory = std::aligned_alloc(kPage, size);
    if (memory == nullptr) return {nullptr, 0};
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // The kernel may refuse, and nothing is lost.
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    return {memory, size};
  }

  std::mutex mutex_;
  Blocks blocks_;
};

void give_back(void* context) {
  auto* block = static_cast<Block*>(context);
  LeftOver::instance().give(*block);
  delete block;
}

// None where there is no memory.
c10::Storage large_storage(size_t bytes) {
  const Block found = LeftOver::instance().take(bytes);
  if (found.memory == nullptr) return {};
  at::DataPtr memory(found.memory, new Block(found), &give_back, c10::Device(at::kCPU));
  return c10::Storage(c10::Storage::use_byte_size_t(), bytes, std::move(memory),
                      c10::GetAllocator(at::kCPU), /*resizable=*/true);
}

}  // namespace

at::Tensor empty_vector(int64_t count, const at::TensorOptions& options) {
  const size_t bytes = static_cast<size_t>(count) * options.dtype().itemsize();
  if (!options.device().is_cpu() || bytes < kLarge) return at::empty({count}, options);
  const c10::Storage storage = large_storage(bytes);
  if (!storage) return at::empty({count}, options);  // torch's error says how much
  return at::empty({0}, options).set_(storage, 0, {count}, {1});
}

at::Tensor empty_batch(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype,
                       bool pin_memory) {
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * c10::elementSize(dtype);
  c10::Storage storage;
  if (!pin_memory && bytes >= kLarge) storage = large_storage(bytes);
  if (!storage) return at::detail::empty_strided_cpu(sizes, strides, dtype, pin_memory);
  at::Tensor batch = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
      c10::scalarTypeToTypeMeta(dtype));
  batch.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return batch;
}

at::Tensor cut_short(at::Tensor result, int64_t count) {
  result.resize_({count});
  result.storage().set_nbytes(static_cast<size_t>(count) * result.element_size());
  return result;
}

}  // namespace dynloader

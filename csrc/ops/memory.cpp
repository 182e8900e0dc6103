// Large tensors on the CPU.
//
// Fresh memory comes from the kernel page by page, each filled with zeros when it is first touched:
// for ten million samples that takes two to three times as long as the selection itself. So memory
// of this size is asked for in large pages, and what one selection has left the next one takes, as
// torch's allocator does on CUDA. Large pages are worth as much again to a table, whose rows are
// visited at random: the processor remembers where far more of it is.
#include "memory.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>

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

  Block take(size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) {
      for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
        if (block->bytes < bytes || block->bytes > bytes + bytes / 4 + kPage) continue;
        const Block found = *block;
        blocks_.erase(block);
        kept_ -= found.bytes;
        return found;
      }
    }
    return fresh(bytes);
  }

  void give(Block block) {
    // A process forked while another thread held the lock must not wait for it.
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || block.bytes > kMostKept) return std::free(block.memory);
    blocks_.push_back(block);
    kept_ += block.bytes;
    while (kept_ > kMostKept || blocks_.size() > kMostBlocks) {
      std::free(blocks_.front().memory);
      kept_ -= blocks_.front().bytes;
      blocks_.erase(blocks_.begin());
    }
  }

 private:
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
  std::vector<Block> blocks_;  // the one that was given back last at the end
  size_t kept_ = 0;
};

void give_back(void* context) {
  auto* block = static_cast<Block*>(context);
  LeftOver::instance().give(*block);
  delete block;
}

}  // namespace

at::Tensor empty_vector(int64_t count, const at::TensorOptions& options) {
  const size_t bytes = static_cast<size_t>(count) * options.dtype().itemsize();
  if (!options.device().is_cpu() || bytes < kLarge) return at::empty({count}, options);
  const Block found = LeftOver::instance().take(bytes);
  if (found.memory == nullptr) return at::empty({count}, options);  // torch's error says how much
  at::DataPtr memory(found.memory, new Block(found), &give_back, c10::Device(at::kCPU));
  const c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(memory),
                             c10::GetAllocator(at::kCPU), /*resizable=*/true);
  return at::empty({0}, options).set_(storage, 0, {count}, {1});
}

at::Tensor cut_short(const at::Tensor& result, int64_t count) {
  const at::Tensor head = result.narrow(0, 0, count);
  head.storage().set_nbytes(static_cast<size_t>(count) * head.element_size());
  return head;
}

}  // namespace dynloader

// Allocates large tensors on the CPU.
//
// The kernel provides fresh memory page by page, and zeroes each page when it is first touched: for
// ten million samples, that takes two to three times as long as the selection itself. So large
// tensors use large pages, and each selection or batch reuses the memory of earlier ones, like
// torch's allocator on CUDA. Large pages help a table just as much: its rows are visited at random,
// and the processor's TLB covers far more of it.
//
// The stable ABI cannot create a resizable tensor from such memory, so a result of less than 32 MiB
// is in torch's own memory, but in large pages: glibc keeps that much of freed memory for the next
// result. It gives larger blocks back to the kernel at once, so larger results reuse memory, too.
#include "memory.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dynloader {
namespace {

constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kPage = size_t{2} << 20;
// The least block that glibc always gives back to the kernel.
constexpr size_t kNeverKept = size_t{32} << 20;
// The most memory to keep for the next call: enough for the batch before the last, and the working
// memory of the last call.
constexpr size_t kMostKept = size_t{1} << 30;
constexpr size_t kMostBlocks = 16;

struct Block {
  void* memory;
  size_t bytes;
};

class LeftOver {
 public:
  // Never destroyed, because tensors may outlive static objects.
  static LeftOver& instance() {
    static auto* left_over = new LeftOver;
    return *left_over;
  }

  // Returns the last kept block that fits, or else a fresh one. Before allocating, frees up to as
  // many bytes of kept blocks, oldest first, so that they add little to the memory in use. Larger
  // blocks stay: otherwise, calls that need different sizes would free each other's memory in turn.
  Block take(size_t bytes) {
    Blocks surplus;
    {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock.owns_lock()) {
        for (size_t j = blocks_.count; j-- > 0;) {
          const Block block = blocks_.items[j];
          if (bytes <= block.bytes && block.bytes <= bytes + bytes / 4 + kPage) {
            blocks_.remove(j);
            return block;
          }
        }
        size_t left = bytes;
        for (size_t j = 0; j < blocks_.count;) {
          if (blocks_.items[j].bytes > left) {
            ++j;
            continue;
          }
          left -= blocks_.items[j].bytes;
          surplus.add(blocks_.remove(j));
        }
      }
    }
    surplus.free_all();
    const Block made = fresh(bytes);
    if (made.memory != nullptr || !free_kept()) return made;
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
  // Blocks, the most recent last. The size is fixed, because returning a block must not fail.
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
    // Call without the lock, because the kernel is slow to free large blocks.
    void free_all() const {
      for (size_t j = 0; j < count; ++j) std::free(items[j].memory);
    }
  };

  // Frees all kept blocks, and returns whether there were any.
  bool free_kept() {
    Blocks kept;
    {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock.owns_lock()) std::swap(kept, blocks_);
    }
    kept.free_all();
    return kept.count > 0;
  }

  static Block fresh(size_t bytes) {
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    void* memory = std::aligned_alloc(kPage, size);
    if (memory == nullptr) return {nullptr, 0};
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // The kernel may ignore the advice; the memory is then in small pages.
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    return {memory, size};
  }

  std::mutex mutex_;
  Blocks blocks_;
};

void give_back_blob(void* memory, void* context) {
  LeftOver::instance().give({memory, reinterpret_cast<size_t>(context)});
}

// Returns the number of bytes, or none if a size is negative or the number overflows.
std::optional<size_t> bytes_of(Extents sizes, int32_t dtype) {
  size_t bytes = aoti_torch_dtype_element_size(dtype);
  for (const int64_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) return {};
  }
  return bytes;
}

Device on_cpu() { return {codes.cpu, -1}; }

// Call before the memory is touched; after that, the kernel cannot use large pages at once.
void ask_for_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto first = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const auto last =
      (reinterpret_cast<uintptr_t>(memory) + static_cast<size_t>(bytes)) / kPage * kPage;
  // The kernel may ignore the advice; the memory is then in small pages.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

Tensor empty_strided(Extents sizes, Extents strides, int32_t dtype, Device device) {
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(sizes.count, sizes.values, strides.values, dtype, device.type,
                               device.index < 0 ? 0 : device.index, &made) != 0) {
    raise_torchs_error("can't allocate memory");
  }
  if (!device.is_cpu()) return Tensor(made);
  Tensor result(made, sizes, dtype);
  // No element has more than 16 bytes.
  if (result.numel() >= static_cast<int64_t>(kLarge / 16)) {
    const int64_t bytes = result.numel() * result.element_size();
    if (bytes >= static_cast<int64_t>(kLarge)) ask_for_large_pages(result.mutable_data(), bytes);
  }
  return result;
}

Tensor empty_tensor(Extents sizes, int32_t dtype, Device device) {
  std::array<int64_t, 8> few;
  std::vector<int64_t> many;
  int64_t* strides = few.data();
  if (sizes.count > static_cast<int64_t>(few.size())) {
    many.resize(static_cast<size_t>(sizes.count));
    strides = many.data();
  }
  int64_t apart = 1;
  for (int64_t d = sizes.count - 1; d >= 0; --d) {
    strides[d] = apart;
    apart *= std::max(sizes[d], int64_t{1});
  }
  return empty_strided(sizes, {strides, sizes.count}, dtype, device);
}

Tensor empty_vector(int64_t count, int32_t dtype, Device device) {
  const int64_t stride = 1;
  if (device.is_cpu() && bytes_of({&count, 1}, dtype).value_or(0) >= kNeverKept) {
    return empty_reused({&count, 1}, {&stride, 1}, dtype, device);
  }
  return empty_strided({&count, 1}, {&stride, 1}, dtype, device);
}

Tensor empty_reused(Extents sizes, Extents strides, int32_t dtype, Device device) {
  const auto bytes = bytes_of(sizes, dtype).value_or(0);
  // If the number of bytes overflows, torch raises the error.
  if (!device.is_cpu() || bytes < kLarge) return empty_strided(sizes, strides, dtype, device);
  const Block block = LeftOver::instance().take(bytes);
  if (block.memory == nullptr) return empty_strided(sizes, strides, dtype, device);
  AtenTensorHandle made = nullptr;
  const auto status =
      torch_from_blob(block.memory, sizes.count, sizes.values, strides.values, 0, dtype, codes.cpu,
                      -1, &made, aoti_torch_layout_strided(), nullptr, 0, &give_back_blob,
                      reinterpret_cast<void*>(block.bytes));
  if (status != 0) {
    LeftOver::instance().give(block);
    raise_torchs_error("did not allocate a tensor");
  }
  return Tensor(made);
}

Tensor empty_batch(Extents sizes, Extents strides, int32_t dtype, bool pin_memory) {
  if (!pin_memory) return empty_reused(sizes, strides, dtype, on_cpu());
  AtenTensorHandle made = nullptr;
  check_torch(aoti_torch_empty_strided_pinned(sizes.count, sizes.values, strides.values, dtype,
                                              codes.cpu, 0, &made),
              "can't allocate pinned memory");
  return Tensor(made);
}

Tensor cut_short(const Tensor& vector, int64_t count) {
  Tensor result = empty_vector(count, vector.dtype(), vector.device());
  const int64_t stride = 1;
  AtenTensorHandle view = nullptr;
  check_torch(aoti_torch__reinterpret_tensor(vector.get(), 1, &count, &stride, 0, &view),
              "did not make a view of a tensor");
  const Tensor first(view);
  check_torch(aoti_torch_copy_(result.get(), first.get(), 0), "did not copy a tensor");
  return result;
}

void* WorkingMemory::allocate(void* context, int64_t bytes) {
  auto& self = *static_cast<WorkingMemory*>(context);
  const int64_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (size > self.left_) {
    const int64_t wanted = size > kBlock / 2 ? size : kBlock;
    self.blocks_.reserve(self.blocks_.size() + 1);
    self.blocks_.push_back(self.take(wanted));
    auto* begin = static_cast<char*>(self.blocks_.back().memory);
    if (wanted == size) return begin;
    self.next_ = begin;
    self.left_ = wanted;
  }
  char* piece = self.next_;
  self.next_ += size;
  self.left_ -= size;
  return piece;
}

WorkingMemory::Block WorkingMemory::take(int64_t bytes) const {
  if (!device_.is_cpu()) {
    Tensor memory = empty_vector(bytes, codes.uint8, device_);
    void* begin = memory.mutable_data();
    return {begin, 0, memory.release()};
  }
  if (static_cast<size_t>(bytes) >= kLarge) {
    const auto block = LeftOver::instance().take(static_cast<size_t>(bytes));
    CHECK_STATE(block.memory != nullptr, "dynloader can't allocate memory: ", bytes, " bytes");
    return {block.memory, static_cast<int64_t>(block.bytes), nullptr};
  }
  void* memory = std::aligned_alloc(kAlignment, static_cast<size_t>(bytes));
  CHECK_STATE(memory != nullptr, "dynloader can't allocate memory: ", bytes, " bytes");
  return {memory, 0, nullptr};
}

void WorkingMemory::give_back(const Block& block) {
  if (block.tensor != nullptr) {
    aoti_torch_delete_tensor_object(block.tensor);
  } else if (block.bytes > 0) {
    LeftOver::instance().give({block.memory, static_cast<size_t>(block.bytes)});
  } else {
    std::free(block.memory);
  }
}

}  // namespace dynloader

// Defines the primitives of cuda.h by launching kernels, and instantiates every call for the GPU.
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../algorithms/instantiate.h"
#include "cuda.h"
#include "cuda_loops.h"
#include "cuda_marks.h"
#include "cuda_search.h"

namespace dynloader {
namespace {

constexpr int kBlocksPerProcessor = 8;
// If a list has room for more keys than this, the whole GPU searches it.
constexpr int64_t kKeysOfOneBlock = 65536;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // Clears the error: otherwise torch's next check after a kernel would report it as its own.
  (void)cudaGetLastError();
  std::string message = std::string("dynloader: ") + what + ": " + cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice) {
    message += "; rebuild dynloader with TORCH_CUDA_ARCH_LIST set to this GPU's compute capability";
  }
  throw std::runtime_error(message);
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Returns the number of blocks to launch: as many as there is work for, but no more than keep the
// GPU busy. The kernels stride over the rest.
int64_t resident_blocks(int64_t blocks) {
  int device = 0;
  int processors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  const int64_t resident = int64_t{processors} * kBlocksPerProcessor;
  return blocks < resident ? blocks : resident;
}

// Launches a kernel. All launches go through this function.
template <class... Parameters>
void launch(cudaStream_t stream, int64_t blocks, int threads, void (*kernel)(Parameters...),
            Parameters... arguments) {
  void* pointers[] = {static_cast<void*>(&arguments)...};
  check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), pointers, 0, stream),
        "cudaLaunchKernel");
}

// A list of keys in the form that a descent reads.
struct ListKey {
  static constexpr int kHighBits = 32;
  const uint64_t* keys;
  const int64_t* count;
  int64_t size = 0;
  DYNLOADER_FN void fetch() { size = *count; }
  // Elements past the end of the list come last.
  DYNLOADER_FN uint32_t high(int64_t i) const {
    return i < size ? static_cast<uint32_t>(keys[i] >> 32) : 0;
  }
  DYNLOADER_FN uint32_t low(int64_t i) const {
    return i < size ? static_cast<uint32_t>(keys[i]) : 0;
  }
};

struct StartList {
  Threshold* threshold;
  const int64_t* count;
  int64_t capacity;
  const int64_t* rank;
  DYNLOADER_FN void operator()() const {
    const bool found = 1 <= *rank && *rank <= *count && *count <= capacity;
    *threshold = {*rank < 1 ? ~uint64_t{0} : 0, *rank, found ? 0 : 1};
  }
};

struct FinishList {
  const Threshold* threshold;
  uint64_t* result;
  DYNLOADER_FN void operator()() const { *result = threshold->prefix; }
};

}  // namespace

template <class F>
void Cuda::once(const F& f) {
  launch(stream_, 1, 1, once_kernel<F>, f);
}

template <class F>
void Cuda::for_each(int64_t n, const F& f) {
  if (n == 0) return;
  launch(stream_, resident_blocks(divide_up(n, kThreads)), kThreads, for_each_kernel<F>, f, n);
}

template <class First, class Second>
void Cuda::in_two_steps(int64_t n, const First& first, const Second& second) {
  if (n == 0) return;
  if (n > kOneBlock) {
    for_each(n, SharedStep<First>{first});
    return for_each(n, SharedStep<Second>{second});
  }
  launch(stream_, 1, kOneBlockThreads, in_two_steps_kernel<First, Second>, first, second, n);
}

template <class F>
void Cuda::in_stretches(int64_t n, const F& f) {
  if (n == 0) return;
  const int64_t blocks = divide_up(n, int64_t{kThreads} * kStretch);
  launch(stream_, resident_blocks(blocks), kThreads, in_stretches_kernel<F>, f, n);
}

template <class Walk, class Emit>
void Cuda::walk(int64_t n, const Walk& walk, const Emit& emit) {
  if (n == 0) return;
  launch(stream_, resident_blocks(divide_up(n, kThreads)), kThreads, walk_kernel<Walk, Emit>, walk,
         emit, n);
}

template <class Walk, class Emit>
void Cuda::walk_shared(int64_t n, const Walk& walk, const Emit& emit) {
  if (n == 0) return;
  launch(stream_, resident_blocks(divide_up(n, kWarps)), kThreads, walk_shared_kernel<Walk, Emit>,
         walk, emit, n);
}

template <int kSums, class F>
void Cuda::accumulate(int64_t n, const F& f, int64_t* sums) {
  check(cudaMemsetAsync(sums, 0, kSums * sizeof(int64_t), stream_), "cudaMemsetAsync");
  if (n == 0) return;
  launch(stream_, resident_blocks(divide_up(n, kThreads)), kThreads, accumulate_kernel<kSums, F>, f,
         n, sums);
}

template <int kBins, class Bin, class Descent>
void Cuda::descend(int64_t n, const Bin& bin, const Descent& descent) {
  static_assert(kBins <= kSearchBins, "all descents of a call share their counters");
  if (n == 0) return;
  if (counts_ == nullptr) {
    counts_ = allocate<uint32_t>(kSearchBins + 1);
    check(cudaMemsetAsync(counts_, 0, (kSearchBins + 1) * sizeof(uint32_t), stream_),
          "cudaMemsetAsync");
  }
  launch(stream_, resident_blocks(divide_up(n, kThreads)), kThreads,
         descend_kernel<kBins, Bin, Descent>, bin, descent, n, counts_, counts_ + kSearchBins);
}

template <bool kInLow, class Key>
void Cuda::count_digits(int64_t n, const Key& key, const WideDigit& digit, int64_t* counts) {
  check(cudaMemsetAsync(counts, 0, WideDigit::kCount * sizeof(int64_t), stream_),
        "cudaMemsetAsync");
  if (n == 0) return;
  launch(stream_, resident_blocks(divide_up(n, kThreads)), kThreads,
         count_digits_kernel<kInLow, Key>, key, digit, n, counts);
}

void Cuda::keys_of_ranks(const uint64_t* keys, int64_t count, int wanted, const int64_t* ranks,
                         uint64_t* results) {
  launch(stream_, wanted, kSearchThreads, keys_of_ranks_kernel, keys, count,
         static_cast<const int64_t*>(nullptr), ranks, results);
}

void Cuda::key_of_rank_in_list(const uint64_t* keys, int64_t capacity, const int64_t* count,
                               const int64_t* rank, uint64_t* result) {
  if (capacity <= kKeysOfOneBlock) {
    return launch(stream_, 1, kSearchThreads, keys_of_ranks_kernel, keys, capacity, count, rank,
                  result);
  }
  auto* threshold = allocate<Threshold>(1);
  once(StartList{threshold, count, capacity, rank});
  search_digits<true>(*this, ListKey{keys, count}, capacity, threshold);
  once(FinishList{threshold, result});
}

template <class Key>
void Cuda::mark(int64_t n, const Key& key, const Bracket* bracket, const Marks& marks) {
  if (n == 0) return;
  launch(stream_, Marks::tiles_of(n), kThreads, mark_kernel<Key>, key, n, bracket, marks);
}

void Cuda::settle(int64_t n, const uint64_t* threshold, const Marks& marks) {
  if (n == 0) return;
  const int64_t tiles = Marks::tiles_of(n);
  launch(stream_, divide_up(tiles, kWarps), kThreads, settle_kernel, tiles, threshold, marks);
}

template <class Emit>
void Cuda::emit(int64_t n, const Marks& marks, const Emit& emit) {
  if (n == 0) return;
  const int64_t tiles = Marks::tiles_of(n);
  launch(stream_, 1, kScanThreads, exclusive_scan_kernel, marks.tile_counts, tiles);
  launch(stream_, tiles, kThreads, emit_kernel<Emit>, emit, n, marks);
}

DYNLOADER_INSTANTIATE(Cuda);

}  // namespace dynloader

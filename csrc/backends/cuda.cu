// Defines the primitives of cuda.h by launching kernels, and instantiates every call for the GPU.
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../algorithms/instantiate.h"
#include "cuda.h"
#include "cuda_digits.h"
#include "cuda_loops.h"
#include "cuda_marks.h"
#include "cuda_search.h"
#include "cuda_settle.h"

namespace dynloader {
namespace {

constexpr int kBlocksPerProcessor = 8;
// One block looks at up to this many keys, and finds keys of ranks among them.
constexpr int64_t kKeysOfOneBlock = 16384;
// Up to this many tiles, each block of emit adds up the counts of the tiles before its own.
constexpr int64_t kTilesOfOneScan = 1024;

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

// Returns the number of warps that share one element of walk_shared: as many as keep the GPU busy,
// if each of their lanes has at least kLeast units.
int64_t warps_of_one(int64_t n, int64_t units) {
  constexpr int64_t kLeast = 4;
  const int64_t useful = divide_up(units, kLeast * kWarp);
  const int64_t wanted = divide_up(resident_blocks(divide_up(n * useful, kWarps)) * kWarps, n);
  return wanted < useful ? wanted : useful < 1 ? 1 : useful;
}

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
void Cuda::walk_shared(int64_t n, int64_t units, const Walk& walk, const Emit& emit) {
  if (n == 0) return;
  const int64_t warps = warps_of_one(n, units);
  launch(stream_, resident_blocks(divide_up(n * warps, kWarps)), kThreads,
         walk_shared_kernel<Walk, Emit>, walk, emit, n, static_cast<uint32_t>(warps));
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
  launch(stream_, resident_blocks(divide_up(n, int64_t{kThreads} * kAtOnce)), kThreads,
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

template <class Before, class KeyAt, class After>
void Cuda::keys_of_ranks(const Before& before, int64_t count, const KeyAt& key_at, uint64_t* keys,
                         int wanted, const int64_t* ranks, uint64_t* results, const After& after) {
  narrowing_ = allocate<Narrowing>(1);
  if (count <= kKeysOfOneBlock) {
    return launch(stream_, 1, kSearchThreads, look_kernel<Before, KeyAt, After>, before, key_at,
                  count, keys, wanted, ranks, results, after, narrowing_);
  }
  const int64_t blocks = divide_up(count, int64_t{kSearchThreads} * kLooksAtOnce);
  launch(stream_, resident_blocks(blocks), kSearchThreads, write_keys_kernel<Before, KeyAt>, before,
         key_at, count, keys, narrowing_);
  launch(stream_, wanted, kSearchThreads, keys_of_ranks_kernel<After>,
         static_cast<const uint64_t*>(keys), count, ranks, results, after, narrowing_);
}

template <class Key>
void Cuda::mark(int64_t n, const Key& key, const Search* search, const Marks& marks) {
  if (n == 0) return;
  launch(stream_, Marks::tiles_of(n), kThreads, mark_kernel<Key>, key, n, search, marks);
}

template <class Key, class After>
void Cuda::narrow(int64_t n, const Key& key, Search* search, const Marks& marks,
                  const After& after) {
  launch(stream_, Marks::tiles_of(n), kThreads, narrow_kernel<Key, After>, key, n, search, marks,
         after, narrowing_);
}

// Marks even without is_marking: the bits of few samples are cheaper than another kernel.
template <class Key, class After>
void Cuda::settle(int64_t n, const Key& key, Search* search, const Marks& marks, const After& after,
                  bool /*is_marking*/) {
  const int64_t blocks = divide_up(Marks::tiles_of(n), kWarps);
  launch(stream_, blocks, kThreads,
         n <= kSettlesAllUpTo ? settle_kernel<true, Key, After> : settle_kernel<false, Key, After>,
         key, n, search, marks, after, narrowing_);
}

void Cuda::settle_at(int64_t n, const uint64_t* threshold, const Marks& marks) {
  if (n == 0) return;
  const int64_t tiles = Marks::tiles_of(n);
  launch(stream_, divide_up(tiles, kWarps), kThreads, settle_at_kernel, tiles, threshold, marks);
}

template <class Emit>
void Cuda::emit(int64_t n, const Marks& marks, const Emit& emit) {
  if (n == 0) return;
  const int64_t tiles = Marks::tiles_of(n);
  const bool are_scanned = tiles > kTilesOfOneScan;
  if (are_scanned)
    launch(stream_, 1, kScanThreads, exclusive_scan_kernel, marks.tile_counts, tiles);
  launch(stream_, tiles, kThreads, emit_kernel<Emit>, emit, n, marks, are_scanned);
}

DYNLOADER_INSTANTIATE(Cuda);

}  // namespace dynloader

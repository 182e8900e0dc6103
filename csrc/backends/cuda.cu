// Kernels of the primitives in cuda.h, and the instantiation of every call for the GPU.
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../algorithms/instantiate.h"
#include "cuda.h"
#include "cuda_block.h"

namespace dynloader {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kItems = 16;  // of one thread in a tile
constexpr int64_t kTile = kThreads * kItems;
constexpr int kScanThreads = 1024;
constexpr int kBlocksPerProcessor = 8;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::string message = std::string("dynloader: ") + what + ": " + cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice) {
    message += "; rebuild dynloader with TORCH_CUDA_ARCH_LIST set to this GPU's compute capability";
  }
  throw std::runtime_error(message);
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// As many blocks as there is work for, and no more than keep the GPU busy: the kernels stride.
int64_t resident_blocks(int64_t blocks) {
  int device = 0;
  int processors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  const int64_t resident = int64_t{processors} * kBlocksPerProcessor;
  return blocks < resident ? blocks : resident;
}

// The only place that launches.
template <class... Parameters>
void launch(cudaStream_t stream, int64_t blocks, int threads, void (*kernel)(Parameters...),
            Parameters... arguments) {
  void* pointers[] = {static_cast<void*>(&arguments)...};
  check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), pointers, 0, stream),
        "cudaLaunchKernel");
}

template <class F>
__global__ void once_kernel(F f) {
  f();
}

template <class F>
__global__ void __launch_bounds__(kThreads) for_each_kernel(F f, int64_t n) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) f(i);
}

template <class Walk, class Emit>
__global__ void __launch_bounds__(kThreads) walk_kernel(Walk walk, Emit emit, int64_t n) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) {
    uint64_t x = walk.start(i);
    do {
      x = walk.step(x);
    } while (!walk.is_inside(x));
    emit(i, x);
  }
}

template <int kSums, class F>
__global__ void __launch_bounds__(kThreads) accumulate_kernel(F f, int64_t n, int64_t* sums) {
  int64_t local[kSums] = {};
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) f(i, local);
  for (int j = 0; j < kSums; ++j) {
    const int64_t sum = warp_sum(local[j]);
    if (lane_number() == 0 && sum != 0) fetch_add(sums + j, sum);
  }
}

// One round of a descent: every block counts its share in shared memory and adds it to the global
// counts; the block that comes last walks them. counts: [kBins], zero; ticket: zero.
template <int kBins, class Bin, class Descent>
__global__ void __launch_bounds__(kThreads)
    descend_kernel(Bin bin, Descent descent, int64_t n, uint32_t* counts, uint32_t* ticket) {
  if (!descent.is_active()) return;
  __shared__ uint32_t local[kBins];
  __shared__ int64_t warp_sums[kWarps];
  __shared__ bool is_last;
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) local[b] = 0;
  __syncthreads();

  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t base = int64_t{blockIdx.x} * kThreads; base < n; base += stride) {
    const int64_t i = base + threadIdx.x;
    const uint32_t b = i < n ? bin(i) : kNoDigit;
    // A warp of equal bins (all scores equal, most samples ruled out already) costs one addition,
    // not 32.
    const uint32_t first = __shfl_sync(kWholeWarp, b, 0);
    if (__all_sync(kWholeWarp, b == first)) {
      if (lane_number() == 0 && b < kBins) atomicAdd(&local[b], unsigned{kWarp});
    } else if (b < kBins) {
      atomicAdd(&local[b], 1u);
    }
  }
  __syncthreads();

  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) {
    if (local[b] != 0) atomicAdd(&counts[b], local[b]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();

  constexpr int kMine = kBins / kThreads;
  static_assert(kBins % kThreads == 0, "every thread walks as many bins");
  const int highest = kBins - 1 - static_cast<int>(threadIdx.x) * kMine;
  uint32_t mine[kMine];
  int64_t sum = 0;
  for (int j = 0; j < kMine; ++j) {
    mine[j] = atomic_load(counts + highest - j);
    sum += mine[j];
  }
  const int64_t rank = descent.rank();
  int64_t total = 0;
  int64_t above = block_exclusive_scan<kThreads>(sum, warp_sums, &total);
  if (rank <= above || rank > above + sum) return;
  for (int j = 0; j < kMine; ++j) {
    if (rank <= above + mine[j]) {
      descent.take(static_cast<uint32_t>(highest - j), rank - above, mine[j]);
      return;
    }
    above += mine[j];
  }
}

template <class Predicate>
__global__ void __launch_bounds__(kThreads)
    count_kept_kernel(Predicate keeps, int64_t n, int64_t* kept) {
  __shared__ int64_t warp_sums[kWarps];
  const int64_t tile = int64_t{blockIdx.x} * kTile;
  int64_t mine = 0;
  for (int item = 0; item < kItems; ++item) {
    const int64_t i = tile + item * kThreads + threadIdx.x;
    if (i < n && keeps(i)) ++mine;
  }
  int64_t total = 0;
  block_exclusive_scan<kThreads>(mine, warp_sums, &total);
  if (threadIdx.x == 0) kept[blockIdx.x] = total;
}

// values[j] = the sum of the values before it. One block.
__global__ void __launch_bounds__(kScanThreads) exclusive_scan_kernel(int64_t* values, int64_t n) {
  __shared__ int64_t warp_sums[kScanThreads / kWarp];
  int64_t carry = 0;
  for (int64_t base = 0; base < n; base += kScanThreads) {
    const int64_t i = base + threadIdx.x;
    int64_t total = 0;
    const int64_t before =
        block_exclusive_scan<kScanThreads>(i < n ? values[i] : 0, warp_sums, &total);
    if (i < n) values[i] = carry + before;
    carry += total;
    __syncthreads();
  }
}

template <class Predicate, class Emit>
__global__ void __launch_bounds__(kThreads)
    emit_kept_kernel(Predicate keeps, Emit emit, int64_t n, const int64_t* starts) {
  __shared__ int64_t warp_sums[kWarps];
  // Kept samples of each (item, warp), in the order of their indices.
  __shared__ uint32_t kept[kItems * kWarps];
  __shared__ uint32_t before[kItems * kWarps];
  static_assert(kItems * kWarps <= kThreads, "one thread scans one entry");
  const int64_t tile = int64_t{blockIdx.x} * kTile;
  uint32_t mine = 0;  // bit item: this thread keeps its sample of that item
  uint32_t votes[kItems];
  for (int item = 0; item < kItems; ++item) {
    const int64_t i = tile + item * kThreads + threadIdx.x;
    const bool keep = i < n && keeps(i);
    votes[item] = __ballot_sync(kWholeWarp, keep);
    mine |= (keep ? 1u : 0u) << item;
    if (lane_number() == 0) {
      kept[item * kWarps + warp_number()] = static_cast<uint32_t>(__popc(votes[item]));
    }
  }
  __syncthreads();
  const int entry = static_cast<int>(threadIdx.x);
  int64_t total = 0;
  const int64_t scanned =
      block_exclusive_scan<kThreads>(entry < kItems * kWarps ? kept[entry] : 0, warp_sums, &total);
  if (entry < kItems * kWarps) before[entry] = static_cast<uint32_t>(scanned);
  __syncthreads();
  const uint32_t lower_lanes = (1u << lane_number()) - 1;
  for (int item = 0; item < kItems; ++item) {
    if ((mine >> item & 1u) == 0) continue;
    const int64_t i = tile + item * kThreads + threadIdx.x;
    emit(i, starts[blockIdx.x] + before[item * kWarps + warp_number()] +
                __popc(votes[item] & lower_lanes));
  }
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

template <class Walk, class Emit>
void Cuda::walk(int64_t n, const Walk& walk, const Emit& emit) {
  if (n == 0) return;
  launch(stream_, resident_blocks(divide_up(n, kThreads)), kThreads, walk_kernel<Walk, Emit>, walk,
         emit, n);
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
  if (n == 0) return;
  auto* counts = allocate<uint32_t>(kBins + 1);
  check(cudaMemsetAsync(counts, 0, (kBins + 1) * sizeof(uint32_t), stream_), "cudaMemsetAsync");
  launch(stream_, resident_blocks(divide_up(n, kThreads)), kThreads,
         descend_kernel<kBins, Bin, Descent>, bin, descent, n, counts, counts + kBins);
}

template <class Predicate, class Emit>
void Cuda::compact(int64_t n, const Predicate& keeps, const Emit& emit) {
  if (n == 0) return;
  const int64_t tiles = divide_up(n, kTile);
  auto* starts = allocate<int64_t>(tiles);
  launch(stream_, tiles, kThreads, count_kept_kernel<Predicate>, keeps, n, starts);
  launch(stream_, 1, kScanThreads, exclusive_scan_kernel, starts, tiles);
  launch(stream_, tiles, kThreads, emit_kept_kernel<Predicate, Emit>, keeps, emit, n,
         static_cast<const int64_t*>(starts));
}

DYNLOADER_INSTANTIATE(Cuda);

}  // namespace dynloader

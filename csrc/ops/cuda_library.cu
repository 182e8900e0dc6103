// The library for CUDA: the kernels, on torch's current stream. It registers nothing: its functions
// are passed to the library with the operators (library.cpp).
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>

#include "../backends/cuda.h"
#include "cuda_functions.h"

namespace dynloader {
namespace {

class OnGpu {
 public:
  explicit OnGpu(int32_t gpu) {
    if (aoti_torch_create_cuda_guard(gpu, &guard_) != 0) {
      throw std::runtime_error("dynloader: torch did not make the GPU the current one");
    }
    if (aoti_torch_get_current_cuda_stream(gpu, &stream_) != 0) {
      aoti_torch_delete_cuda_guard(guard_);  // the destructor will not run
      throw std::runtime_error("dynloader: torch did not return its stream of the GPU");
    }
  }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;
  ~OnGpu() { aoti_torch_delete_cuda_guard(guard_); }

  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }

 private:
  CUDAGuardHandle guard_ = nullptr;
  void* stream_ = nullptr;
};

template <class Call>
void run_here(int32_t gpu, Scratch scratch, const Call& call) {
  const OnGpu on_gpu(gpu);
  Cuda backend(on_gpu.stream(), scratch);
  run(backend, call);
}

}  // namespace
}  // namespace dynloader

#define DYNLOADER_RUN(Call) dynloader::run_here<dynloader::Call>,
extern "C" __attribute__((visibility("default")))
const dynloader::CudaFunctions* dynloader_cuda_functions() {
  static const dynloader::CudaFunctions functions = {DYNLOADER_VERSION, dynloader::kBytesOfCalls,
                                                     CUDART_VERSION, DYNLOADER_CUDA_ARCHITECTURES,
                                                     DYNLOADER_FOR_EACH_CALL(DYNLOADER_RUN)};
  return &functions;
}
#undef DYNLOADER_RUN

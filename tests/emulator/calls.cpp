// Exports each call of the native core by name, for the emulated GPU.
#include "../../csrc/algorithms/calls.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "../../csrc/backends/cuda.h"

namespace {

void* scratch(void*, int64_t bytes) { return emulator::allocate(static_cast<size_t>(bytes)); }

}  // namespace

#define CALL(Name)                                                                \
  extern "C" void run_##Name(const dynloader::Name* call) {                       \
    dynloader::Cuda gpu(emulator::kStream, dynloader::Scratch{nullptr, scratch}); \
    run(gpu, *call);                                                              \
  }                                                                               \
  extern "C" size_t size_of_##Name() { return sizeof(dynloader::Name); }
DYNLOADER_FOR_EACH_CALL(CALL)

// Not a local static, which is guarded by an atomic that the tracer does not know.
static std::string message;

// Returns the message of a call whose kernel the runtime refuses to launch.
extern "C" const char* refused_VisitBonus(const dynloader::VisitBonus* call) {
  emulator::refusal = cudaErrorNoKernelImageForDevice;
  try {
    run_VisitBonus(call);
    message = "no error";
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  return message.c_str();
}

extern "C" int emulator_last_error() { return cudaGetLastError(); }

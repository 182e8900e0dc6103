// What the library with the operators needs of others, handed in by dynloader/_native.py when it
// loads them: Python's TypeError, and the library for CUDA.
#include <atomic>
#include <cstring>
#include <string>

#include "cpu_path.h"
#include "cuda_functions.h"
#include "errors.h"
#include "threads.h"

#define DYNLOADER_EXPORT extern "C" __attribute__((visibility("default")))

namespace dynloader {
namespace {

std::atomic<void (*)(const char*)> type_error = nullptr;
std::atomic<const CudaFunctions*> on_cuda = nullptr;
std::string* reason = nullptr;

}  // namespace

void raise_type_error(const std::string& message) {
  if (void (*raise)(const char*) = type_error) raise(message.c_str());
  throw std::runtime_error(message);
}

const CudaFunctions* cuda_functions() { return on_cuda.load(std::memory_order_relaxed); }

const char* why_without_cuda() {
  return reason == nullptr ? "No library for CUDA was loaded" : reason->c_str();
}

}  // namespace dynloader

// The function throws.
DYNLOADER_EXPORT void dynloader_raise_type_errors_by(void (*raise)(const char*)) {
  dynloader::type_error = raise;
}

// Returns whether the functions are of this build; then they are used from here on.
DYNLOADER_EXPORT bool dynloader_use_cuda(const dynloader::CudaFunctions* functions) {
  if (std::strcmp(functions->version, DYNLOADER_VERSION) != 0 ||
      functions->bytes != dynloader::kBytesOfCalls) {
    return false;
  }
  dynloader::on_cuda = functions;
  return true;
}

// Errors that need CUDA say why there is none. Before the first operator is called.
DYNLOADER_EXPORT void dynloader_tell_why_without_cuda(const char* why) {
  static std::string kept;
  kept = why;
  dynloader::reason = &kept;
}

// For tests.
DYNLOADER_EXPORT void dynloader_share_eagerly(bool eagerly) { dynloader::share_eagerly(eagerly); }

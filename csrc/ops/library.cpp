// What the library with the operators needs from others: errors of Python, and the library for
// CUDA. dynloader/_native.py passes them in when it loads the libraries.
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
std::atomic<void (*)(const char*)> out_of_memory = nullptr;
std::atomic<const CudaFunctions*> on_cuda = nullptr;
std::string* reason = nullptr;

}  // namespace

void raise_type_error(const std::string& message) {
  if (void (*raise)(const char*) = type_error) raise(message.c_str());
  throw std::runtime_error(message);
}

void raise_out_of_memory(const std::string& message) {
  if (void (*raise)(const char*) = out_of_memory) raise(message.c_str());
  throw std::runtime_error(message);
}

const CudaFunctions* cuda_functions() { return on_cuda.load(std::memory_order_relaxed); }

const char* why_without_cuda() {
  return reason == nullptr ? "No library for CUDA was loaded" : reason->c_str();
}

}  // namespace dynloader

// Returns the version of dynloader that the library is of.
DYNLOADER_EXPORT const char* dynloader_version() { return DYNLOADER_VERSION; }

// Sets the function that throws a TypeError.
DYNLOADER_EXPORT void dynloader_raise_type_errors_by(void (*raise)(const char*)) {
  dynloader::type_error = raise;
}

// Sets the function that throws a torch.OutOfMemoryError.
DYNLOADER_EXPORT void dynloader_raise_out_of_memory_by(void (*raise)(const char*)) {
  dynloader::out_of_memory = raise;
}

// Uses the functions from now on, and returns true, if they come from this build.
DYNLOADER_EXPORT bool dynloader_use_cuda(const dynloader::CudaFunctions* functions) {
  if (std::strcmp(functions->version, DYNLOADER_VERSION) != 0 ||
      functions->bytes != dynloader::kBytesOfCalls) {
    return false;
  }
  dynloader::on_cuda = functions;
  return true;
}

// Sets the reason that errors give for the lack of CUDA. Call before the first operator.
DYNLOADER_EXPORT void dynloader_set_why_without_cuda(const char* why) {
  static std::string kept;
  kept = why;
  dynloader::reason = &kept;
}

// For tests; see threads.h.
DYNLOADER_EXPORT void dynloader_share_eagerly(bool eagerly) { dynloader::share_eagerly(eagerly); }

// Reads losses of any type as float32.
#pragma once

#include <cstdint>

#include "../core/loss.h"
#include "calls.h"

namespace dynloader {

struct LoadFloat32 {
  DYNLOADER_FN float operator()(const void* losses, int64_t j) const {
    return static_cast<const float*>(losses)[j];
  }
};
struct LoadFloat64 {
  DYNLOADER_FN float operator()(const void* losses, int64_t j) const {
    return static_cast<float>(static_cast<const double*>(losses)[j]);
  }
};
struct LoadFloat16 {
  DYNLOADER_FN float operator()(const void* losses, int64_t j) const {
    return from_float16(static_cast<const uint16_t*>(losses)[j]);
  }
};
struct LoadBFloat16 {
  DYNLOADER_FN float operator()(const void* losses, int64_t j) const {
    return from_bfloat16(static_cast<const uint16_t*>(losses)[j]);
  }
};

// Calls f with the loader for a type of losses.
template <class F>
void with_load(LossType type, const F& f) {
  switch (type) {
    case LossType::kFloat32:
      return f(LoadFloat32{});
    case LossType::kFloat64:
      return f(LoadFloat64{});
    case LossType::kFloat16:
      return f(LoadFloat16{});
    case LossType::kBFloat16:
      return f(LoadBFloat16{});
  }
}

}  // namespace dynloader

// The types of losses.
#pragma once

#include "../algorithms/calls.h"
#include "errors.h"
#include "tensor.h"

namespace dynloader {

inline LossType loss_type(const char* op, const Tensor& losses) {
  const int32_t dtype = losses.dtype();
  if (dtype == codes.float32) return LossType::kFloat32;
  if (dtype == codes.float64) return LossType::kFloat64;
  if (dtype == codes.float16) return LossType::kFloat16;
  CHECK_TYPE(dtype == codes.bfloat16, op,
             ": losses must be float32, float64, float16 or bfloat16, got ", dtype_name(dtype));
  return LossType::kBFloat16;
}

}  // namespace dynloader

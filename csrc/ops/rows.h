// Checks of tensors whose rows are the records of samples.
#pragma once

#include <cstdint>

#include "../core/score.h"
#include "checks.h"
#include "tensor.h"

namespace dynloader {

template <class Row>
const Row* rows_of(const char* op, const char* name, const Tensor& rows) {
  check_device(op, rows.device());
  check_dtype(op, name, rows, codes.int32);
  CHECK_VALUE(rows.dim() == 2 && rows.size(1) == 4, op, ": ", name, " must have shape [n, 4], got ",
              rows.sizes());
  check_contiguous(op, name, rows);
  const auto address = reinterpret_cast<uintptr_t>(rows.data());
  CHECK_VALUE(address % alignof(Row) == 0, op, ": ", name, " must begin at a multiple of ",
              alignof(Row), " bytes, got an address with remainder ", address % alignof(Row));
  return reinterpret_cast<const Row*>(rows.data<int32_t>());
}

inline const Record* records_of(const char* op, const Tensor& records) {
  return rows_of<Record>(op, "records", records);
}

}  // namespace dynloader

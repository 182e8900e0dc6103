// Indices out of range.
#pragma once

#include <cstdint>

#include "../core/compiler.h"

namespace dynloader {

// Returns whether `index` is in [0, n). If not, counts it in `faults`, from which the caller
// reports it; an index out of range is never followed.
template <class Access>
DYNLOADER_FN bool is_within(int64_t index, int64_t n, int64_t* faults) {
  if (static_cast<uint64_t>(index) < static_cast<uint64_t>(n)) return true;
  Access::fetch_add(faults, int64_t{1});
  Access::raise_to(reinterpret_cast<uint64_t*>(faults + 1), static_cast<uint64_t>(index));
  return false;
}

}  // namespace dynloader

// Indices that name no sample.
#pragma once

#include <cstdint>

#include "../core/compiler.h"

namespace dynloader {

// An index outside [0, n) is never followed: it is counted, and the table reports it.
template <class Access>
DYNLOADER_FN bool is_within(int64_t index, int64_t n, int64_t* faults) {
  if (static_cast<uint64_t>(index) < static_cast<uint64_t>(n)) return true;
  Access::fetch_add(faults, int64_t{1});
  Access::raise_to(reinterpret_cast<uint64_t*>(faults + 1), static_cast<uint64_t>(index));
  return false;
}

}  // namespace dynloader

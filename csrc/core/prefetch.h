// Starts to load memory before it is read or written. A GPU runs other threads meanwhile, so there
// it does nothing.
#pragma once

#include "compiler.h"

namespace dynloader {

DYNLOADER_FN void prefetch_to_read([[maybe_unused]] const void* address) {
#if !DYNLOADER_ON_GPU
  __builtin_prefetch(address, 0);
#endif
}
DYNLOADER_FN void prefetch_to_write([[maybe_unused]] const void* address) {
#if !DYNLOADER_ON_GPU
  __builtin_prefetch(address, 1);
#endif
}

}  // namespace dynloader

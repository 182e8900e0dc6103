// Prefetches memory before it is read or written. Does nothing on a GPU, which runs other threads
// while it waits for memory.
#pragma once

#include "compiler.h"

namespace dynloader {

DYNLOADER_FN void prefetch_to_read([[maybe_unused]] const void* address) {
#if !DYNLOADER_ON_GPU
  __builtin_prefetch(address, 0);
#endif
}
// For many addresses at a time: the L1 cache has room for fewer requests.
DYNLOADER_FN void prefetch_to_read_later([[maybe_unused]] const void* address) {
#if !DYNLOADER_ON_GPU
  __builtin_prefetch(address, 0, 2);
#endif
}
DYNLOADER_FN void prefetch_to_write([[maybe_unused]] const void* address) {
#if !DYNLOADER_ON_GPU
  __builtin_prefetch(address, 1);
#endif
}

}  // namespace dynloader

// Working memory for one call. The caller provides it and takes it back.
#pragma once

#include <cstdint>

namespace dynloader {

struct Scratch {
  void* context;
  void* (*allocate)(void* context, int64_t bytes);
};

}  // namespace dynloader

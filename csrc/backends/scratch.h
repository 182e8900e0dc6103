// Working memory for one call, handed in by whoever makes the call, who also takes it back.
#pragma once

#include <cstdint>

namespace dynloader {

struct Scratch {
  void* context;
  void* (*allocate)(void* context, int64_t bytes);
};

}  // namespace dynloader

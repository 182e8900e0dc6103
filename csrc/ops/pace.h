// How many tiles a thread takes at once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "processors.h"

namespace dynloader {

// How fast a thread is in one loop.
struct Pace {
  Nanoseconds begin = now(), spent = 0;
  int64_t tiles = 0;

  void add(int64_t more) {
    tiles += more;
    spent = std::max<Nanoseconds>(now() - begin, 1);
  }
  // Returns how many tiles to take at once.
  int64_t claim(Nanoseconds time) const {
    return tiles == 0 ? 1 : std::clamp<int64_t>(time * tiles / spent, 1, 2 * tiles);
  }
  Nanoseconds time_for(int64_t more) const { return spent * more / tiles; }
};

}  // namespace dynloader

// The calls that gather and mix images; part of calls.h.
#pragma once

#include <cstdint>

#include "../core/image.h"
#include "../core/jitter.h"
#include "../core/mix.h"
#include "../core/random.h"
#include "../core/resize.h"

namespace dynloader {

// The distance, in elements, between adjacent pixels in each dimension.
struct PixelStrides {
  int64_t channel, row, column;
};

// Gathers the images of a batch: crops or resizes, flips, changes colors, cuts out and looks up
// values.
struct GatherImages {
  const int64_t* index;
  int64_t batch_size;
  ImageRule rule;
  Address address;
  const void* images;
  int64_t num_images;
  PixelStrides from, to;
  int pixel_bytes;     // bytes of a pixel of the images: 1, 2, 4 or 8
  uint64_t fill;       // bits of the pixel that fills padding and cutout
  const void* values;  // [channels, 256]: value of each byte; null: pixels are copied as they are
  int value_bytes;     // 2 or 4
  void* batch;         // filled for samples that do not exist
  int64_t* faults;     // [2], as for Gather
  bool is_resized;     // a box of each image becomes all of the result; for pixels of 1 byte
  BoxRule box;
  bool is_jittered;  // colors change; for 3 channels of 1 byte
  JitterRule jitter;
};

// Draws what each image of a batch is mixed with.
struct DrawMixtures {
  const int64_t* index;
  int64_t batch_size;
  MixRule rule;
  Address address;
  int64_t* partners;  // [batch_size], in [0, rule.num_samples)
  float* shares;      // [batch_size], of the image itself
  int64_t* squares;  // [batch_size, 4]: top, bottom, left, right of what the partner fills; or null
};

}  // namespace dynloader

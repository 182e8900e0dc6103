// Gathers batches of samples by index: plain rows, and images.
#pragma once

#include <cstdint>
#include <vector>

#include "../algorithms/calls.h"
#include "tensor.h"

namespace dynloader {

// The transforms of images.
struct ImageOptions {
  int64_t crop_height, crop_width, padding;
  bool is_reflected;
  double flip_probability;
  bool flip_alternates;  // flips every other epoch; flip_probability decides for epoch 0
  int64_t cutout;
  double fill;           // pixel that fills padding and cutout
  const Tensor* values;  // [channels, 256]: value of each byte; or null
  bool from_channels_last, to_channels_last;
  // Area of the part that is resized, from and to, as fractions of the image; width / height, from
  // and to; whether to antialias (1 or 0). Empty: images are cropped, not resized.
  std::vector<double> resize;
  // Factors of brightness, contrast, saturation and turns of the hue, from and to. Empty: none.
  std::vector<double> jitter;
};

// A checked batch of images before it is gathered: its sizes and strides, and the call without
// index, batch and faults.
struct ImageBatch {
  GatherImages call;
  int32_t dtype;
  int64_t sizes[4], strides[4];
};

ImageBatch image_batch(const char* op, const Tensor& images, const ImageOptions& options,
                       const Address& address, int64_t batch_size);

int64_t row_bytes(const Tensor& data);

// Returns a tensor for `count` rows of the data, on its device.
Tensor empty_rows(const Tensor& data, int64_t count);

GatherRows row_batch(const Tensor& data, const Tensor& index);

}  // namespace dynloader

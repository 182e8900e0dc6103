// Batches of samples that are told by index: plain rows, and pictures.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "../algorithms/calls.h"

namespace dynloader {

// What is done to pictures.
struct PictureOptions {
  int64_t crop_height, crop_width, padding;
  bool is_reflected;
  double flip_probability;
  bool flip_alternates;  // by epoch; flip_probability is that of epoch 0
  int64_t cutout;
  double fill;                       // of padding and cutout, as a pixel of the picture
  std::optional<at::Tensor> values;  // [channels, 256], what each byte becomes
  bool from_channels_last, to_channels_last;
};

// A batch of pictures to be: checked, its sizes and strides, all of the call but index, batch and
// faults.
struct PictureBatch {
  GatherPictures call;
  at::ScalarType dtype;
  int64_t sizes[4], strides[4];
};

PictureBatch picture_batch(const char* op, const at::Tensor& pictures,
                           const PictureOptions& options, const Address& address,
                           int64_t batch_size);

GatherRows row_batch(const at::Tensor& data, const at::Tensor& index);

}  // namespace dynloader

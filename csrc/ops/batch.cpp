// Operators that gather batches by index.
#include "batch.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checks.h"
#include "operators.h"
#include "run_on.h"

namespace dynloader {
namespace {

// So that all places in an image, and their differences, fit 32 bits.
constexpr int64_t kMostPixels = int64_t{1} << 24;

// Returns the index, contiguous.
at::Tensor check_index_of(const char* op, const at::Tensor& index, const at::Tensor& data) {
  const at::Tensor contiguous = check_index(op, "index", index, "data", data);
  check_indices(op, "index", contiguous, data.size(0));
  return contiguous;
}

uint64_t bits_of(double value, at::ScalarType dtype) {
  const at::Tensor pixel = at::full({1}, value, at::device(at::kCPU).dtype(dtype));
  uint64_t bits = 0;
  std::memcpy(&bits, pixel.const_data_ptr(), pixel.element_size());
  return bits;
}

}  // namespace

int64_t row_bytes(const at::Tensor& data) {
  return c10::multiply_integers(data.sizes().slice(1)) * static_cast<int64_t>(data.element_size());
}

GatherRows row_batch(const at::Tensor& data, const at::Tensor& index) {
  GatherRows call = {};
  call.index = index.const_data_ptr<int64_t>();
  call.batch_size = index.numel();
  call.rows = data.const_data_ptr();
  call.num_rows = data.size(0);
  call.row_bytes = row_bytes(data);
  return call;
}

ImageBatch image_batch(const char* op, const at::Tensor& images, const ImageOptions& options,
                       const Address& address, int64_t batch_size) {
  check_rows(op, "images", images);
  TORCH_CHECK_VALUE(images.dim() == 4, op,
                    ": images must have shape [n, channels, height, width], or with the channels "
                    "last, got ",
                    images.sizes());
  const int64_t sides[3] = {images.size(1), images.size(2), images.size(3)};
  const bool last = options.from_channels_last;
  const int64_t channels = sides[last ? 2 : 0];
  const int64_t height = sides[last ? 0 : 1];
  const int64_t width = sides[last ? 1 : 2];
  const int64_t padding = options.padding;
  check_count(op, "padding", padding, kMostPixels);
  TORCH_CHECK_VALUE(!options.is_reflected || padding == 0 || padding < std::min(height, width), op,
                    ": padding must be less than an image's sides, ", height, " and ", width,
                    ", where it is reflected, got ", padding);
  const int64_t crop_height = options.crop_height;
  const int64_t crop_width = options.crop_width;
  TORCH_CHECK_VALUE(1 <= crop_height && crop_height <= height + 2 * padding && 1 <= crop_width &&
                        crop_width <= width + 2 * padding,
                    op, ": the crop must be at most the padded image, ", height + 2 * padding,
                    " x ", width + 2 * padding, ", got ", crop_height, " x ", crop_width);
  TORCH_CHECK_VALUE(channels * (height + 2 * padding) * (width + 2 * padding) <= kMostPixels, op,
                    ": padded images must have at most ", kMostPixels, " pixels, got ", channels,
                    " x ", height + 2 * padding, " x ", width + 2 * padding);
  TORCH_CHECK_VALUE(0 <= options.flip_probability && options.flip_probability <= 1, op,
                    ": flip_probability must be in [0, 1], got ", options.flip_probability);
  check_count(op, "cutout", options.cutout, kMostPixels);

  ImageBatch batch = {};
  batch.dtype = images.scalar_type();
  GatherImages& call = batch.call;
  if (options.values.has_value()) {
    const at::Tensor& values = *options.values;
    check_dtype(op, "images", images, at::kByte);
    check_same_device(op, "values", values, "images", images);
    TORCH_CHECK_VALUE(values.dim() == 2 && values.size(0) == channels && values.size(1) == 256 &&
                          values.is_contiguous(),
                      op, ": values must have shape [", channels, ", 256] and be contiguous, got ",
                      values.sizes());
    TORCH_CHECK_TYPE(values.element_size() == 2 || values.element_size() == 4, op,
                     ": values must be of 2 or 4 bytes, got ", name_of(values.scalar_type()));
    batch.dtype = values.scalar_type();
    call.values = values.const_data_ptr();
    call.value_bytes = static_cast<int>(values.element_size());
  }
  const auto pixel_bytes = static_cast<int>(images.element_size());
  TORCH_CHECK_TYPE(pixel_bytes <= 8, op, ": images must have pixels of at most 8 bytes, got ",
                   name_of(images.scalar_type()));
  call.batch_size = batch_size;
  const auto small = [](int64_t x) { return static_cast<int32_t>(x); };
  call.rule = {small(channels),
               small(height),
               small(width),
               small(crop_height),
               small(crop_width),
               small(padding),
               small(options.cutout),
               static_cast<uint64_t>(std::llround(std::ldexp(options.flip_probability, 32))),
               options.is_reflected,
               options.flip_alternates};
  call.address = address;
  call.images = images.const_data_ptr();
  call.num_images = images.size(0);
  const auto strides = [channels](int64_t h, int64_t w, bool channels_last) {
    return channels_last ? PixelStrides{1, w * channels, channels} : PixelStrides{h * w, w, 1};
  };
  call.from = strides(height, width, last);
  call.to = strides(crop_height, crop_width, options.to_channels_last);
  call.pixel_bytes = pixel_bytes;
  call.fill = bits_of(options.fill, images.scalar_type());
  const int64_t sizes[4] = {batch_size, channels, crop_height, crop_width};
  const int64_t apart[4] = {channels * crop_height * crop_width, call.to.channel, call.to.row,
                            call.to.column};
  std::copy(sizes, sizes + 4, batch.sizes);
  std::copy(apart, apart + 4, batch.strides);
  return batch;
}

at::Tensor gather_rows(const at::Tensor& data, const at::Tensor& index, at::Tensor& faults) {
  check_rows("gather_rows", "data", data);
  const at::Tensor where = check_index_of("gather_rows", index, data);
  GatherRows call = row_batch(data, where);
  call.faults = check_faults("gather_rows", faults, "data", data);
  auto shape = data.sizes().vec();
  shape[0] = where.numel();
  at::Tensor batch = at::empty(shape, data.options());
  call.batch = batch.mutable_data_ptr();
  run_on(data.device(), call);
  mark_written(faults);
  return batch;
}

at::Tensor gather_images(const at::Tensor& images, const at::Tensor& index, at::Tensor& faults,
                         at::IntArrayRef crop, int64_t padding, bool is_reflected,
                         double flip_probability, bool flip_alternates, int64_t cutout, double fill,
                         const std::optional<at::Tensor>& values, bool from_channels_last,
                         bool to_channels_last, int64_t seed, int64_t epoch,
                         const EpochAt& epoch_at) {
  const char* op = "gather_images";
  TORCH_CHECK_VALUE(crop.size() == 2, op, ": crop must be a height and a width, got ", crop);
  const Address address = check_address(op, seed, epoch, epoch_at, images.device());
  const ImageOptions options = {crop[0],         crop[1], padding, is_reflected, flip_probability,
                                flip_alternates, cutout,  fill,    values,       from_channels_last,
                                to_channels_last};
  ImageBatch made = image_batch(op, images, options, address, index.numel());
  const at::Tensor where = check_index_of(op, index, images);
  made.call.index = where.const_data_ptr<int64_t>();
  made.call.faults = check_faults(op, faults, "data", images);
  at::Tensor batch =
      at::empty_strided(made.sizes, made.strides, images.options().dtype(made.dtype));
  made.call.batch = batch.mutable_data_ptr();
  run_on(images.device(), made.call);
  mark_written(faults);
  return batch;
}

}  // namespace dynloader

// Operators that gather batches by index.
#include "batch.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "operators.h"
#include "run_on.h"

namespace dynloader {
namespace {

// Keeps all places in an image, and their differences, within 32 bits.
constexpr int64_t kMostPixels = int64_t{1} << 24;
// Keeps a pixel times a factor within 32 bits.
constexpr double kMostFactor = 1e6;

uint64_t bits_of(double value, int32_t dtype) {
  uint64_t bits = 0;
  // Zero is zeros in every dtype.
  if (std::memcmp(&value, &bits, sizeof(value)) == 0) return bits;
  const Tensor pixel = empty_scalar(dtype, {codes.cpu, -1});
  check_torch(aoti_torch_aten_fill__Scalar(pixel.get(), value), "did not accept fill as a pixel");
  std::memcpy(&bits, pixel.data(), static_cast<size_t>(pixel.element_size()));
  return bits;
}

BoxRule check_resize(const char* op, const std::vector<double>& resize) {
  CHECK_VALUE(resize.size() == 5, op, ": resize must hold 5 numbers, got ", resize.size());
  CHECK_VALUE(0 < resize[0] && resize[0] <= resize[1] && resize[1] <= 1, op,
              ": scale must be two ascending numbers in (0, 1], got ", resize[0], " and ",
              resize[1]);
  CHECK_VALUE(std::isnormal(resize[2]) && 0 < resize[2] && resize[2] <= resize[3] &&
                  std::isfinite(resize[3]),
              op, ": ratio must be two ascending numbers in (0, inf), got ", resize[2], " and ",
              resize[3]);
  return {resize[0], resize[1], resize[2], resize[3], resize[4] != 0};
}

JitterRule check_jitter(const char* op, const std::vector<double>& jitter) {
  CHECK_VALUE(jitter.size() == 2 * kColorChanges, op, ": jitter must hold ", 2 * kColorChanges,
              " numbers, got ", jitter.size());
  JitterRule rule = {};
  const char* const names[kColorChanges] = {"brightness", "contrast", "saturation", "hue"};
  for (size_t j = 0; j < kColorChanges; ++j) {
    const double low = jitter[2 * j];
    const double high = jitter[2 * j + 1];
    const bool is_hue = j == kHue;
    const double least = is_hue ? -0.5 : 0.0;
    const double most = is_hue ? 0.5 : kMostFactor;
    CHECK_VALUE(least <= low && low <= high && high <= most, op, ": ", names[j],
                " must be two ascending numbers in [", least, ", ", most, "], got ", low, " and ",
                high);
    const double unchanged = is_hue ? 0.0 : 1.0;
    rule.low[j] = low;
    rule.high[j] = high;
    rule.is_used[j] = low != unchanged || high != unchanged;
  }
  return rule;
}

// A pixel of another dtype, or of another number of channels, has no such transform.
void check_bytes(const char* op, const char* what, const Tensor& images) {
  CHECK_TYPE(images.dtype() == codes.uint8, op, ": images must be uint8 to be ", what, ", got ",
             dtype_name(images.dtype()));
}

}  // namespace

int64_t row_bytes(const Tensor& data) {
  int64_t bytes = data.element_size();
  for (int64_t d = 1; d < data.dim(); ++d) bytes *= data.size(d);
  return bytes;
}

Tensor empty_rows(const Tensor& data, int64_t count) {
  std::array<int64_t, 8> few;
  std::vector<int64_t> many;
  int64_t* sizes = few.data();
  if (data.dim() > static_cast<int64_t>(few.size())) {
    many.resize(static_cast<size_t>(data.dim()));
    sizes = many.data();
  }
  std::copy(data.sizes().begin(), data.sizes().end(), sizes);
  sizes[0] = count;
  return empty_tensor({sizes, data.dim()}, data.dtype(), data.device());
}

GatherRows row_batch(const Tensor& data, const Tensor& index) {
  GatherRows call = {};
  call.index = index.data<int64_t>();
  call.batch_size = index.numel();
  call.rows = data.data();
  call.num_rows = data.size(0);
  call.row_bytes = row_bytes(data);
  return call;
}

ImageBatch image_batch(const char* op, const Tensor& images, const ImageOptions& options,
                       const Address& address, int64_t batch_size) {
  check_rows(op, "images", images);
  CHECK_VALUE(images.dim() == 4, op,
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
  CHECK_VALUE(!options.is_reflected || padding == 0 || padding < std::min(height, width), op,
              ": padding must be less than an image's sides, ", height, " and ", width,
              ", where it is reflected, got ", padding);
  const int64_t crop_height = options.crop_height;
  const int64_t crop_width = options.crop_width;
  const bool is_resized = !options.resize.empty();
  const bool is_jittered = !options.jitter.empty();
  if (is_resized) {
    check_bytes(op, "resized", images);
    CHECK_VALUE(padding == 0, op, ": padding must be 0 for images that are resized, got ", padding);
    CHECK_VALUE(1 <= crop_height && 1 <= crop_width &&
                    crop_height <= kMostPixels / crop_width / std::max<int64_t>(channels, 1),
                op, ": the size must be at least 1 x 1, and at most ", kMostPixels, " pixels, got ",
                crop_height, " x ", crop_width);
    CHECK_VALUE(height > 0 && width > 0, op, ": images must have pixels to be resized, got ",
                height, " x ", width);
  } else {
    CHECK_VALUE(1 <= crop_height && crop_height <= height + 2 * padding && 1 <= crop_width &&
                    crop_width <= width + 2 * padding,
                op, ": the crop must be at most the padded image, ", height + 2 * padding, " x ",
                width + 2 * padding, ", got ", crop_height, " x ", crop_width);
  }
  if (is_jittered) {
    check_bytes(op, "jittered", images);
    CHECK_VALUE(channels == 3, op, ": images must have 3 channels to be jittered, got ", channels);
  }
  CHECK_VALUE(channels * (height + 2 * padding) * (width + 2 * padding) <= kMostPixels, op,
              ": padded images must have at most ", kMostPixels, " pixels, got ", channels, " x ",
              height + 2 * padding, " x ", width + 2 * padding);
  CHECK_VALUE(0 <= options.flip_probability && options.flip_probability <= 1, op,
              ": flip_probability must be in [0, 1], got ", options.flip_probability);
  check_count(op, "cutout", options.cutout, kMostPixels);

  ImageBatch batch = {};
  batch.dtype = images.dtype();
  GatherImages& call = batch.call;
  if (options.values != nullptr) {
    const Tensor& values = *options.values;
    check_dtype(op, "images", images, codes.uint8);
    check_same_device(op, "values", values, "images", images);
    CHECK_VALUE(values.dim() == 2 && values.size(0) == channels && values.size(1) == 256 &&
                    values.is_contiguous(),
                op, ": values must have shape [", channels, ", 256] and be contiguous, got ",
                values.sizes());
    CHECK_TYPE(values.element_size() == 2 || values.element_size() == 4, op,
               ": values must be of 2 or 4 bytes, got ", dtype_name(values.dtype()));
    batch.dtype = values.dtype();
    call.values = values.data();
    call.value_bytes = static_cast<int>(values.element_size());
  }
  const auto pixel_bytes = static_cast<int>(images.element_size());
  CHECK_TYPE(pixel_bytes <= 8, op, ": images must have pixels of at most 8 bytes, got ",
             dtype_name(images.dtype()));
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
  call.images = images.data();
  call.num_images = images.size(0);
  const auto strides = [channels](int64_t h, int64_t w, bool channels_last) {
    return channels_last ? PixelStrides{1, w * channels, channels} : PixelStrides{h * w, w, 1};
  };
  call.from = strides(height, width, last);
  call.to = strides(crop_height, crop_width, options.to_channels_last);
  call.pixel_bytes = pixel_bytes;
  call.fill = bits_of(options.fill, images.dtype());
  call.is_resized = is_resized;
  if (is_resized) call.box = check_resize(op, options.resize);
  call.is_jittered = is_jittered;
  if (is_jittered) call.jitter = check_jitter(op, options.jitter);
  const int64_t sizes[4] = {batch_size, channels, crop_height, crop_width};
  const int64_t apart[4] = {channels * crop_height * crop_width, call.to.channel, call.to.row,
                            call.to.column};
  std::copy(sizes, sizes + 4, batch.sizes);
  std::copy(apart, apart + 4, batch.strides);
  return batch;
}

Tensor gather_rows(const Tensor& data, const Tensor& index, Tensor& faults) {
  check_rows("gather_rows", "data", data);
  const Contiguous where = check_index("gather_rows", "index", index, "data", data);
  GatherRows call = row_batch(data, *where);
  if (data.is_cpu()) {
    check_indices("gather_rows", "index", call.index, call.batch_size, call.num_rows);
  }
  call.faults = check_faults("gather_rows", faults, "data", data);
  Tensor batch = empty_rows(data, where->numel());
  call.batch = batch.mutable_data();
  run_on(data.device(), call);
  return batch;
}

Tensor gather_images(const Tensor& images, const Tensor& index, Tensor& faults,
                     const std::vector<int64_t>& crop, int64_t padding, bool is_reflected,
                     double flip_probability, bool flip_alternates, int64_t cutout, double fill,
                     const std::optional<Tensor>& values, bool from_channels_last,
                     bool to_channels_last, int64_t seed, int64_t epoch, const EpochAt& epoch_at,
                     const std::vector<double>& resize, const std::vector<double>& jitter) {
  const char* op = "gather_images";
  CHECK_VALUE(crop.size() == 2, op, ": crop must be a height and a width, got ",
              Extents{crop.data(), static_cast<int64_t>(crop.size())});
  const Address address = check_address(op, seed, epoch, epoch_at, images.device());
  const ImageOptions options = {crop[0],
                                crop[1],
                                padding,
                                is_reflected,
                                flip_probability,
                                flip_alternates,
                                cutout,
                                fill,
                                values ? &*values : nullptr,
                                from_channels_last,
                                to_channels_last,
                                resize,
                                jitter};
  ImageBatch made = image_batch(op, images, options, address, index.numel());
  const Contiguous where = check_index(op, "index", index, "data", images);
  check_indices(op, "index", *where, images.size(0));
  made.call.index = where->data<int64_t>();
  made.call.faults = check_faults(op, faults, "data", images);
  Tensor batch = empty_strided({made.sizes, 4}, {made.strides, 4}, made.dtype, images.device());
  made.call.batch = batch.mutable_data();
  run_on(images.device(), made.call);
  return batch;
}

std::tuple<Tensor, Tensor, Tensor> draw_mixtures(const Tensor& index, int64_t num_samples,
                                                 double alpha, bool cuts, int64_t height,
                                                 int64_t width, int64_t seed, int64_t epoch) {
  const char* op = "draw_mixtures";
  check_device(op, index.device());
  check_dtype(op, "index", index, codes.int64);
  check_vector(op, "index", index);
  check_contiguous(op, "index", index);
  check_between(op, "num_samples", num_samples, 1, kMaxSamples);
  check_between(op, "height", height, 1, kMostPixels);
  check_between(op, "width", width, 1, kMostPixels);
  CHECK_VALUE(std::isnormal(alpha) && 0 < alpha, op, ": alpha must be in (0, inf), got ", alpha);
  const Address address = check_address(op, seed, epoch, std::nullopt, index.device());
  const int64_t count = index.numel();
  DrawMixtures call = {};
  call.index = index.data<int64_t>();
  call.batch_size = count;
  call.rule = {num_samples, alpha, static_cast<int32_t>(height), static_cast<int32_t>(width), cuts};
  call.address = address;
  Tensor partners = empty_vector(count, codes.int64, index.device());
  Tensor shares = empty_vector(count, codes.float32, index.device());
  const int64_t sizes[2] = {cuts ? count : 0, 4};
  Tensor squares = empty_tensor({sizes, 2}, codes.int64, index.device());
  call.partners = partners.mutable_data<int64_t>();
  call.shares = shares.mutable_data<float>();
  if (cuts) call.squares = squares.mutable_data<int64_t>();
  run_on(index.device(), call);
  return {std::move(partners), std::move(shares), std::move(squares)};
}

}  // namespace dynloader

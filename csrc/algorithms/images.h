// Gathers the images of a batch. The view of each image is drawn while its pixels are copied.
#pragma once

#include <cstdint>

#include "../core/atomics.h"
#include "../core/compiler.h"
#include "calls.h"
#include "faults.h"
#include "gather.h"
#include "jitter.h"
#include "resize.h"

namespace dynloader {

// Conversions of a pixel: AsItIs copies it, LookUp replaces a byte by its value in a table.
template <class Pixel>
struct AsItIs {
  using From = Pixel;
  using To = Pixel;
  DYNLOADER_FN To operator()(int32_t /*channel*/, From pixel) const { return pixel; }
};
template <class Value>
struct LookUp {
  using From = uint8_t;
  using To = Value;
  const Value* values;
  DYNLOADER_FN To operator()(int32_t channel, From pixel) const {
    return values[256 * channel + pixel];
  }
};

template <class Convert>
struct CopyImage {
  using From = typename Convert::From;
  using To = typename Convert::To;

  GatherImages call;
  Convert convert;

  DYNLOADER_FN void fetch() { call.address.fetch(); }

  // Does part `part` of the `parts` into which the work on image j is split.
  DYNLOADER_FN void operator()(int64_t j, uint64_t /*place*/, int64_t part, int64_t parts) const {
    const ImageRule& rule = call.rule;
    const int64_t sample = call.index[j];
    const bool exists = static_cast<uint64_t>(sample) < static_cast<uint64_t>(call.num_images);
    if (!exists && part == 0) is_within<Shared>(sample, call.num_images, call.faults);
    const int64_t pixels = int64_t{rule.height} * rule.width * rule.channels;
    const From* image = static_cast<const From*>(call.images) + (exists ? sample : 0) * pixels;
    const int64_t rows = int64_t{rule.channels} * rule.crop_height;
    To* result = static_cast<To*>(call.batch) + j * rows * rule.crop_width;
    View view = View::draw(rule, call.address, sample);
    if (!exists) view.cut_all(rule);
    if (parts == 1) {
      for (int32_t channel = 0; channel < rule.channels; ++channel) {
        for (int32_t y = 0; y < rule.crop_height; ++y) {
          copy_row(view, channel, y, image, result);
        }
      }
    } else {
      copy_pixels(view, part, parts, rows * rule.crop_width, image, result);
    }
  }

 private:
  DYNLOADER_FN To filled(int32_t channel) const {
    return convert(channel, static_cast<From>(call.fill));
  }

  // The digits of a pixel's number in memory: x, y and channel, or channel, x and y if the channels
  // are adjacent.
  struct Digits {
    int32_t low, middle, high;
  };

  static DYNLOADER_FN Digits digits_of(int32_t number, int32_t lows, int32_t middles) {
    const int32_t above = number / lows;
    return {number % lows, above % middles, above / middles};
  }

  // Copies every parts-th pixel, by one thread of a GPU: adjacent threads write pixels that are
  // adjacent in memory. Adds to the digits of a pixel, because divisions take longer than the copy.
  // Reads some pixels before it writes the first of them, as CopyRow does.
  DYNLOADER_FN void copy_pixels(const View& view, int64_t part, int64_t parts, int64_t pixels,
                                const From* image, To* result) const {
    constexpr int kAtOnce = 4;
    const ImageRule& rule = call.rule;
    const bool is_channel_low = call.to.channel == 1;
    const int32_t lows = is_channel_low ? rule.channels : rule.crop_width;
    const int32_t middles = is_channel_low ? rule.crop_width : rule.crop_height;
    const Digits step = digits_of(static_cast<int32_t>(parts), lows, middles);
    Digits at = digits_of(static_cast<int32_t>(part), lows, middles);
    for (int64_t first = part; first < pixels; first += kAtOnce * parts) {
      From copied[kAtOnce];
      int32_t channels[kAtOnce];
      for (int j = 0; j < kAtOnce; ++j) {
        channels[j] = is_channel_low ? at.low : at.high;
        const int32_t y = is_channel_low ? at.high : at.middle;
        const int32_t x = is_channel_low ? at.middle : at.low;
        copied[j] = source_of(view, channels[j], y, x, image, first + j * parts < pixels);
        at.low += step.low;
        const int32_t is_low_full = at.low >= lows ? 1 : 0;
        at.low -= is_low_full * lows;
        at.middle += step.middle + is_low_full;
        const int32_t is_middle_full = at.middle >= middles ? 1 : 0;
        at.middle -= is_middle_full * middles;
        at.high += step.high + is_middle_full;
      }
      for (int j = 0; j < kAtOnce; ++j) {
        if (first + j * parts < pixels) result[first + j * parts] = convert(channels[j], copied[j]);
      }
    }
  }

  DYNLOADER_FN To pixel_at(const View& view, int32_t channel, int32_t y, int32_t x,
                           const From* image) const {
    return convert(channel, source_of(view, channel, y, x, image, true));
  }

  // Returns the pixel of the image, or the fill if there is none or `exists` is false.
  DYNLOADER_FN From source_of(const View& view, int32_t channel, int32_t y, int32_t x,
                              const From* image, bool exists) const {
    const ImageRule& rule = call.rule;
    int32_t row = y + view.top;
    int32_t column = view.x_step * x + view.left;
    const bool is_outside = !is_inside(row, rule.height) || !is_inside(column, rule.width);
    if (!exists || view.is_cut(y, x) || (is_outside && !rule.is_reflected)) {
      return static_cast<From>(call.fill);
    }
    // Leaves a place inside as it is.
    row = mirrored(row, rule.height);
    column = mirrored(column, rule.width);
    return image[channel * call.from.channel + row * call.from.row + column * call.from.column];
  }

  // Copies one row, by a CPU core, which would take longer to find the source of each pixel than to
  // copy it.
  DYNLOADER_FN void copy_row(const View& view, int32_t channel, int32_t y, const From* image,
                             To* result) const {
    const ImageRule& rule = call.rule;
    To* target = result + channel * call.to.channel + y * call.to.row;
    const int32_t width = rule.crop_width;
    const bool has_source = is_inside(y + view.top, rule.height);
    // The pixels [begin, end) have their source inside the image.
    const bool is_flipped = view.x_step < 0;
    int32_t begin = clamp(is_flipped ? view.left - rule.width + 1 : -view.left, width);
    int32_t end = clamp(is_flipped ? view.left + 1 : rule.width - view.left, width);
    if (!has_source) begin = end = width;
    for (int32_t x = 0; x < begin; ++x) {
      target[x * call.to.column] = pixel_at(view, channel, y, x, image);
    }
    if (begin < end) {
      const From* source = image + channel * call.from.channel + (y + view.top) * call.from.row +
                           (view.x_step * begin + view.left) * call.from.column;
      copy_span(channel, source, view.x_step * call.from.column, target + begin * call.to.column,
                end - begin);
    }
    for (int32_t x = end; x < width; ++x) {
      target[x * call.to.column] = pixel_at(view, channel, y, x, image);
    }
    if (!view.is_cut_row(y)) return;
    const To fill = filled(channel);
    const int32_t cut_end = clamp(view.cut_right, width);
    for (int32_t x = clamp(view.cut_left, width); x < cut_end; ++x) {
      target[x * call.to.column] = fill;
    }
  }

  // Passes the common strides as constants, so that the compiler knows them.
  DYNLOADER_FN void copy_span(int32_t channel, const From* source, int64_t step, To* target,
                              int32_t count) const {
    if (call.to.column == 1 && step == 1) {
      copy_span(channel, source, target, count, 1, 1);
    } else if (call.to.column == 1 && step == -1) {
      copy_span(channel, source, target, count, -1, 1);
    } else {
      copy_span(channel, source, target, count, step, call.to.column);
    }
  }
  DYNLOADER_FN void copy_span(int32_t channel, const From* source, To* target, int32_t count,
                              int64_t step, int64_t target_step) const {
    DYNLOADER_IN_ANY_ORDER
    for (int32_t x = 0; x < count; ++x)
      target[x * target_step] = convert(channel, source[x * step]);
  }

  static DYNLOADER_FN int32_t clamp(int32_t x, int32_t most) {
    return x < 0 ? 0 : x > most ? most : x;
  }
};

// Gathers images whose colors change: first the bytes, which are then changed and written.
template <class Backend, class Convert>
void gather_jittered(Backend& backend, const GatherImages& call, const Convert& convert) {
  const ImageRule& rule = call.rule;
  const int64_t size = int64_t{rule.crop_height} * rule.crop_width;
  auto* pixels = backend.template allocate<uint8_t>(call.batch_size * 3 * size);
  GatherImages bytes = call;
  bytes.rule.cutout = 0;
  bytes.to = {size, rule.crop_width, 1};
  bytes.batch = pixels;
  if (call.is_resized) {
    resize_images(backend, bytes, AsItIs<uint8_t>{});
  } else {
    backend.walk_shared(call.batch_size, 3 * size, InPlace{},
                        CopyImage<AsItIs<uint8_t>>{bytes, {}});
  }
  jitter_images(backend, call, pixels, convert);
}

template <class Backend, class Convert>
void gather_images(Backend& backend, const GatherImages& call, const Convert& convert) {
  if constexpr (sizeof(typename Convert::From) == 1) {
    if (call.is_jittered) return gather_jittered(backend, call, convert);
    if (call.is_resized) return resize_images(backend, call, convert);
  }
  const ImageRule& rule = call.rule;
  const int64_t pixels = int64_t{rule.channels} * rule.crop_height * rule.crop_width;
  backend.walk_shared(call.batch_size, pixels, InPlace{}, CopyImage<Convert>{call, convert});
}

template <class Backend>
void run(Backend& backend, const GatherImages& call) {
  if (call.values != nullptr) {
    if (call.value_bytes == 2) {
      return gather_images(backend, call,
                           LookUp<uint16_t>{static_cast<const uint16_t*>(call.values)});
    }
    return gather_images(backend, call,
                         LookUp<uint32_t>{static_cast<const uint32_t*>(call.values)});
  }
  switch (call.pixel_bytes) {
    case 1:
      return gather_images(backend, call, AsItIs<uint8_t>{});
    case 2:
      return gather_images(backend, call, AsItIs<uint16_t>{});
    case 4:
      return gather_images(backend, call, AsItIs<uint32_t>{});
    default:
      return gather_images(backend, call, AsItIs<uint64_t>{});
  }
}

}  // namespace dynloader

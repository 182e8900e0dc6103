// Changes the colors of a batch of images of bytes.
#pragma once

#include <cstdint>

#include "../core/atomics.h"
#include "../core/jitter.h"
#include "calls.h"
#include "gather.h"

namespace dynloader {

// Adjacent pixels of a row, held by one thread.
template <int32_t kSize>
struct ColorSpan {
  static constexpr int32_t kMost = kSize;
  float red[kSize], green[kSize], blue[kSize];

  DYNLOADER_FN Color at(int32_t x) const { return {red[x], green[x], blue[x]}; }
  DYNLOADER_FN void set(int32_t x, Color color) {
    red[x] = color.red;
    green[x] = color.green;
    blue[x] = color.blue;
  }
};

// What both passes share: the pixels [b, 3, height, width] without gaps, and what their images
// draw.
struct JitterSource {
  uint32_t used;  // a bit for each change
  ImageRule image;
  const uint8_t* pixels;
  const Jitter* jitters;
  int64_t* sums;  // of the gray of each image, before the change of contrast

  DYNLOADER_FN int64_t size() const { return int64_t{image.crop_height} * image.crop_width; }

  template <class Span>
  DYNLOADER_FN void load(int64_t j, int64_t first, int32_t count, Span& span) const {
    const uint8_t* red = pixels + j * 3 * size() + first;
    const uint8_t* green = red + size();
    const uint8_t* blue = green + size();
    for (int32_t x = 0; x < count; ++x) {
      span.set(x, {static_cast<float>(red[x]), static_cast<float>(green[x]),
                   static_cast<float>(blue[x])});
    }
  }

  // Applies the changes of image j up to that of the contrast, or all.
  template <class Span>
  DYNLOADER_FN void change_all(int64_t j, int32_t count, bool stops_at_contrast, Span& span) const {
    const Jitter& jitter = jitters[j];
    const float mean = stops_at_contrast ? 0.0f : mean_of(j);
    for (int k = 0; k < kColorChanges; ++k) {
      const ColorChange which = jitter.change(k);
      if ((used >> which & 1u) == 0) continue;
      if (stops_at_contrast && which == kContrast) return;
      change(which, jitter, mean, count, span);
    }
  }

 private:
  DYNLOADER_FN float mean_of(int64_t j) const {
    return static_cast<float>(static_cast<double>(sums[j]) / static_cast<double>(size()));
  }
};

struct DrawJitter {
  GatherImages call;
  Jitter* jitters;
  int64_t* sums;

  DYNLOADER_FN void fetch() { call.address.fetch(); }
  DYNLOADER_FN void operator()(int64_t j) const {
    jitters[j] = Jitter::draw(call.jitter, call.address, static_cast<uint64_t>(call.index[j]));
    sums[j] = 0;
  }
};

// Divides the rows of all images into spans for `Derived::process(j, first, count, span)`: long
// ones for a CPU core, single pixels for a thread of a GPU. A band is a few rows of one image.
struct JitterBands {
  static constexpr int32_t kRows = 8;
  static constexpr int32_t kSpan = 256;

  static DYNLOADER_FN int64_t bands_of(const ImageRule& image) {
    return (image.crop_height + kRows - 1) / kRows;
  }

  template <class Process>
  static DYNLOADER_FN void walk(const ImageRule& image, int64_t i, int64_t part, int64_t parts,
                                const Process& process) {
    const int64_t j = i / bands_of(image);
    const int64_t size = int64_t{image.crop_height} * image.crop_width;
    const int64_t rows = int64_t{kRows} * image.crop_width;
    const int64_t begin = i % bands_of(image) * rows;
    const int64_t end = size - begin < rows ? size : begin + rows;
    if (parts == 1) {
      ColorSpan<kSpan> span;
      for (int64_t first = begin; first < end; first += kSpan) {
        const int64_t left = end - first;
        process.process(j, first, static_cast<int32_t>(left < kSpan ? left : kSpan), span);
      }
    } else {
      ColorSpan<1> span;
      for (int64_t pixel = begin + part; pixel < end; pixel += parts) {
        process.process(j, pixel, 1, span);
      }
    }
  }
};

struct SumGray {
  JitterSource source;

  // Adds up the band in integers, so that the order does not matter.
  struct Sum {
    const JitterSource& source;
    int64_t& sum;
    template <class Span>
    DYNLOADER_FN void process(int64_t j, int64_t first, int32_t count, Span& span) const {
      source.load(j, first, count, span);
      source.change_all(j, count, true, span);
      int32_t here = 0;
      for (int32_t x = 0; x < count; ++x) here += byte_of(gray_of(span.at(x)));
      sum += here;
    }
  };

  DYNLOADER_FN void operator()(int64_t i, uint64_t /*place*/, int64_t part, int64_t parts) const {
    int64_t sum = 0;
    JitterBands::walk(source.image, i, part, parts, Sum{source, sum});
    Shared::fetch_add(source.sums + i / JitterBands::bands_of(source.image), sum);
  }
};

template <class Convert>
struct WriteJittered {
  using To = typename Convert::To;

  GatherImages call;
  Convert convert;
  JitterSource source;

  DYNLOADER_FN void fetch() { call.address.fetch(); }
  DYNLOADER_FN void operator()(int64_t i, uint64_t /*place*/, int64_t part, int64_t parts) const {
    const int64_t sample = call.index[i / JitterBands::bands_of(call.rule)];
    View view = View::draw_whole(call.rule, call.address, sample);
    if (static_cast<uint64_t>(sample) >= static_cast<uint64_t>(call.num_images)) {
      view.cut_all(call.rule);
    }
    JitterBands::walk(call.rule, i, part, parts, Write{*this, view});
  }

 private:
  struct Write {
    const WriteJittered& all;
    const View& view;
    template <class Span>
    DYNLOADER_FN void process(int64_t j, int64_t first, int32_t count, Span& span) const {
      all.source.load(j, first, count, span);
      all.source.change_all(j, count, false, span);
      all.write(j, first, count, view, span);
    }
  };

  template <class Span>
  DYNLOADER_FN void write(int64_t j, int64_t first, int32_t count, const View& view,
                          const Span& span) const {
    const ImageRule& image = call.rule;
    To* result = static_cast<To*>(call.batch) + j * 3 * source.size();
    auto y = static_cast<int32_t>(first / image.crop_width);
    auto column = static_cast<int32_t>(first % image.crop_width);
    const auto fill = static_cast<uint8_t>(call.fill);
    for (int32_t x = 0; x < count; ++x) {
      const Color color = span.at(x);
      const float channels[3] = {color.red, color.green, color.blue};
      const bool is_cut = view.is_cut(y, column);
      To* target = result + y * call.to.row + column * call.to.column;
      for (int32_t c = 0; c < 3; ++c) {
        const uint8_t byte = is_cut ? fill : byte_of(channels[c]);
        target[c * call.to.channel] = convert(c, byte);
      }
      if (++column == image.crop_width) {
        column = 0;
        ++y;
      }
    }
  }
};

// Writes the images in `pixels`, [batch_size, 3, crop_height, crop_width], with changed colors.
template <class Backend, class Convert>
void jitter_images(Backend& backend, const GatherImages& call, const uint8_t* pixels,
                   const Convert& convert) {
  auto* jitters = backend.template allocate<Jitter>(call.batch_size);
  auto* sums = backend.template allocate<int64_t>(call.batch_size);
  uint32_t used = 0;
  for (int j = 0; j < kColorChanges; ++j) used |= (call.jitter.is_used[j] ? 1u : 0u) << j;
  const JitterSource source = {used, call.rule, pixels, jitters, sums};
  const int64_t bands_of_one = JitterBands::bands_of(call.rule);
  const int64_t bands = call.batch_size * bands_of_one;
  const int64_t pixels_of_band = source.size() / bands_of_one;
  backend.for_each(call.batch_size, DrawJitter{call, jitters, sums});
  if (call.jitter.is_used[kContrast]) {
    backend.walk_shared(bands, pixels_of_band, InPlace{}, SumGray{source});
  }
  backend.walk_shared(bands, pixels_of_band, InPlace{},
                      WriteJittered<Convert>{call, convert, source});
}

}  // namespace dynloader

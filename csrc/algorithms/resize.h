// Resizes a part of each image of a batch: across first, then down, with bytes in between.
#pragma once

#include <cstdint>

#include "../core/atomics.h"
#include "../core/resize.h"
#include "calls.h"
#include "faults.h"
#include "gather.h"

namespace dynloader {

// The taps of all rows and columns of the results, for each image of the batch: as many for each
// row of an image, and for each column.
struct TapTable {
  int32_t* starts;    // first tap of each row, then of each column
  uint32_t* weights;  // of each row, then of each column
  int32_t rows, columns;
  int64_t room;  // for the weights of an image
  bool is_antialiased;

  template <class Backend>
  static TapTable allocate(Backend& backend, const GatherImages& call) {
    const ImageRule& rule = call.rule;
    TapTable table = {};
    table.rows = rule.crop_height;
    table.columns = rule.crop_width;
    table.is_antialiased = call.box.is_antialiased;
    // A smaller part than the image has fewer taps.
    table.room = int64_t{table.rows} * table.row_taps(rule.height) +
                 int64_t{table.columns} * table.column_taps(rule.width);
    table.starts = backend.template allocate<int32_t>(call.batch_size * table.places());
    table.weights = backend.template allocate<uint32_t>(call.batch_size * table.room);
    return table;
  }

  // The number of rows and columns.
  DYNLOADER_FN int64_t places() const { return int64_t{rows} + columns; }
  DYNLOADER_FN int32_t row_taps(int32_t height) const {
    return Taps::count(rows, height, is_antialiased);
  }
  DYNLOADER_FN int32_t column_taps(int32_t width) const {
    return Taps::count(columns, width, is_antialiased);
  }
};

// The taps of one image.
struct ImageTaps {
  int32_t *row_starts, *column_starts;
  uint32_t *row_weights, *column_weights;
  int32_t row_taps, column_taps;

  static DYNLOADER_FN ImageTaps of(const TapTable& table, const Box& box, int64_t j) {
    ImageTaps taps = {};
    taps.row_taps = table.row_taps(box.height);
    taps.column_taps = table.column_taps(box.width);
    taps.row_starts = table.starts + j * table.places();
    taps.column_starts = taps.row_starts + table.rows;
    taps.row_weights = table.weights + j * table.room;
    taps.column_weights = taps.row_weights + int64_t{table.rows} * taps.row_taps;
    return taps;
  }
};

struct DrawBox {
  GatherImages call;
  Box* boxes;

  DYNLOADER_FN void fetch() { call.address.fetch(); }
  DYNLOADER_FN void operator()(int64_t j) const {
    const int64_t sample = call.index[j];
    boxes[j] = {};
    if (!is_within<Shared>(sample, call.num_images, call.faults)) return;
    boxes[j] = Box::draw(call.box, call.rule.height, call.rule.width, call.address,
                         static_cast<uint64_t>(sample));
  }
};

struct FindTaps {
  GatherImages call;
  const Box* boxes;
  TapTable table;

  DYNLOADER_FN void fetch() { call.address.fetch(); }
  DYNLOADER_FN void operator()(int64_t i) const {
    const int64_t j = i / table.places();
    const int64_t place = i % table.places();
    const Box box = boxes[j];
    if (box.height == 0) return;
    const bool is_row = place < table.rows;
    const auto x = static_cast<int32_t>(is_row ? place : place - table.rows);
    const int32_t size = is_row ? table.rows : table.columns;
    const int32_t from_size = is_row ? box.height : box.width;
    const Taps taps = Taps::of(x, size, from_size, table.is_antialiased);
    // A flipped image has the columns of the other side.
    const View view = View::draw_whole(call.rule, call.address, call.index[j]);
    const int32_t target = is_row || view.x_step > 0 ? x : size - 1 - x;
    const ImageTaps all = ImageTaps::of(table, box, j);
    const int32_t count = is_row ? all.row_taps : all.column_taps;
    const int32_t start = taps.start(count, from_size);
    (is_row ? all.row_starts : all.column_starts)[target] = start + (is_row ? box.top : box.left);
    uint32_t* weights = (is_row ? all.row_weights : all.column_weights) + int64_t{target} * count;
    for (int32_t t = 0; t < count; ++t) weights[t] = taps.weight(start + t);
  }
};

// Adds up `count` weighted pixels. A count that the compiler knows takes no loop.
template <int kCount>
DYNLOADER_FN uint32_t weighted_sum(const uint8_t* pixels, int64_t step, const uint32_t* weights,
                                   int32_t count) {
  uint32_t sum = 0;
  for (int32_t t = 0; t < (kCount > 0 ? kCount : count); ++t) sum += weights[t] * pixels[t * step];
  return sum;
}

// Resizes one channel of a few rows of an image.
template <class Convert>
struct ResizeBand {
  using To = typename Convert::To;
  static constexpr int32_t kRows = 32;  // of a band
  // A strip of columns, and how many rows of it are kept after they were resized across.
  static constexpr int32_t kStrip = 256;
  static constexpr int32_t kKept = 32;

  GatherImages call;
  Convert convert;
  const Box* boxes;
  TapTable table;

  DYNLOADER_FN void fetch() { call.address.fetch(); }

  static DYNLOADER_FN int64_t bands_of(const ImageRule& rule) {
    return int64_t{rule.channels} * ((rule.crop_height + kRows - 1) / kRows);
  }

  DYNLOADER_FN void operator()(int64_t i, uint64_t /*place*/, int64_t part, int64_t parts) const {
    const ImageRule& rule = call.rule;
    const int64_t bands = bands_of(rule);
    const int64_t j = i / bands;
    const auto channel = static_cast<int32_t>(i % bands % rule.channels);
    const auto first = static_cast<int32_t>(i % bands / rule.channels * kRows);
    const int32_t last = rule.crop_height - first < kRows ? rule.crop_height : first + kRows;
    const int64_t sample = call.index[j];
    const bool exists = boxes[j].height > 0;
    const int64_t pixels = int64_t{rule.height} * rule.width * rule.channels;
    const uint8_t* image = static_cast<const uint8_t*>(call.images) +
                           (exists ? sample : 0) * pixels + channel * call.from.channel;
    To* result = static_cast<To*>(call.batch) +
                 j * rule.channels * rule.crop_height * rule.crop_width + channel * call.to.channel;
    View view = View::draw_whole(rule, call.address, sample);
    if (!exists) view.cut_all(rule);
    const ImageTaps taps = ImageTaps::of(table, boxes[j], j);
    if (parts == 1 && exists && taps.row_taps <= kKept) {
      for (int32_t left = 0; left < rule.crop_width; left += kStrip) {
        const int32_t width = rule.crop_width - left < kStrip ? rule.crop_width - left : kStrip;
        resize_strip(taps, view, channel, first, last, left, width, image, result);
      }
      return;
    }
    const int32_t width = rule.crop_width;
    const int32_t count = (last - first) * width;
    for (auto k = static_cast<int32_t>(part); k < count; k += static_cast<int32_t>(parts)) {
      const int32_t y = first + k / width;
      const int32_t x = k % width;
      result[y * call.to.row + x * call.to.column] =
          view.is_cut(y, x) ? filled(channel) : convert(channel, pixel_at(taps, y, x, image));
    }
  }

 private:
  DYNLOADER_FN To filled(int32_t channel) const {
    return convert(channel, static_cast<uint8_t>(call.fill));
  }

  // One pixel of the result, by one thread of a GPU.
  DYNLOADER_FN uint8_t pixel_at(const ImageTaps& taps, int32_t y, int32_t x,
                                const uint8_t* image) const {
    const uint32_t* down = taps.row_weights + int64_t{y} * taps.row_taps;
    const uint32_t* weights = taps.column_weights + int64_t{x} * taps.column_taps;
    const uint8_t* row =
        image + taps.row_starts[y] * call.from.row + taps.column_starts[x] * call.from.column;
    uint32_t sum = 0;
    for (int32_t t = 0; t < taps.row_taps; ++t) {
      sum += down[t] * weighted_byte(weighted_sum<0>(row + t * call.from.row, call.from.column,
                                                     weights, taps.column_taps));
    }
    return static_cast<uint8_t>(weighted_byte(sum));
  }

  // Rows [first, last) of a strip of columns, by a CPU core. A row of the image is resized across
  // once, and kept while it is needed.
  DYNLOADER_FN void resize_strip(const ImageTaps& taps, const View& view, int32_t channel,
                                 int32_t first, int32_t last, int32_t left, int32_t width,
                                 const uint8_t* image, To* result) const {
    uint8_t kept[kKept][kStrip];
    int32_t done = taps.row_starts[first];
    for (int32_t y = first; y < last; ++y) {
      const int32_t start = taps.row_starts[y];
      const uint32_t* down = taps.row_weights + int64_t{y} * taps.row_taps;
      if (done < start) done = start;
      for (; done < start + taps.row_taps; ++done) {
        resize_row(taps, left, width, image + done * call.from.row, kept[done % kKept]);
      }
      uint32_t sums[kStrip];
      for (int32_t x = 0; x < width; ++x) sums[x] = down[0] * kept[start % kKept][x];
      for (int32_t t = 1; t < taps.row_taps; ++t) {
        const uint8_t* pixels = kept[(start + t) % kKept];
        for (int32_t x = 0; x < width; ++x) sums[x] += down[t] * pixels[x];
      }
      To* target = result + y * call.to.row + left * call.to.column;
      DYNLOADER_IN_ANY_ORDER
      for (int32_t x = 0; x < width; ++x) {
        target[x * call.to.column] = convert(channel, static_cast<uint8_t>(weighted_byte(sums[x])));
      }
      if (!view.is_cut_row(y)) continue;
      for (int32_t x = 0; x < width; ++x) {
        if (view.is_cut(y, left + x)) target[x * call.to.column] = filled(channel);
      }
    }
  }

  DYNLOADER_FN void resize_row(const ImageTaps& taps, int32_t left, int32_t width,
                               const uint8_t* row, uint8_t* target) const {
    switch (taps.column_taps) {
      case 2:
        return resize_row<2>(taps, left, width, row, target);
      case 3:
        return resize_row<3>(taps, left, width, row, target);
      case 4:
        return resize_row<4>(taps, left, width, row, target);
      default:
        return resize_row<0>(taps, left, width, row, target);
    }
  }
  template <int kCount>
  DYNLOADER_FN void resize_row(const ImageTaps& taps, int32_t left, int32_t width,
                               const uint8_t* row, uint8_t* target) const {
    const int32_t* starts = taps.column_starts + left;
    const int32_t count = kCount > 0 ? kCount : taps.column_taps;
    const uint32_t* weights = taps.column_weights + int64_t{left} * count;
    const int64_t step = call.from.column;
    DYNLOADER_IN_ANY_ORDER
    for (int32_t x = 0; x < width; ++x) {
      target[x] = static_cast<uint8_t>(weighted_byte(
          weighted_sum<kCount>(row + starts[x] * step, step, weights + int64_t{x} * count, count)));
    }
  }
};

// Draws the boxes of a batch and finds the taps of its pixels. Then resizes.
template <class Backend, class Convert>
void resize_images(Backend& backend, const GatherImages& call, const Convert& convert) {
  auto* boxes = backend.template allocate<Box>(call.batch_size);
  const TapTable table = TapTable::allocate(backend, call);
  backend.for_each(call.batch_size, DrawBox{call, boxes});
  backend.for_each(call.batch_size * table.places(), FindTaps{call, boxes, table});
  using Band = ResizeBand<Convert>;
  const int64_t bands = Band::bands_of(call.rule);
  const int64_t pixels = int64_t{call.rule.channels} * call.rule.crop_height * call.rule.crop_width;
  backend.walk_shared(call.batch_size * bands, pixels / bands, InPlace{},
                      Band{call, convert, boxes, table});
}

}  // namespace dynloader

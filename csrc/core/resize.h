// Which part of an image is resized, and which of its pixels make up a pixel of the result.
#pragma once

#include <cmath>
#include <cstdint>

#include "arithmetic.h"
#include "compiler.h"
#include "random.h"

namespace dynloader {

// The distribution of the part that is resized.
struct BoxRule {
  double least_area, most_area;    // as fractions of the image
  double least_ratio, most_ratio;  // width / height
  bool is_antialiased;
};

// A part of an image.
struct Box {
  int32_t top, left, height, width;

  // Draws as torchvision's RandomResizedCrop does: up to ten times an area, and a ratio of which
  // the logarithm is uniform; then, if no box was inside the image, the largest one in its center
  // whose ratio is allowed.
  static DYNLOADER_FN Box draw(const BoxRule& rule, int32_t height, int32_t width, Address address,
                               uint64_t sample) {
    const double low = natural_log(rule.least_ratio);
    const double high = natural_log(rule.most_ratio);
    const double pixels = static_cast<double>(height) * static_cast<double>(width);
    for (uint64_t attempt = 0; attempt < 10; ++attempt) {
      const Words words = random_words(address, Purpose::kBox, (attempt << kSampleBits) | sample);
      const double area = pixels * random_between(words.word[0], rule.least_area, rule.most_area);
      const double ratio = exponential(random_between(words.word[1], low, high));
      const double box_width = nearest(sqrt(area * ratio));
      const double box_height = nearest(sqrt(area / ratio));
      if (1.0 <= box_width && box_width <= static_cast<double>(width) && 1.0 <= box_height &&
          box_height <= static_cast<double>(height)) {
        const auto h = whole_part(box_height);
        const auto w = whole_part(box_width);
        return {random_below(words.word[2], height - h + 1),
                random_below(words.word[3], width - w + 1), h, w};
      }
    }
    return central(rule, height, width);
  }

 private:
  // Samples that have an address of their own in every attempt.
  static constexpr int kSampleBits = 40;

  static DYNLOADER_FN double nearest(double x) { return floor(x + 0.5); }
  static DYNLOADER_FN int32_t at_least_1(double x) { return x < 1.0 ? 1 : whole_part(x); }

  static DYNLOADER_FN Box central(const BoxRule& rule, int32_t height, int32_t width) {
    const double ratio = static_cast<double>(width) / static_cast<double>(height);
    int32_t h = height;
    int32_t w = width;
    if (ratio < rule.least_ratio) {
      h = at_least_1(nearest(static_cast<double>(width) / rule.least_ratio));
    } else if (ratio > rule.most_ratio) {
      w = at_least_1(nearest(static_cast<double>(height) * rule.most_ratio));
    }
    return {(height - h) / 2, (width - w) / 2, h, w};
  }
};

// The pixels along one side that make up pixel x of `size` pixels, from `from_size` pixels, by
// linear interpolation. With antialiasing, a pixel of a smaller result is made of all pixels that
// it covers, as in Pillow and torch.
struct Taps {
  // Weights are integers, in units of 1 / kOne: then the order of a sum does not matter.
  static constexpr int kBits = 22;
  static constexpr double kOne = 4194304.0;

  double center, reach;
  int32_t first, end;  // at least one pixel
  double total;        // of the weights before they are integers

  static DYNLOADER_FN Taps of(int32_t x, int32_t size, int32_t from_size, bool is_antialiased) {
    const double scale = static_cast<double>(from_size) / static_cast<double>(size);
    Taps taps = {};
    taps.reach = is_antialiased && scale > 1.0 ? scale : 1.0;
    taps.center = scale * (static_cast<double>(x) + 0.5);
    const double first = taps.center - taps.reach + 0.5;
    const double end = taps.center + taps.reach + 0.5;
    taps.first = first < 0.0 ? 0 : whole_part(first);
    taps.end = end > static_cast<double>(from_size) ? from_size : whole_part(end);
    for (int32_t j = taps.first; j < taps.end; ++j) taps.total += taps.share(j);
    return taps;
  }

  // The number of taps with a weight, or more: the same for all pixels, which is faster to add up.
  static DYNLOADER_FN int32_t count(int32_t size, int32_t from_size, bool is_antialiased) {
    const bool covers = is_antialiased && from_size > size;
    const int64_t count = covers ? (2 * int64_t{from_size} + size - 1) / size : 2;
    return static_cast<int32_t>(count < from_size ? count : from_size);
  }

  // The first of `count` taps inside the image that include all with a weight. Rounding may have
  // added one tap, whose share is about 2^-52.
  DYNLOADER_FN int32_t start(int32_t count, int32_t from_size) const {
    const bool skips = end - first > count && share(first) < share(end - 1);
    const int32_t start = skips ? first + 1 : first;
    return start + count > from_size ? from_size - count : start;
  }

  // The weight of pixel j, which is 0 outside [first, end).
  DYNLOADER_FN uint32_t weight(int32_t j) const {
    if (j < first || j >= end) return 0;
    return static_cast<uint32_t>(whole_part(share(j) / total * kOne + 0.5));
  }

 private:
  DYNLOADER_FN double share(int32_t j) const {
    const double distance = (static_cast<double>(j) + 0.5 - center) / reach;
    const double share = 1.0 - (distance < 0.0 ? -distance : distance);
    return share < 0.0 ? 0.0 : share;
  }
};

// Rounds a weighted sum of bytes to a byte.
DYNLOADER_FN uint32_t weighted_byte(uint32_t sum) {
  const uint32_t rounded = (sum + (uint32_t{1} << (Taps::kBits - 1))) >> Taps::kBits;
  return rounded > 255 ? 255 : rounded;
}

}  // namespace dynloader

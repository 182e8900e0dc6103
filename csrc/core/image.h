// What becomes of one image: which of its pixels is where, all in whole numbers.
#pragma once

#include <cstdint>

#include "random.h"

namespace dynloader {

// What is drawn for each image, and from what.
struct ImageRule {
  int32_t channels, height, width;  // of an image
  int32_t crop_height, crop_width;  // of the result
  int32_t padding;                  // on every side, before the crop
  int32_t cutout;                   // side of the square that is filled in the result; 0: none
  uint64_t flip_below;              // flipped where 32 random bits are below
  bool is_reflected;                // the padding mirrors the image; or else it is filled
  bool alternates;                  // flipped every other epoch; flip_below decides of epoch 0
};

// A random integer in [0, count).
DYNLOADER_FN int32_t random_below(uint32_t word, int32_t count) {
  return static_cast<int32_t>((static_cast<uint64_t>(word) * static_cast<uint32_t>(count)) >> 32);
}

// What was drawn for one image: pixel (y, x) of the result is pixel (y + top, x_step * x + left)
// of the image, if that is inside of it.
struct View {
  int32_t top, left, x_step;
  int32_t cut_top, cut_bottom, cut_left, cut_right;  // [top, bottom) x [left, right)

  static DYNLOADER_FN View draw(const ImageRule& rule, Address address, int64_t sample) {
    const Words words = random_words(address, Purpose::kView, static_cast<uint64_t>(sample));
    const int32_t spare_height = rule.height + 2 * rule.padding - rule.crop_height;
    const int32_t spare_width = rule.width + 2 * rule.padding - rule.crop_width;
    const bool is_flipped = is_mirrored(rule, address, sample, words.word[2]);
    View view = {};
    view.top = random_below(words.word[0], spare_height + 1) - rule.padding;
    view.left = random_below(words.word[1], spare_width + 1) - rule.padding;
    if (is_flipped) view.left += rule.crop_width - 1;
    view.x_step = is_flipped ? -1 : 1;
    if (rule.cutout == 0) return view;
    // Around a pixel drawn from the result, cut off at its edges (DeVries and Taylor 2017).
    const Words cut = random_words(address, Purpose::kCutout, static_cast<uint64_t>(sample));
    view.cut_top = random_below(cut.word[0], rule.crop_height) - rule.cutout / 2;
    view.cut_left = random_below(cut.word[1], rule.crop_width) - rule.cutout / 2;
    view.cut_bottom = view.cut_top + rule.cutout;
    view.cut_right = view.cut_left + rule.cutout;
    return view;
  }

  // `word`: random bits of this epoch.
  static DYNLOADER_FN bool is_mirrored(const ImageRule& rule, Address address, int64_t sample,
                                       uint32_t word) {
    if (!rule.alternates) return word < rule.flip_below;
    const Words first =
        random_words({address.seed, 0}, Purpose::kView, static_cast<uint64_t>(sample));
    return (first.word[2] < rule.flip_below) != ((address.epoch & 1) != 0);
  }

  DYNLOADER_FN void cut_all(const ImageRule& rule) {
    cut_top = cut_left = 0;
    cut_bottom = rule.crop_height;
    cut_right = rule.crop_width;
  }
  DYNLOADER_FN bool is_cut_row(int32_t y) const { return cut_top <= y && y < cut_bottom; }
  DYNLOADER_FN bool is_cut(int32_t y, int32_t x) const {
    return is_cut_row(y) && cut_left <= x && x < cut_right;
  }
};

DYNLOADER_FN bool is_inside(int32_t place, int32_t size) {
  return static_cast<uint32_t>(place) < static_cast<uint32_t>(size);
}

// The edge itself is not repeated. For places less than `size` away from it.
DYNLOADER_FN int32_t mirrored(int32_t place, int32_t size) {
  const int32_t positive = place < 0 ? -place : place;
  return positive < size ? positive : 2 * (size - 1) - positive;
}

}  // namespace dynloader

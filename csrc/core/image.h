// How one image of a batch is cropped, flipped and cut out: which of its pixels goes where,
// computed in integers.
#pragma once

#include <cstdint>

#include "random.h"

namespace dynloader {

// The options from which each image's view is drawn.
struct ImageRule {
  int32_t channels, height, width;  // of the source image
  int32_t crop_height, crop_width;  // of the result
  int32_t padding;                  // added on every side before the crop
  int32_t cutout;                   // side of the square filled in the result; 0: none
  uint64_t flip_below;              // flips if 32 random bits are below this
  bool is_reflected;                // true: padding mirrors the image; false: padding is filled
  bool alternates;                  // flips every other epoch; flip_below decides for epoch 0
};

// The view drawn for one image: pixel (y, x) of the result is pixel (y + top, x_step * x + left) of
// the image, if that lies inside the image.
struct View {
  int32_t top, left, x_step;
  int32_t cut_top, cut_bottom, cut_left, cut_right;  // cutout: [top, bottom) x [left, right)

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
    view.draw_cut(rule, address, sample);
    return view;
  }

  // A result of the same size that was resized or copied before: only flip and cutout are drawn.
  static DYNLOADER_FN View draw_whole(const ImageRule& rule, Address address, int64_t sample) {
    const Words words = random_words(address, Purpose::kView, static_cast<uint64_t>(sample));
    View view = {};
    view.x_step = is_mirrored(rule, address, sample, words.word[2]) ? -1 : 1;
    view.draw_cut(rule, address, sample);
    return view;
  }

  // Centers the cutout on a random pixel of the result; the edges clip it (DeVries and Taylor
  // 2017).
  DYNLOADER_FN void draw_cut(const ImageRule& rule, Address address, int64_t sample) {
    if (rule.cutout == 0) return;
    const Words cut = random_words(address, Purpose::kCutout, static_cast<uint64_t>(sample));
    cut_top = random_below(cut.word[0], rule.crop_height) - rule.cutout / 2;
    cut_left = random_below(cut.word[1], rule.crop_width) - rule.cutout / 2;
    cut_bottom = cut_top + rule.cutout;
    cut_right = cut_left + rule.cutout;
  }

  // `word` holds random bits of the current epoch.
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

// Reflects `place` into [0, size) without repeating the edge pixel, from which `place` must be less
// than `size` pixels away.
DYNLOADER_FN int32_t mirrored(int32_t place, int32_t size) {
  const int32_t positive = place < 0 ? -place : place;
  return positive < size ? positive : 2 * (size - 1) - positive;
}

}  // namespace dynloader

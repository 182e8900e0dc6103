// Draws what the images of a batch are mixed with.
#pragma once

#include <cstdint>

#include "../core/mix.h"
#include "calls.h"

namespace dynloader {

struct DrawMixture {
  DrawMixtures call;

  DYNLOADER_FN void fetch() { call.address.fetch(); }
  DYNLOADER_FN void operator()(int64_t j) const {
    const Mixture mixture = Mixture::draw(call.rule, call.address, call.index[j]);
    call.partners[j] = mixture.partner;
    call.shares[j] = static_cast<float>(mixture.share);
    if (call.squares == nullptr) return;
    int64_t* square = call.squares + 4 * j;
    square[0] = mixture.top;
    square[1] = mixture.bottom;
    square[2] = mixture.left;
    square[3] = mixture.right;
  }
};

template <class Backend>
void run(Backend& backend, const DrawMixtures& call) {
  backend.for_each(call.batch_size, DrawMixture{call});
}

}  // namespace dynloader

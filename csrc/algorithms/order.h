// Any slice of the order of an epoch, computed on demand.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/permutation.h"
#include "../core/prefetch.h"
#include "calls.h"

namespace dynloader {

struct AllSamples {
  DYNLOADER_FN void ask_for(int64_t /*place*/) const {}
  DYNLOADER_FN int64_t operator()(uint64_t place) const { return static_cast<int64_t>(place); }
};

template <class Index>
struct SelectedSamples {
  const Index* selected;
  DYNLOADER_FN void ask_for(int64_t place) const { prefetch_to_read_later(selected + place); }
  DYNLOADER_FN int64_t operator()(uint64_t place) const {
    return static_cast<int64_t>(selected[place]);
  }
};

struct WalkFrom {
  int64_t n, first;
  Address address;
  Purpose purpose;
  Permutation permutation = {};
  DYNLOADER_FN void fetch() {
    address.fetch();
    permutation = Permutation::keyed(address, purpose, static_cast<uint64_t>(n));
  }
  DYNLOADER_FN uint64_t start(int64_t j) const { return static_cast<uint64_t>(first + j); }
  template <class Place>
  DYNLOADER_FN Place step(Place x) const {
    return permutation.step(x);
  }
  DYNLOADER_FN bool is_inside(uint64_t x) const { return permutation.is_inside(x); }
  DYNLOADER_FN uint64_t last_inside() const { return permutation.n - 1; }
  DYNLOADER_FN bool is_narrow() const { return permutation.is_narrow(); }
};

struct WalkBackFrom : WalkFrom {
  template <class Place>
  DYNLOADER_FN Place step(Place x) const {
    return permutation.step_back(x);
  }
};

DYNLOADER_FN WalkFrom walk_of(const Order& call) {
  return {call.n, call.start, call.address, call.purpose};
}

// Calls f(samples), where samples(place) is the sample at that place of the selection.
template <class F>
void with_samples(const Order& call, const F& f) {
  if (call.selected == nullptr) {
    f(AllSamples{});
  } else if (call.selected_is_int32) {
    f(SelectedSamples<int32_t>{static_cast<const int32_t*>(call.selected)});
  } else {
    f(SelectedSamples<int64_t>{static_cast<const int64_t*>(call.selected)});
  }
}

template <class Samples>
struct WriteOrder {
  Samples samples;
  int64_t* order;
  DYNLOADER_FN void ask_for(int64_t place) const { samples.ask_for(place); }
  DYNLOADER_FN void operator()(int64_t j, uint64_t place) const { order[j] = samples(place); }
};

template <class Backend>
void run(Backend& backend, const Order& call) {
  with_samples(call, [&](const auto& samples) {
    using Samples = std::decay_t<decltype(samples)>;
    backend.walk(call.stop - call.start, walk_of(call), WriteOrder<Samples>{samples, call.order});
  });
}

template <class Backend>
void run(Backend& backend, const Places& call) {
  const WalkBackFrom walk = {{call.n, call.start, call.address, call.purpose}};
  backend.walk(call.stop - call.start, walk, WriteOrder<AllSamples>{{}, call.places});
}

}  // namespace dynloader

// Gathers the rows of a batch. The order of the epoch is evaluated while the rows are copied, and
// no index is stored.
#pragma once

#include <cstdint>

#include "../core/atomics.h"
#include "calls.h"
#include "faults.h"
#include "order.h"

namespace dynloader {

// The widest unit of a copy.
struct alignas(16) SixteenBytes {
  uint64_t half[2];
};

template <class Samples, class Unit>
struct CopyRow {
  Samples samples;
  const Unit* rows;
  int64_t num_rows, units;  // units of one row
  Unit* batch;
  int64_t* faults;

  // Does part `part` of the `parts` into which the work on row j is split.
  DYNLOADER_FN void operator()(int64_t j, uint64_t place, int64_t part, int64_t parts) const {
    const int64_t sample = samples(place);
    const bool exists = static_cast<uint64_t>(sample) < static_cast<uint64_t>(num_rows);
    if (!exists && part == 0) is_within<Shared>(sample, num_rows, faults);  // which counts it
    const Unit* row = rows + (exists ? sample : 0) * units;
    Unit* target = batch + j * units;
    if (parts == 1 && exists && units > 0) {
      // On a CPU core, memcpy knows best how to copy a row. It must not be called for rows of no
      // bytes, because their address may be null.
      __builtin_memcpy(target, row, static_cast<size_t>(units) * sizeof(Unit));
      return;
    }
    // Some at once: each store could change what the next load reads, as far as compilers know.
    constexpr int64_t kAtOnce = 4;
    for (int64_t first = part; first < units; first += kAtOnce * parts) {
      Unit copied[kAtOnce];
      for (int64_t j = 0; j < kAtOnce; ++j) {
        const int64_t unit = first + j * parts;
        copied[j] = exists && unit < units ? row[unit] : Unit{};
      }
      for (int64_t j = 0; j < kAtOnce; ++j) {
        const int64_t unit = first + j * parts;
        if (unit < units) target[unit] = copied[j];
      }
    }
  }
};

// A walk that leaves every element in place.
struct InPlace {
  DYNLOADER_FN uint64_t start(int64_t j) const { return static_cast<uint64_t>(j); }
  template <class Place>
  DYNLOADER_FN Place step(Place x) const {
    return x;
  }
  DYNLOADER_FN bool is_inside(uint64_t /*x*/) const { return true; }
  DYNLOADER_FN uint64_t last_inside() const { return ~uint64_t{0}; }
  DYNLOADER_FN bool is_narrow() const { return false; }
};

template <class Unit, class Backend, class Call, class Walk, class Samples>
void copy_rows(Backend& backend, const Call& call, int64_t batch_size, const Walk& walk,
               const Samples& samples) {
  const auto units = call.row_bytes / int64_t{sizeof(Unit)};
  backend.walk_shared(
      batch_size, units, walk,
      CopyRow<Samples, Unit>{samples, static_cast<const Unit*>(call.rows), call.num_rows, units,
                             static_cast<Unit*>(call.batch), call.faults});
}

// Copies in the widest units that rows and addresses allow.
template <class Backend, class Call, class Walk, class Samples>
void copy_rows(Backend& backend, const Call& call, int64_t batch_size, const Walk& walk,
               const Samples& samples) {
  const auto alignment = reinterpret_cast<uintptr_t>(call.rows) |
                         reinterpret_cast<uintptr_t>(call.batch) |
                         static_cast<uintptr_t>(call.row_bytes);
  if (alignment % sizeof(SixteenBytes) == 0) {
    copy_rows<SixteenBytes>(backend, call, batch_size, walk, samples);
  } else if (alignment % sizeof(uint32_t) == 0) {
    copy_rows<uint32_t>(backend, call, batch_size, walk, samples);
  } else {
    copy_rows<uint8_t>(backend, call, batch_size, walk, samples);
  }
}

template <class Backend>
void run(Backend& backend, const Gather& call) {
  with_samples(call.order, [&](const auto& samples) {
    copy_rows(backend, call, call.order.stop - call.order.start, walk_of(call.order), samples);
  });
}

template <class Backend>
void run(Backend& backend, const GatherRows& call) {
  copy_rows(backend, call, call.batch_size, InPlace{}, SelectedSamples<int64_t>{call.index});
}

}  // namespace dynloader

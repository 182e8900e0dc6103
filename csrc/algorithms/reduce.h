// Reduces all losses of each sample in a batch to one. A hash table of the batch's size finds the
// entries of an index that name the same sample; one of them represents it, and collects its
// losses. Which one depends on the threads, but no result depends on which.
#pragma once

#include <cstdint>

#include "../core/atomics.h"
#include "../core/bits.h"
#include "../core/reduction.h"
#include "calls.h"
#include "load.h"

namespace dynloader {

// A table of entries of the index, at least half empty. A place holds the number of an entry plus
// 1, or 0.
struct SampleTable {
  uint32_t* places;  // [2^bits]
  int bits;

  static DYNLOADER_FN int bits_for(int64_t count) {
    int bits = 1;
    while ((int64_t{1} << bits) < 2 * count) ++bits;
    return bits;
  }
  DYNLOADER_FN int64_t size() const { return int64_t{1} << bits; }

  // Returns the entry that represents the sample of entry `row`, which may be `row` itself.
  template <class Access>
  DYNLOADER_FN uint32_t find(const int64_t* index, int64_t row) const {
    const uint32_t own = static_cast<uint32_t>(row) + 1;
    const uint64_t last = static_cast<uint64_t>(size()) - 1;
    for (uint64_t place = mixed_bits(static_cast<uint64_t>(index[row])) & last;;
         place = (place + 1) & last) {
      uint32_t there = Access::atomic_load(places + place);
      if (there == 0) {
        if (Access::compare_exchange(places + place, 0u, own)) return own - 1;
        there = Access::atomic_load(places + place);
      }
      if (index[there - 1] == index[row]) return there - 1;
    }
  }
};

// The working memory of a call.
struct Reducing {
  SampleTable table;
  uint32_t* representatives;   // [rows.count], for each entry
  LossSum* sums;               // [rows.count], used by those that represent a sample
  int64_t* totals;             // [2]: samples with losses, losses clamped
  uint32_t* has_wrong_offset;  // [1], after the places of the table
};

struct ClearWords {
  uint32_t* words;
  DYNLOADER_FN void operator()(int64_t i) const { words[i] = 0; }
};

DYNLOADER_FN int64_t offset_at(const LossRows& rows, int64_t i) {
  return rows.offsets_are_int32 ? int64_t{static_cast<const int32_t*>(rows.offsets)[i]}
                                : static_cast<const int64_t*>(rows.offsets)[i];
}

DYNLOADER_FN int64_t end_of_row(const LossRows& rows, int64_t row) {
  return rows.offsets == nullptr ? (row + 1) * rows.width : offset_at(rows, row + 1);
}

// Returns the row that holds a loss; the offsets must be right.
DYNLOADER_FN int64_t row_of_loss(const LossRows& rows, int64_t loss) {
  if (rows.offsets == nullptr) {
    // In 32 bits, which kMaxLosses allows: a GPU divides 64 bits by a call.
    return static_cast<uint32_t>(loss) / static_cast<uint32_t>(rows.width);
  }
  int64_t first = 0;
  int64_t last = rows.count - 1;
  while (first < last) {
    const int64_t middle = first + (last - first) / 2;
    if (end_of_row(rows, middle) <= loss) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first;
}

struct CheckOffset {
  ReduceByIndex call;
  uint32_t* has_wrong;
  DYNLOADER_FN void operator()(int64_t i) const {
    const int64_t offset = offset_at(call.rows, i);
    const bool starts = i > 0 ? offset >= offset_at(call.rows, i - 1) : offset == 0;
    if (starts && (i < call.rows.count || offset == call.num_losses)) return;
    Shared::fetch_or(has_wrong, 1u);
    if (call.faults == nullptr) return;
    Shared::fetch_add(call.faults, int64_t{1});
    Shared::raise_to(reinterpret_cast<uint64_t*>(call.faults + 1), static_cast<uint64_t>(offset));
  }
};

struct FindRepresentatives {
  const int64_t* index;
  Reducing work;
  // Adjacent entries often name the same sample.
  template <class Access>
  DYNLOADER_FN void stretch(int64_t begin, int64_t end) const {
    uint32_t found = 0;
    for (int64_t row = begin; row < end; ++row) {
      if (row == begin || index[row] != index[row - 1]) {
        found = work.table.find<Access>(index, row);
        if (static_cast<int64_t>(found) == row) work.sums[row] = {};
      }
      work.representatives[row] = found;
    }
  }
};

template <class Load>
struct AddLosses {
  ReduceByIndex call;
  Reducing work;
  Load load;
  bool is_right = true;
  DYNLOADER_FN void fetch() { is_right = *work.has_wrong_offset == 0; }

  // Adds up adjacent losses of a sample before other threads see the sum.
  template <class Access>
  DYNLOADER_FN void stretch(int64_t begin, int64_t end) const {
    if (!is_right) return;
    int64_t row = row_of_loss(call.rows, begin);
    int64_t end_of_this = end_of_row(call.rows, row);
    uint32_t sample = work.representatives[row];
    LossSum sum = {};
    for (int64_t j = begin; j < end;) {
      while (j >= end_of_this) end_of_this = end_of_row(call.rows, ++row);
      const uint32_t next = work.representatives[row];
      if (next != sample) {
        flush<Access>(sum, sample);
        sum = {};
        sample = next;
      }
#if !DYNLOADER_ON_GPU  // see add_all
      while (end_of_this < end && work.representatives[row + 1] == sample) {
        end_of_this = end_of_row(call.rows, ++row);
      }
#endif
      const int64_t stop = end_of_this < end ? end_of_this : end;
      add_all(sum, j, stop);
      j = stop;
    }
    flush<Access>(sum, sample);
  }

  DYNLOADER_FN void add_all(LossSum& sum, int64_t begin, int64_t end) const {
#if !DYNLOADER_ON_GPU  // whose threads have few losses each, and no vector instructions
    float losses[LossSum::kMost];
    while (call.mask == nullptr && end - begin >= LossSum::kFewest) {
      const int64_t count = end - begin < LossSum::kMost ? end - begin : LossSum::kMost;
      for (int64_t j = 0; j < count; ++j) losses[j] = load(call.losses, begin + j);
      sum.add_all(losses, count, call.reduction == Reduction::kMax);
      begin += count;
    }
#endif
    for (int64_t j = begin; j < end; ++j) add(sum, j);
  }

  DYNLOADER_FN void add(LossSum& sum, int64_t j) const {
    if (call.mask != nullptr && !call.mask[j]) return;
    sum.add(load(call.losses, j), call.reduction == Reduction::kMax);
  }

  template <class Access>
  DYNLOADER_FN void flush(const LossSum& sum, uint32_t sample) const {
    if (sum.count == 0) return;
    LossSum* place = work.sums + sample;
    Access::fetch_add(&place->count, sum.count);
    Access::raise_to(&place->highest, sum.highest);
    if (sum.high != 0) Access::fetch_add(&place->high, sum.high);
    if (sum.low != 0) Access::fetch_add(&place->low, sum.low);
    if (sum.unusual != 0) Access::fetch_add(&place->unusual, sum.unusual);
  }
};

// Writes the results of the entries that represent a sample, and adds up what is counted.
struct WriteReduced {
  ReduceByIndex call;
  Reducing work;
  DYNLOADER_FN void operator()(int64_t row, int64_t* totals) const {
    if (static_cast<int64_t>(work.representatives[row]) != row) return;
    const LossSum& sum = work.sums[row];
    call.reduced[row] = sum.reduced(call.reduction);
    call.counts[row] = sum.count;
    totals[0] += static_cast<int64_t>(sum.count > 0);
    totals[1] += sum.num_clamped();
  }
};

// Copies the results to the other entries.
struct CopyReduced {
  ReduceByIndex call;
  Reducing work;
  DYNLOADER_FN void operator()(int64_t row) const {
    const uint32_t sample = work.representatives[row];
    if (static_cast<int64_t>(sample) == row) return;
    call.reduced[row] = call.reduced[sample];
    call.counts[row] = call.counts[sample];
  }
};

struct FinishReducing {
  ReduceByIndex call;
  const int64_t* totals;
  DYNLOADER_FN void operator()() const {
    *call.num_samples = totals[0];
    if (call.num_clamped != nullptr) *call.num_clamped += totals[1];
  }
};

template <class Backend>
void run(Backend& backend, const ReduceByIndex& call) {
  const int64_t num_rows = call.rows.count;
  Reducing work = {};
  work.table.bits = SampleTable::bits_for(num_rows);
  work.table.places = backend.template allocate<uint32_t>(work.table.size() + 1);
  work.has_wrong_offset = work.table.places + work.table.size();
  work.representatives = backend.template allocate<uint32_t>(num_rows);
  work.sums = backend.template allocate<LossSum>(num_rows);
  work.totals = backend.template allocate<int64_t>(2);
  backend.for_each(work.table.size() + 1, ClearWords{work.table.places});
  if (call.rows.offsets != nullptr) {
    backend.for_each(num_rows + 1, CheckOffset{call, work.has_wrong_offset});
  }
  backend.in_stretches(num_rows, FindRepresentatives{call.index, work});
  with_load(call.loss_type, [&](auto load) {
    backend.in_stretches(call.num_losses, AddLosses<decltype(load)>{call, work, load});
  });
  backend.template accumulate<2>(num_rows, WriteReduced{call, work}, work.totals);
  backend.for_each(num_rows, CopyReduced{call, work});
  backend.once(FinishReducing{call, work.totals});
}

}  // namespace dynloader

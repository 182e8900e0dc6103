// Brackets the k-th largest key by looking at a few of the keys, so that all keys are read only
// once (Floyd and Rivest, "Expected time bounds for selection", CACM 1975).
#pragma once

#include <cstdint>

#include "../core/fetch.h"
#include "../core/selection_key.h"
#include "marks.h"

namespace dynloader {

// The state of one search, in the backend's memory.
struct Search {
  Threshold threshold;
  Bracket bracket;
  int64_t look_ranks[2];  // ranks of the ends of the bracket among the keys looked at
  uint64_t look_keys[2];  // keys with these ranks
  int64_t open_rank;      // rank of the threshold among the open keys
  uint64_t open_threshold;
  int64_t totals[2];  // as in Marks
  uint64_t first_kept;
};

DYNLOADER_FN int floor_log2(int64_t n) {
  int bits = 0;
  while ((int64_t{2} << bits) <= n) ++bits;
  return bits;
}

// Returns how many of n keys to look at: about n^(2/3), where looking costs as much as what it
// leaves open. Fewer if the scores do not fit the cache: a look waits for memory, a pass over all
// keys does not.
DYNLOADER_FN int64_t looks_at(int64_t n) {
  const int log2_n = floor_log2(n);
  const int wanted = (2 * log2_n + 1) / 3 + (log2_n < 22 ? 1 : -1);
  return int64_t{1} << (wanted < 11 ? 11 : wanted > 18 ? 18 : wanted);
}

DYNLOADER_FN int64_t integer_sqrt(int64_t x) {
  int64_t root = 0;
  for (int64_t bit = int64_t{1} << 31; bit > 0; bit >>= 1) {
    if ((root + bit) * (root + bit) <= x) root += bit;
  }
  return root;
}

// Returns slightly more than four standard deviations of a rank among `looks` keys, of which
// `above` are expected above it.
DYNLOADER_FN int64_t rank_margin(int64_t above, int64_t looks) {
  return integer_sqrt(16 * (above * (looks - above) / looks)) + 4;
}

// Returns the capacity of the list of open samples: twice the most that are expected, plus a tile,
// but at most n.
DYNLOADER_FN int64_t open_capacity(int64_t n, int64_t looks) {
  const int64_t margin = rank_margin(looks / 2, looks);
  const int64_t expected = (2 * margin + 2) * (n / looks + 1);
  const int64_t wanted = 2 * expected + Marks::kTile;
  return wanted < n ? wanted : n;
}

template <class Key>
struct KeyOf {
  Key key;
  DYNLOADER_FN void fetch() { dynloader::fetch(key, 0); }
  DYNLOADER_FN uint64_t operator()(int64_t i) const { return whole(key, i); }
};

// Looks at one sample in each of 2^log2_looks stretches of equal length, at a hashed place that no
// regular pattern of the scores follows. Which samples it looks at affects only the speed, not the
// result.
template <class Key>
struct LookAtKey {
  Key key;
  int64_t n;
  int log2_looks;
  DYNLOADER_FN void fetch() { dynloader::fetch(key, 0); }
  DYNLOADER_FN void ask_for(int64_t j) const { dynloader::ask_for(key, place(j), 0); }
  DYNLOADER_FN uint64_t operator()(int64_t j) const { return whole(j, key.high(place(j))); }

  // The number of the sample to look at.
  DYNLOADER_FN int64_t place(int64_t j) const {
    const uint64_t first = (static_cast<uint64_t>(j) * static_cast<uint64_t>(n)) >> log2_looks;
    const uint64_t length = static_cast<uint64_t>(n) >> log2_looks;
    return static_cast<int64_t>(first + ((mixed(j) * length) >> 32));
  }
  // The low half of a key is as good as random, so any random bits can stand in for it.
  static DYNLOADER_FN uint64_t whole(int64_t j, uint32_t high) {
    return (static_cast<uint64_t>(high) << 32) | (mixed(j) * 0xC2B2AE35u);
  }

 private:
  static DYNLOADER_FN uint32_t mixed(int64_t j) {
    uint32_t hash = static_cast<uint32_t>(j) * 0x9E3779B1u;
    hash ^= hash >> 15;
    return hash * 0x85EBCA77u;
  }
};

// Runs start(), which sets up the search, and chooses the ranks of the bracket's ends among the
// keys looked at.
template <class Start>
struct PlanBracket {
  Start start;
  Search* search;
  int64_t n, looks;
  DYNLOADER_FN void operator()() const {
    start();
    const double share = static_cast<double>(looks) / static_cast<double>(n);
    const auto above = static_cast<int64_t>(static_cast<double>(search->threshold.rank) * share);
    const int64_t margin = rank_margin(above < looks ? above : looks, looks);
    search->look_ranks[0] = above - margin;
    search->look_ranks[1] = above + margin + 1;
  }
};

struct SetBracket {
  Search* search;
  DYNLOADER_FN void operator()() const {
    search->bracket = {search->look_keys[1], search->look_keys[0], 1};
    search->totals[0] = search->totals[1] = 0;
  }
};

// Runs after marking: checks whether the threshold is among the open keys.
struct Locate {
  Search* search;
  int64_t open_capacity;
  DYNLOADER_FN void operator()() const {
    // After a hit, the threshold is settled, and the search by digits does nothing.
    const int64_t rank = search->threshold.rank - search->totals[0];
    const int64_t open = search->totals[1];
    const bool hit = 1 <= rank && rank <= open && open <= open_capacity;
    search->open_rank = hit ? rank : 0;
    search->threshold.settled = hit ? 1 : 0;
    search->bracket.is_active = hit ? 0 : 1;
  }
};

// Runs when the threshold is known. Running it twice changes nothing.
struct Conclude {
  Search* search;
  uint64_t beyond;  // 0: keep the threshold and all above it; 1: only what is above it
  DYNLOADER_FN void operator()() const {
    if (search->bracket.is_active == 0) search->threshold.prefix = search->open_threshold;
    search->first_kept = search->threshold.prefix + beyond;
    search->bracket.lower = search->bracket.upper = search->first_kept;
    if (search->bracket.is_active != 0) search->totals[0] = search->totals[1] = 0;
  }
};

}  // namespace dynloader

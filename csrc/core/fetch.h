// What a loop asks of a functor before its elements: to read the results of earlier calls, and to
// name the memory it will touch. Both are optional: a functor without the member is left alone.
#pragma once

#include <cstdint>

#include "compiler.h"

namespace dynloader {

// A functor reads the results of earlier calls from the backend's memory. Every loop calls fetch()
// once, before its first element: compilers would read them for each element, for the loop might
// change them. A functor that holds another must pass the call on.
template <class F>
DYNLOADER_FN auto fetch(F& f, int) -> decltype(f.fetch()) {
  f.fetch();
}
template <class F>
DYNLOADER_FN void fetch(F&, long) {}

template <class F>
DYNLOADER_FN F fetched(F f) {
  fetch(f, 0);
  return f;
}

// Prefetches the memory that f(i) will touch.
template <class F>
DYNLOADER_FN auto ask_for(const F& f, int64_t i, int) -> decltype(f.ask_for(i)) {
  f.ask_for(i);
}
template <class F>
DYNLOADER_FN void ask_for(const F&, int64_t, long) {}

}  // namespace dynloader

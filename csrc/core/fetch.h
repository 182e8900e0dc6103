// Hooks that a loop calls on a functor before its elements: fetch() reads the results of earlier
// steps, and ask_for(i) prefetches the memory of element i. Both are optional: without the member,
// the call does nothing.
#pragma once

#include <cstdint>

#include "compiler.h"

namespace dynloader {

// Lets the functor read the results of earlier steps from the backend's memory. Every loop calls
// fetch() once, before its first element: otherwise compilers would reload the results for each
// element, because the loop might change them. A functor that holds another must forward the call.
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

// Prefetches the memory that f(i) will touch; in a walk, the memory of place i.
template <class F>
DYNLOADER_FN auto ask_for(const F& f, int64_t i, int) -> decltype(f.ask_for(i)) {
  f.ask_for(i);
}
template <class F>
DYNLOADER_FN void ask_for(const F&, int64_t, long) {}

}  // namespace dynloader

// The one header that knows which compiler reads it. Everything else in core/ is plain C++17.
#pragma once

#include <cstdint>

// A function of one element. Forced inline, so that each translation unit compiles it for its own
// instruction set and no copy made for a newer processor can be linked into the baseline.
#ifdef __CUDACC__
#define DYNLOADER_FN __host__ __device__ __forceinline__
#else
#define DYNLOADER_FN inline __attribute__((always_inline))
#endif

// Before a loop over elements in any order: none reads what another writes, whatever the pointers
// say.
#if defined(__clang__)
#define DYNLOADER_IN_ANY_ORDER _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define DYNLOADER_IN_ANY_ORDER _Pragma("GCC ivdep")
#else
#define DYNLOADER_IN_ANY_ORDER
#endif

namespace dynloader {

// What a functor needs of the results of earlier calls lies in the backend's memory. Every loop
// reads it once, by fetch(), before its first element: compilers do not, for the loop might change
// it.
// A functor that holds another must pass it on: where there is no fetch(), none is called.
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

// Names memory that f(i) will read, where a functor can tell.
template <class F>
DYNLOADER_FN auto ask_for(const F& f, int64_t i, int) -> decltype(f.ask_for(i)) {
  f.ask_for(i);
}
template <class F>
DYNLOADER_FN void ask_for(const F&, int64_t, long) {}

// Asks for memory that will be read, or written, soon; a GPU has other threads to run meanwhile.
DYNLOADER_FN void prefetch_to_read([[maybe_unused]] const void* address) {
#ifndef __CUDA_ARCH__
  __builtin_prefetch(address, 0);
#endif
}
DYNLOADER_FN void prefetch_to_write([[maybe_unused]] const void* address) {
#ifndef __CUDA_ARCH__
  __builtin_prefetch(address, 1);
#endif
}

// Access to memory that other threads write to at the same time: relaxed, for only results that do
// not depend on the order are built on it.
struct Shared {
  // Returns the value before.
  static DYNLOADER_FN int64_t fetch_add(int64_t* address, int64_t value) {
#ifdef __CUDA_ARCH__
    return static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(address),
                                          static_cast<unsigned long long>(value)));
#else
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN int32_t fetch_add(int32_t* address, int32_t value) {
#ifdef __CUDA_ARCH__
    return atomicAdd(address, value);
#else
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN uint32_t fetch_or(uint32_t* address, uint32_t value) {
#ifdef __CUDA_ARCH__
    return atomicOr(address, value);
#else
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
#endif
  }

  // Each of these returns whether it was this call that changed the value.

  static DYNLOADER_FN bool compare_exchange(uint32_t* address, uint32_t expected,
                                            uint32_t desired) {
#ifdef __CUDA_ARCH__
    return atomicCAS(address, expected, desired) == expected;
#else
    return __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN bool compare_exchange(uint64_t* address, uint64_t expected,
                                            uint64_t desired) {
#ifdef __CUDA_ARCH__
    const auto want = static_cast<unsigned long long>(expected);
    return atomicCAS(reinterpret_cast<unsigned long long*>(address), want,
                     static_cast<unsigned long long>(desired)) == want;
#else
    return __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN uint64_t atomic_load(const uint64_t* address) {
#ifdef __CUDA_ARCH__
    return *reinterpret_cast<const volatile unsigned long long*>(address);
#else
    return __atomic_load_n(address, __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN uint32_t atomic_load(const uint32_t* address) {
#ifdef __CUDA_ARCH__
    return *reinterpret_cast<const volatile unsigned int*>(address);
#else
    return __atomic_load_n(address, __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN void raise_to(uint64_t* address, uint64_t value) {
#ifdef __CUDA_ARCH__
    atomicMax(reinterpret_cast<unsigned long long*>(address),
              static_cast<unsigned long long>(value));
#else
    uint64_t seen = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (seen < value && !__atomic_compare_exchange_n(address, &seen, value, true,
                                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
#endif
  }
};

// The same for one thread that has the memory to itself. A processor waits at every atomic until
// memory has answered; without them it asks for many samples at once.
struct Alone {
  template <class T>
  static DYNLOADER_FN T fetch_add(T* address, T value) {
    const T before = *address;
    *address = before + value;
    return before;
  }
  static DYNLOADER_FN uint32_t fetch_or(uint32_t* address, uint32_t value) {
    const uint32_t before = *address;
    *address = before | value;
    return before;
  }
  template <class T>
  static DYNLOADER_FN bool compare_exchange(T* address, T expected, T desired) {
    if (*address != expected) return false;
    *address = desired;
    return true;
  }
  template <class T>
  static DYNLOADER_FN T atomic_load(const T* address) {
    return *address;
  }
  static DYNLOADER_FN void raise_to(uint64_t* address, uint64_t value) {
    if (*address < value) *address = value;
  }
};

}  // namespace dynloader

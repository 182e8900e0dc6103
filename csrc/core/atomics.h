// How to access memory: Shared if other threads may write to it at the same time, Alone if not.
#pragma once

#include <cstdint>

#include "compiler.h"

namespace dynloader {

// For memory that other threads also write to. All operations are relaxed: no result depends on
// their order.
struct Shared {
  // fetch_add and fetch_or return the previous value.
  static DYNLOADER_FN int64_t fetch_add(int64_t* address, int64_t value) {
#if DYNLOADER_ON_GPU
    return static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(address),
                                          static_cast<unsigned long long>(value)));
#else
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN int32_t fetch_add(int32_t* address, int32_t value) {
#if DYNLOADER_ON_GPU
    return atomicAdd(address, value);
#else
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN uint32_t fetch_or(uint32_t* address, uint32_t value) {
#if DYNLOADER_ON_GPU
    return atomicOr(address, value);
#else
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
#endif
  }

  // compare_exchange returns whether this call changed the value.

  static DYNLOADER_FN bool compare_exchange(uint32_t* address, uint32_t expected,
                                            uint32_t desired) {
#if DYNLOADER_ON_GPU
    return atomicCAS(address, expected, desired) == expected;
#else
    return __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN bool compare_exchange(uint64_t* address, uint64_t expected,
                                            uint64_t desired) {
#if DYNLOADER_ON_GPU
    const auto want = static_cast<unsigned long long>(expected);
    return atomicCAS(reinterpret_cast<unsigned long long*>(address), want,
                     static_cast<unsigned long long>(desired)) == want;
#else
    return __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN uint64_t atomic_load(const uint64_t* address) {
#if DYNLOADER_ON_GPU
    return *reinterpret_cast<const volatile unsigned long long*>(address);
#else
    return __atomic_load_n(address, __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN uint32_t atomic_load(const uint32_t* address) {
#if DYNLOADER_ON_GPU
    return *reinterpret_cast<const volatile unsigned int*>(address);
#else
    return __atomic_load_n(address, __ATOMIC_RELAXED);
#endif
  }

  static DYNLOADER_FN void raise_to(uint64_t* address, uint64_t value) {
#if DYNLOADER_ON_GPU
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

// For memory that only one thread accesses. An atomic makes the processor wait until memory
// answers; without atomics, it loads many samples at once.
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

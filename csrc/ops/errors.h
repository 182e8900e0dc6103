// Raises Python's ValueError, IndexError, TypeError and RuntimeError. Torch translates standard
// exceptions, but none to TypeError or torch.OutOfMemoryError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace dynloader {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  ((out << parts), ...);
  return out.str();
}

// Raises a TypeError through the function that Python's module passed (library.cpp), or a
// RuntimeError without such a function.
[[noreturn]] void raise_type_error(const std::string& message);
// Raises torch.OutOfMemoryError in the same way.
[[noreturn]] void raise_out_of_memory(const std::string& message);

template <class Error, class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void raise(const Parts&... parts) {
  throw Error(text(parts...));
}

template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void raise_type(const Parts&... parts) {
  raise_type_error(text(parts...));
}

#define DYNLOADER_CHECK(condition, raise, ...)                              \
  do {                                                                      \
    if (__builtin_expect(!(condition), 0)) ::dynloader::raise(__VA_ARGS__); \
  } while (false)
#define CHECK_VALUE(condition, ...) \
  DYNLOADER_CHECK(condition, raise<std::invalid_argument>, __VA_ARGS__)
#define CHECK_INDEX(condition, ...) \
  DYNLOADER_CHECK(condition, raise<std::out_of_range>, __VA_ARGS__)
#define CHECK_TYPE(condition, ...) DYNLOADER_CHECK(condition, raise_type, __VA_ARGS__)
#define CHECK_STATE(condition, ...) \
  DYNLOADER_CHECK(condition, raise<std::runtime_error>, __VA_ARGS__)

}  // namespace dynloader

// Converts the stack of values that torch passes to an operator to the arguments of a C++ function,
// and back. Like TORCH_BOX, for tensors with one owner.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor.h"

namespace dynloader {

// Converts an argument, and takes ownership of what its value owns.
template <class T>
struct Argument {
  static T take(StableIValue value) { return torch::stable::detail::to<T>(value); }
};

template <>
struct Argument<Tensor> {
  static Tensor take(StableIValue value) {
    return Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
};

template <>
struct Argument<std::optional<Tensor>> {
  static std::optional<Tensor> take(StableIValue value) {
    const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
    if (!handle) return std::nullopt;
    return Tensor(*handle);
  }
};

template <>
struct Argument<Device> {
  // The high half holds the type, the low half the index.
  static Device take(StableIValue value) {
    const Device device = {static_cast<int32_t>(value >> 32), static_cast<int32_t>(value)};
    return device.is_cpu() ? Device{device.type, -1} : device;
  }
};

// Converts results.
inline StableIValue result_of(Tensor result) {
  return torch::stable::detail::from(result.release());
}
inline StableIValue result_of(int64_t result) { return torch::stable::detail::from(result); }
inline StableIValue result_of(std::vector<Tensor> results) {
  StableListHandle list = nullptr;
  check_torch(torch_new_list_reserve_size(results.size(), &list), "did not make a list");
  for (Tensor& result : results) {
    check_torch(torch_list_push_back(list, result_of(std::move(result))), "did not make a list");
  }
  return torch::stable::detail::from(list);
}

template <auto function>
struct Boxed;

template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct Boxed<function> {
  static void call(StableIValue* stack, uint64_t num_arguments, uint64_t) {
    CHECK_STATE(num_arguments == sizeof...(Arguments), "an operator of ", sizeof...(Arguments),
                " arguments was called with ", num_arguments);
    call_with(stack, std::index_sequence_for<Arguments...>{});
  }

 private:
  template <size_t... j>
  static void call_with(StableIValue* stack, std::index_sequence<j...>) {
    // Braces guarantee evaluation from the first to the last.
    std::tuple<std::decay_t<Arguments>...> arguments{
        Argument<std::decay_t<Arguments>>::take(stack[j])...};
    if constexpr (std::is_void_v<Result>) {
      std::apply(function, arguments);
    } else {
      give(stack, std::apply(function, arguments));
    }
  }

  template <class T>
  static void give(StableIValue* stack, T result) {
    stack[0] = result_of(std::move(result));
  }
  template <class... Ts>
  static void give(StableIValue* stack, std::tuple<Ts...> results) {
    std::apply([stack](Ts&... each) mutable { ((*stack++ = result_of(std::move(each))), ...); },
               results);
  }
};

}  // namespace dynloader

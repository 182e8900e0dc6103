// A torch tensor that uses only LibTorch's stable ABI: one build serves every torch from 2.11 on.
//
// torch::stable::Tensor calls torch for every property, every time, and allocates a separate
// reference count. A batch takes only a few microseconds, so each tensor here has one owner, and
// reads the properties that the checks need once.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <utility>

#include "errors.h"

namespace dynloader {

// Torch's numbers for devices and dtypes.
struct Codes {
  int32_t cpu = aoti_torch_device_type_cpu();
  int32_t cuda = aoti_torch_device_type_cuda();
  int32_t float32 = aoti_torch_dtype_float32();
  int32_t float64 = aoti_torch_dtype_float64();
  int32_t float16 = aoti_torch_dtype_float16();
  int32_t bfloat16 = aoti_torch_dtype_bfloat16();
  int32_t uint8 = aoti_torch_dtype_uint8();
  int32_t int16 = aoti_torch_dtype_int16();
  int32_t int32 = aoti_torch_dtype_int32();
  int32_t int64 = aoti_torch_dtype_int64();
  int32_t boolean = aoti_torch_dtype_bool();
};
extern const Codes codes;

// Returns the name in Python.
std::string dtype_name(int32_t dtype);

// Raises torch's own message if it is available, else "torch <what>".
[[noreturn]] void raise_torchs_error(const char* what);

// Raises if a call of the stable ABI failed; such calls do not throw.
inline void check_torch(AOTITorchError status, const char* what) {
  if (__builtin_expect(status != 0, 0)) raise_torchs_error(what);
}

struct Device {
  int32_t type;
  int32_t index;  // -1 on the CPU; -1 elsewhere means the current one

  bool is_cpu() const { return type == codes.cpu; }
  bool is_cuda() const { return type == codes.cuda; }
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
};

std::ostream& operator<<(std::ostream& out, Device device);

// Sizes or strides; the memory belongs to the tensor.
struct Extents {
  const int64_t* values;
  int64_t count;

  int64_t operator[](int64_t d) const { return values[d]; }
  const int64_t* begin() const { return values; }
  const int64_t* end() const { return values + count; }
};

std::ostream& operator<<(std::ostream& out, Extents extents);

class Tensor {
 public:
  Tensor() = default;
  // Takes ownership of the handle.
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) { read(); }
  // Takes ownership of a new CPU tensor with known properties, which saves calls of torch.
  Tensor(AtenTensorHandle handle, Extents sizes, int32_t dtype)
      : handle_(handle), dim_(sizes.count), dtype_(dtype), device_{codes.cpu, -1} {
    int64_t* own = nullptr;
    if (aoti_torch_get_sizes(handle_, &own) != 0) {
      reset();
      raise_torchs_error("did not return the sizes of a tensor");
    }
    set_sizes(own);
  }
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Tensor() { reset(); }

  // Returns a second handle of the same tensor.
  Tensor another() const {
    AtenTensorHandle handle = nullptr;
    check_torch(aoti_torch_new_tensor_handle(handle_, &handle), "gives no handle of a tensor");
    return Tensor(handle);
  }
  void reset() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(std::exchange(handle_, nullptr));
  }
  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }
  bool defined() const { return handle_ != nullptr; }

  int64_t dim() const { return dim_; }
  int64_t numel() const { return numel_; }
  int64_t size(int64_t d) const { return sizes_[d]; }
  Extents sizes() const { return {sizes_, dim_}; }
  Extents strides() const {
    int64_t* strides = nullptr;
    check_torch(aoti_torch_get_strides(handle_, &strides),
                "did not return the strides of a tensor");
    return {strides, dim_};
  }
  int32_t dtype() const { return dtype_; }
  int64_t element_size() const {
    return static_cast<int64_t>(aoti_torch_dtype_element_size(dtype_));
  }
  Device device() const { return device_; }
  bool is_cpu() const { return device_.is_cpu(); }
  bool is_contiguous() const {
    bool contiguous = false;
    check_torch(aoti_torch_is_contiguous(handle_, &contiguous),
                "did not return the layout of a tensor");
    return contiguous;
  }
  Tensor clone() const {
    AtenTensorHandle copy = nullptr;
    check_torch(aoti_torch_clone(handle_, &copy), "did not copy a tensor");
    return Tensor(copy);
  }

  template <class T = void>
  const T* data() const {
    const void* data = nullptr;
    check_torch(torch_get_const_data_ptr(handle_, &data), "did not return the memory of a tensor");
    return static_cast<const T*>(data);
  }
  template <class T = void>
  T* mutable_data() const {
    void* data = nullptr;
    check_torch(torch_get_mutable_data_ptr(handle_, &data),
                "did not return the memory of a tensor");
    return static_cast<T*>(data);
  }

 private:
  void swap(Tensor& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(sizes_, other.sizes_);
    std::swap(dim_, other.dim_);
    std::swap(numel_, other.numel_);
    std::swap(dtype_, other.dtype_);
    std::swap(device_, other.device_);
  }

  void read() {
    int64_t* sizes = nullptr;
    int32_t failed = aoti_torch_get_dim(handle_, &dim_);
    failed |= aoti_torch_get_sizes(handle_, &sizes);
    failed |= aoti_torch_get_dtype(handle_, &dtype_);
    failed |= aoti_torch_get_device_type(handle_, &device_.type);
    if (!device_.is_cpu()) failed |= aoti_torch_get_device_index(handle_, &device_.index);
    if (__builtin_expect(failed != 0, 0)) {
      reset();
      raise_torchs_error("did not return the properties of a tensor");
    }
    set_sizes(sizes);
  }

  void set_sizes(const int64_t* sizes) {
    sizes_ = sizes;
    numel_ = 1;
    for (int64_t d = 0; d < dim_; ++d) numel_ *= sizes_[d];
  }

  AtenTensorHandle handle_ = nullptr;
  const int64_t* sizes_ = nullptr;
  int64_t dim_ = 0;
  int64_t numel_ = 0;
  int32_t dtype_ = 0;
  Device device_ = {0, -1};
};

// Refers to a vector if it is contiguous, else holds a copy. The vector must outlive this object.
class Contiguous {
 public:
  Contiguous(const Tensor& vector)  // NOLINT: converts implicitly
      : copy_(vector.is_contiguous() ? Tensor() : vector.clone()),
        vector_(copy_.defined() ? copy_ : vector) {}
  Contiguous(const Contiguous&) = delete;
  Contiguous& operator=(const Contiguous&) = delete;

  const Tensor& operator*() const { return vector_; }
  const Tensor* operator->() const { return &vector_; }

 private:
  const Tensor copy_;
  const Tensor& vector_;
};

}  // namespace dynloader

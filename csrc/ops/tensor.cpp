#include "tensor.h"

#include <dlfcn.h>

namespace dynloader {

const Codes codes;

namespace {

struct Name {
  int32_t code;
  const char* name;
};

template <size_t count>
std::string name_in(const Name (&names)[count], int32_t code, const char* kind) {
  for (const Name& each : names) {
    if (each.code == code) return each.name;
  }
  return text(kind, " ", code);
}

}  // namespace

std::string dtype_name(int32_t dtype) {
  static const Name names[] = {
      {aoti_torch_dtype_float32(), "float32"},
      {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_float16(), "float16"},
      {aoti_torch_dtype_bfloat16(), "bfloat16"},
      {aoti_torch_dtype_uint8(), "uint8"},
      {aoti_torch_dtype_uint16(), "uint16"},
      {aoti_torch_dtype_uint32(), "uint32"},
      {aoti_torch_dtype_uint64(), "uint64"},
      {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_int16(), "int16"},
      {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_int64(), "int64"},
      {aoti_torch_dtype_bool(), "bool"},
      {aoti_torch_dtype_complex32(), "complex32"},
      {aoti_torch_dtype_complex64(), "complex64"},
      {aoti_torch_dtype_complex128(), "complex128"},
      {aoti_torch_dtype_float8_e5m2(), "float8_e5m2"},
      {aoti_torch_dtype_float8_e4m3fn(), "float8_e4m3fn"},
      {aoti_torch_dtype_float8_e5m2fnuz(), "float8_e5m2fnuz"},
      {aoti_torch_dtype_float8_e4m3fnuz(), "float8_e4m3fnuz"},
      {torch_dtype_float8_e8m0fnu(), "float8_e8m0fnu"},
      {torch_dtype_float4_e2m1fn_x2(), "float4_e2m1fn_x2"},
  };
  return name_in(names, dtype, "dtype");
}

std::ostream& operator<<(std::ostream& out, Device device) {
  static const Name names[] = {
      {aoti_torch_device_type_cpu(), "cpu"},
      {aoti_torch_device_type_cuda(), "cuda"},
      {aoti_torch_device_type_meta(), "meta"},
      {aoti_torch_device_type_xpu(), "xpu"},
      {aoti_torch_device_type_mps(), "mps"},
      {aoti_torch_device_type_privateuse1(), "privateuseone"},
  };
  out << name_in(names, device.type, "device");
  if (device.index >= 0) out << ":" << device.index;
  return out;
}

std::ostream& operator<<(std::ostream& out, Extents extents) {
  out << "[";
  for (int64_t d = 0; d < extents.count; ++d) out << (d > 0 ? ", " : "") << extents[d];
  return out << "]";
}

void raise_torchs_error(const char* what) {
  // Since 2.13, torch has a function that returns the message.
  using Message = const char* (*)();
  void* found = dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace");
  if (found != nullptr) {
    const std::string message = reinterpret_cast<Message>(found)();
    // Of torch's allocator; programs catch it to go on with less.
    if (message.find("CUDA out of memory") != std::string::npos) raise_out_of_memory(message);
    throw std::runtime_error(message);
  }
  throw std::runtime_error(text("torch ", what, "; its message is on the standard error"));
}

}  // namespace dynloader

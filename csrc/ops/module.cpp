// The Python module _C, which does not use torch: everything without tensors.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu_path.h"

namespace dynloader {
namespace {

namespace py = pybind11;

py::list names_of(const std::vector<CpuPath>& paths) {
  py::list names;
  for (const CpuPath path : paths) names.append(name_of(path));
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = DYNLOADER_VERSION;
  info["torch"] = DYNLOADER_TORCH;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["cpu_features_compiled"] = names_of(compiled_cpu_paths());
  info["cpu_features_available"] = names_of(available_cpu_paths());
  info["cpu_features_in_use"] = name_of(cpu_path());
  return info;
}

// Torch translates exceptions of pybind11, which has a TypeError.
void raise_type_error(const char* message) { throw py::type_error(message); }

// Torch calls set_error when it holds the interpreter's lock again.
class OutOfMemory : public py::builtin_exception {
 public:
  using py::builtin_exception::builtin_exception;
  void set_error() const override {
    py::set_error(py::module_::import("torch").attr("OutOfMemoryError"), what());
  }
};

void raise_out_of_memory(const char* message) { throw OutOfMemory(message); }

}  // namespace
}  // namespace dynloader

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native code of dynloader except for the operators in torch.ops.dynloader.";
  m.def("build_info", dynloader::build_info,
        "Returns what the native code was built with, and the CPU paths (scalar, avx2, avx512).\n\n"
        "Returns a dict: version; torch, the version built against; compiler;\n"
        "cpu_features_compiled, cpu_features_available on this machine, cpu_features_in_use.");
  m.attr("raise_type_error") = reinterpret_cast<uintptr_t>(&dynloader::raise_type_error);
  m.attr("raise_out_of_memory") = reinterpret_cast<uintptr_t>(&dynloader::raise_out_of_memory);
}

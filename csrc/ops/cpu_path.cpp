#include "cpu_path.h"

#include <cstdlib>
#include <stdexcept>

namespace dynloader {

std::string name_of(CpuPath path) {
  switch (path) {
    case CpuPath::kAvx512:
      return "avx512";
    case CpuPath::kAvx2:
      return "avx2";
    case CpuPath::kScalar:
      break;
  }
  return "scalar";
}

std::vector<CpuPath> compiled_cpu_paths() {
#if defined(__x86_64__)
  return {CpuPath::kScalar, CpuPath::kAvx2, CpuPath::kAvx512};
#else
  return {CpuPath::kScalar};
#endif
}

std::vector<CpuPath> available_cpu_paths() {
  std::vector<CpuPath> paths = {CpuPath::kScalar};
#if defined(__x86_64__)
  // Exactly the extensions that cpu_avx2.cpp and cpu_avx512.cpp enable.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  if (avx2) paths.push_back(CpuPath::kAvx2);
  if (avx512) paths.push_back(CpuPath::kAvx512);
#endif
  return paths;
}

namespace {

CpuPath choose() {
  const auto available = available_cpu_paths();
  const char* wanted = std::getenv("DYNLOADER_CPU");
  if (wanted == nullptr || *wanted == '\0') return available.back();
  std::string names;
  for (const CpuPath path : available) {
    if (name_of(path) == wanted) return path;
    names += (names.empty() ? "" : ", ") + name_of(path);
  }
  throw std::invalid_argument("DYNLOADER_CPU must be one of " + names + " on this machine, got " +
                              wanted);
}

}  // namespace

CpuPath cpu_path() {
  static const CpuPath path = choose();
  return path;
}

}  // namespace dynloader

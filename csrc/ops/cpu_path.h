// Which of the CPU instantiations runs on this machine.
#pragma once

#include <string>
#include <vector>

namespace dynloader {

enum class CpuPath { kScalar, kAvx2, kAvx512 };

// The best that the processor has, or the one that DYNLOADER_CPU names; settled at the first call.
CpuPath cpu_path();

std::string name_of(CpuPath path);

// The paths in this build that this processor can run.
std::vector<CpuPath> available_cpu_paths();

// Those in this build.
std::vector<CpuPath> compiled_cpu_paths();

}  // namespace dynloader

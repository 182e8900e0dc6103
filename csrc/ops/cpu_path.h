// Which of the CPU instantiations runs on this machine.
#pragma once

#include <string>
#include <vector>

namespace dynloader {

enum class CpuPath { kScalar, kAvx2, kAvx512 };

// Returns the best path that the processor supports, or the one that DYNLOADER_CPU names. Decided
// at the first call.
CpuPath cpu_path();

std::string name_of(CpuPath path);

// Returns the paths in this build that this processor can run.
std::vector<CpuPath> available_cpu_paths();

// Returns the paths in this build.
std::vector<CpuPath> compiled_cpu_paths();

}  // namespace dynloader

// The baseline of the architecture: runs on any x86-64 and on arm64.
#include "../algorithms/instantiate.h"
#include "cpu.h"

namespace dynloader {
DYNLOADER_INSTANTIATE(Cpu<Scalar>);
}  // namespace dynloader

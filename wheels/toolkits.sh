#!/usr/bin/env bash
# Installs the CUDA 12 and 13 compilers in a manylinux_2_28 container, and builds the library for CUDA 12 into
# dynloader/lib, from where every wheel takes it. The library for CUDA 13 is built with each wheel.
# Set as CIBW_BEFORE_ALL by .github/workflows/wheels.yml.
set -euo pipefail
cd "$(dirname "$0")/.."

case "$(uname -m)" in
  x86_64) repository=x86_64 ;;
  aarch64) repository=sbsa ;;
  *) echo "there is no CUDA for $(uname -m)" >&2; exit 1 ;;
esac
dnf -y install dnf-plugins-core
dnf config-manager --add-repo "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$repository/cuda-rhel8.repo"
dnf -y install cuda-{nvcc,cudart-devel}-{12-8,13-0}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
/opt/python/cp312-cp312/bin/python -m venv "$work/env"
"$work/env/bin/pip" install uv
"$work/env/bin/uv" pip install --python "$work/env/bin/python" --torch-backend=cu126 torch numpy "setuptools>=77" ninja
PATH=$work/env/bin:$PATH DYNLOADER_CUDA=1 CUDA_HOME=/usr/local/cuda-12.8 \
  "$work/env/bin/python" setup.py build_ext --inplace
# Each wheel builds these itself.
rm -f dynloader/_C.*.so dynloader/lib/libdynloader_cpu.so
test -s dynloader/lib/libdynloader_cuda12.so

#!/usr/bin/env bash
# Runs the tests marked `cuda` without a GPU, by a runner that executes the kernels' PTX.
#
#   tests/ptx.sh RUNNER [arguments of pytest]   from the root of a checkout, built with CUDA
#
# The runner looks for kernels in all files dynloader/_C*.so. In this build, the CUDA libraries contain the kernels and the
# module contains none. So the runner gets a tree of links to the same files, in which the libraries have such names, and the
# module is a package _C, which the runner does not search.
set -euo pipefail
runner=$(realpath "$1")
shift
export PYTHON=${PYTHON:-$PWD/.venv/bin/python}
suffix=$("$PYTHON" -c "import importlib.machinery; print(importlib.machinery.EXTENSION_SUFFIXES[0])")
tree=build/ptx
rm -rf "$tree"
mkdir -p "$tree/dynloader/_C"
git ls-files -z | xargs -0 cp --link --parents --no-dereference --target-directory="$tree"
cp --link --recursive dynloader/lib "$tree/dynloader/"
cp --link "dynloader/_C$suffix" "$tree/dynloader/_C/__init__$suffix"
for library in dynloader/lib/libdynloader_cuda*.so; do
  cp --link "$library" "$tree/dynloader/_C_${library##*_}"
done
cd "$tree"
exec bash "$runner" "$@"

#!/usr/bin/env bash
# Runs the tests marked `cuda` without a GPU, by a runner that executes the kernels' PTX.
#
#   tests/ptx.sh RUNNER [arguments of pytest]   from the root of a checkout, built with CUDA
#
# The runner finds the kernels in dynloader/_C*.so, all of which must have them. Here they are in the libraries for CUDA, and
# the module has none. So it gets a tree of links to the same files, where the libraries have such a name too, and the
# module is the package _C, which has none that the runner looks for.
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

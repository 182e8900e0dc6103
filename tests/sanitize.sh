#!/usr/bin/env bash
# The tests of the operations and of the feeder, with the native code for the CPU compiled under AddressSanitizer and
# UndefinedBehaviorSanitizer, and under ThreadSanitizer: sanitize.sh PYTHON. Nothing is suppressed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
# Of the rest, some measure memory, which a sanitizer multiplies, and some test torch's compiler or torchvision.
tests=$(ls tests/ops/test_ops_*.py tests/table/test_table.py tests/arrays/test_native_gather.py | grep -v -e ops_memory -e with_torch)

# Instrumented libraries need the runtime to be there before Python, and it needs to find where C++ throws.
runtime() {
  echo "$("${CXX:-g++}" -print-file-name="$1") $("${CXX:-g++}" -print-file-name=libstdc++.so.6)"
}

check() {
  local sanitizers=$1 lib=build/${1%%,*} but_for=$2
  shift 2
  echo "== $sanitizers"
  DYNLOADER_SANITIZE=$sanitizers DYNLOADER_CUDA=0 "$python" setup.py --quiet build --build-lib "$lib" > "$lib.log" 2>&1 \
    || { tail -n 40 "$lib.log"; exit 1; }
  # A library of its own, and not the one in this folder, which Python looks at first. What a sanitizer says before it ends
  # the process is to be seen, so pytest leaves the descriptors alone.
  env PYTHONPATH="$lib" "$@" "$python" -c "
import sys
sys.path.remove('')
import dynloader, pytest
assert '/$lib/' in dynloader.__file__, dynloader.__file__
sys.exit(pytest.main(['-q', '-rN', '--capture=sys', '-p', 'no:cacheprovider', '-k', 'not ($but_for)', *'''$tests'''.split()]))"
}

mkdir -p build
# Python frees not all that it has. A small stack trace for each allocation saves half of the time.
but_for="memory_stays or torchvisions"
# A thread that is in its allocator while another forks leaves the child without one.
check address,undefined "$but_for or fork" LD_PRELOAD="$(runtime libasan.so)" ASAN_OPTIONS=detect_leaks=0:malloc_context_size=5:quarantine_size_mb=16
# A forked process may not start threads here. What torch's own threads do is not instrumented.
# Where addresses are random, the runtime may find no room.
check thread "$but_for or fork" LD_PRELOAD="$(runtime libtsan.so)" TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 setarch -R

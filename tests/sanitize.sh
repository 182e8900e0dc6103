#!/usr/bin/env bash
# Runs the tests of the operations and of the feeder with the native code for the CPU compiled under AddressSanitizer and
# UndefinedBehaviorSanitizer, and at the same time under ThreadSanitizer. Usage: sanitize.sh PYTHON. Nothing is suppressed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
# Excludes tests that measure memory, which a sanitizer multiplies, and tests of torch's compiler or torchvision.
tests=$(ls tests/ops/test_ops_*.py tests/table/test_table.py tests/arrays/test_native_gather.py | grep -v -e ops_memory -e with_torch)

# Prints the libraries to preload: instrumented libraries need the sanitizer's runtime before Python starts, and the runtime needs
# libstdc++, to find where C++ throws.
runtime() {
  echo "$("${CXX:-g++}" -print-file-name="$1") $("${CXX:-g++}" -print-file-name=libstdc++.so.6)"
}

compile() {
  local sanitizers=$1 lib=build/${1%%,*}
  DYNLOADER_SANITIZE=$sanitizers DYNLOADER_CUDA=0 "$python" setup.py --quiet build --build-lib "$lib" > "$lib.log" 2>&1 \
    || { tail -n 40 "$lib.log"; exit 1; }
}

check() {
  local sanitizers=$1 lib=build/${1%%,*} but_for=$2
  shift 2
  # Tests the library in $lib, not the one in this folder, which Python would look at first. pytest does not capture file
  # descriptors, so that a sanitizer's report is seen when it ends the process.
  env PYTHONPATH="$lib" "$@" "$python" -c "
import sys
sys.path.remove('')
import dynloader, pytest
assert '/$lib/' in dynloader.__file__, dynloader.__file__
sys.exit(pytest.main(['-q', '-rN', '--capture=sys', '-p', 'no:cacheprovider', '-k', 'not ($but_for)', *'''$tests'''.split()]))"
}

mkdir -p build
compile address,undefined
compile thread
but_for="memory_stays or torchvisions"
# Python does not free all of its memory, so leaks are not detected. Short stack traces of allocations save half of the
# time. Tests that fork are left out: if one thread forks while another is in the allocator, the child cannot allocate.
check address,undefined "$but_for or fork" LD_PRELOAD="$(runtime libasan.so)" ASAN_OPTIONS=detect_leaks=0:malloc_context_size=5:quarantine_size_mb=16 \
  > build/address.log 2>&1 &
address=$!
trap 'kill "$address" 2> /dev/null || true' EXIT
echo "== thread"
# Under ThreadSanitizer, a forked process may not start threads, and torch's own threads are not instrumented. With
# randomized addresses, the runtime may find no room, hence setarch -R.
check thread "$but_for or fork" LD_PRELOAD="$(runtime libtsan.so)" TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 setarch -R
echo "== address,undefined"
result=0
wait "$address" || result=$?
cat build/address.log
exit $result

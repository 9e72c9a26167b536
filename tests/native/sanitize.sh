#!/bin/sh
# Builds the extension with address and undefined-behaviour checks in a scratch copy of the repository, and runs the
# kernel tests there: tests/native/sanitize.sh [pytest arguments]. The variable PYTHON names the interpreter.
set -eu
python=${PYTHON:-python}
root=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root/csrc" "$root/hyenarec_kernels" "$root/python" "$root/benchmarks" "$root/tests" "$root/setup.py" \
    "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$copy"
cd "$copy"
rm -f hyenarec_kernels/_C*.so
HYENAREC_CUDA_ARCHS="" HYENAREC_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1" \
    "$python" setup.py -q build_ext --inplace
test -f hyenarec_kernels/_C.abi3.so
# Leaks are not checked, because Python and torch keep memory until exit. Other libraries' alignment and interposition
# are not ours to check.
ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0 UBSAN_OPTIONS=print_stacktrace=1 \
    LD_PRELOAD="$(${CXX:-c++} -print-file-name=libasan.so) $(${CXX:-c++} -print-file-name=libubsan.so)" \
    PYTHONPATH="$copy:$copy/python" "$python" -m pytest -q -p no:cacheprovider "${@:-tests/kernels}"

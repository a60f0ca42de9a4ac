#!/usr/bin/env bash
# Threads and memory under test builds: bash .ci/sanitizers.sh [python with the test dependencies]
#
# Builds copies of this checkout with one instruction set, elsewhere, and runs
#   - every hand-over between threads delayed by seeds, in exact memory (tests/chaos);
#   - part of that under ThreadSanitizer;
#   - tests of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in exact memory.
# Needs GCC. CYLSTM_SEEDS says how many seeds the first runs (default 1000). About six minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
py=$(command -v "${1:-${PYTHON:-python3}}")
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
case $(uname -m) in
aarch64 | arm64) isa=neon ;;
*) isa=$(grep -qw avx512vl /proc/cpuinfo && echo avx512 || echo avx2) ;;
esac
export PYTHONDONTWRITEBYTECODE=1
# Those of a virtual environment may be missing, or too old to build with.
"$py" -m pip install -qq --target "$scratch/tools" cython setuptools

# A copy named $1, built with the checks $2, and the compiler's options $3.
build() {
    mkdir "$scratch/$1"
    cp -r setup.py pyproject.toml README.md LICENSE src tests "$scratch/$1"
    find "$scratch/$1/src" -name '*.so' -delete
    (cd "$scratch/$1" &&
        PYTHONPATH=$scratch/tools CYLSTM_CHECKS=$2 CYLSTM_CFLAGS_OPT=$3 CYLSTM_BUILD_ISA=$isa \
            "$py" setup.py -q build_ext --inplace -j2 >build.log 2>&1) ||
        { cat "$scratch/$1/build.log"; exit 1; }
}

wrapper=()

# pytest on the copy named $1, with the words before "--" in its environment.
check() {
    local copy=$scratch/$1 settings=()
    shift
    while [ "$1" != -- ]; do
        settings+=("$1")
        shift
    done
    shift
    (cd "$copy" && "${wrapper[@]}" env PYTHONPATH="$copy/src" "${settings[@]}" \
        "$py" -m pytest -q -p no:cacheprovider "$@")
}

libraries() {
    local name
    for name; do gcc -print-file-name="$name"; done | paste -sd' '
}

chaos() {
    build chaos chaos,exact -O2
    check chaos CYLSTM_SEEDS="${CYLSTM_SEEDS:-1000}" -- tests/chaos
}

# Only the threads' own tests: it is twenty times slower, and knows nothing of forks.
thread() {
    build thread chaos,thread -O1
    wrapper=(setarch -R) # which this sanitizer needs: no random addresses
    check thread CYLSTM_SEEDS=30 LD_PRELOAD="$(libraries libtsan.so)" \
        TSAN_OPTIONS="suppressions=$root/tests/chaos/tsan.supp exitcode=66" -- \
        tests/chaos/test_chaos.py -k "bits or checkpoints or share or used_again or loses or pauses"
}

address() {
    build address exact,address -O1
    check address LD_PRELOAD="$(libraries libasan.so libubsan.so libstdc++.so.6)" \
        PYTHONMALLOC=malloc UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
        ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 -- \
        tests/test_{native,bits,steps,sequences,plans,threads}.py \
        tests/test_variants.py -k "not float32 and not forked_child"
}

# Two at a time, as long as there are two processors.
(address) >"$scratch/address.log" 2>&1 &
beside=$!
failed=0
for part in thread chaos; do
    echo "=== $part"
    ($part) || failed=1
done
echo "=== address"
wait "$beside" || failed=1
cat "$scratch/address.log"
exit "$failed"

#!/usr/bin/env bash
# Everything that is tested, from a fresh checkout on Debian: installs what is missing, builds, runs. 40 minutes on
# two cores. One line a step; what a failed step printed follows it, and all of it is in build-test/logs.
#     tests/run.sh [STEP ...]     all steps, or those named
set -u
cd "$(dirname "$0")/.." || exit 1
build=build-test
sanitized=build-sanitize
logs=$build/logs
mkdir -p "$logs"
passed=0
failed=0
skipped=0
steps=("$@")

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

step() { # NAME, COMMAND...
    local name=$1 began=$SECONDS status=0
    shift
    if [ ${#steps[@]} -gt 0 ] && [[ ! " ${steps[*]} " == *" $name "* ]]; then
        return 0
    fi
    "$@" >"$logs/$name" 2>&1 </dev/null || status=$?
    if [ $status -eq 0 ]; then
        passed=$((passed + 1))
        printf 'ok      %-10s %4d s\n' "$name" $((SECONDS - began))
    elif [ $status -eq 77 ]; then # this machine cannot; the last line says why
        skipped=$((skipped + 1))
        printf 'skipped %-10s %4d s, %s\n' "$name" $((SECONDS - began)) "$(sed -n '$s/^skipped: //p' "$logs/$name")"
    else
        failed=$((failed + 1))
        printf 'FAILED  %-10s %4d s, exit status %d\n' "$name" $((SECONDS - began)) "$status"
        tail -n 60 "$logs/$name"
    fi
    return $status
}

install_packages() {
    .ci/install gcc g++ binutils make cmake meson ninja-build pkg-config libcriterion-dev libopenmpi-dev openmpi-bin \
        libopenblas-pthread-dev libcairo2-dev clang libclang-rt-dev clang-format patch git python3 iproute2 \
        doxygen groff-base
}

configure() { # DIR, OPTIONS...
    [ -e "$1/build.ninja" ] || meson setup "$@"
}

build_all() {
    configure "$build" -Dwerror=true --prefix="$PWD/$build/prefix" &&
        ninja -C "$build" -j 2
}

unit() {
    meson test -C "$build" --print-errorlogs --num-processes 1
}

# The unit tests under the address and undefined-behaviour sanitizers. Criterion passes a test that leaked, so its output
# is searched for that.
sanitize() {
    configure "$sanitized" -Db_sanitize=address,undefined -Db_lundef=false -Dbuildtype=debugoptimized \
        -Dc_args=-fno-sanitize-recover=all -Dcuda=disabled &&
        ninja -C "$sanitized" -j 2 &&
        LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp meson test -C "$sanitized" --print-errorlogs --num-processes 2 -t 5 --no-suite mpi || return 1
    ! grep -nE 'LeakSanitizer|runtime error|AddressSanitizer' "$sanitized/meson-logs/testlog.txt" || return 1
    [ -e "$sanitized/tests/peer-worker" ] || return 0
    # MPI leaks, and so does what tests/peer/device.c keeps for streams and events.
    local test
    for test in 'peer-worker hops' 'peer-worker rounds 3' 'peer-worker absent' \
        'peer-check --backend cuda --transport peer --timeout 60 --random 15'; do
        # shellcheck disable=SC2086 # words
        ASAN_OPTIONS=detect_leaks=0 timeout 200 mpirun --oversubscribe -n 3 "$sanitized/tests/"$test || return 1
    done
}

# Mask texts and problems from bytes for a minute, under the same sanitizers. Starts from the words of masks, from drawn
# masks and from those that once were hard to get at. A fuzzer that the reader always turns back finds nothing, so masks that
# parse are counted.
fuzz() {
    local dir=build-fuzz sources parsed
    mapfile -t sources < <(git ls-files --cached --others --exclude-standard 'src/*.c' | grep -vE '/(choose|forecast|model|part|plan|plan_ask|ring|schedule|share|slots|trace)\.c$')
    rm -rf "$dir/corpus"
    mkdir -p "$dir/corpus"
    clang -std=c11 -D_GNU_SOURCE -O2 -g -Wall -Wextra -Werror -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        -Iinclude -I. "${sources[@]}" kernels/cpu/number.c examples/tools/problem.c tests/brute.c tests/fuzz/fuzz_mask.c -lm \
        -o "$dir/fuzz_mask" || return 1
    "$dir/fuzz_mask" -seed=1 -max_total_time=60 -timeout=10 -rss_limit_mb=2048 -max_len=4096 -len_control=0 \
        -dict=tests/fuzz/mask.dict -artifact_prefix="$dir/" -verbosity=0 "$dir/corpus" tests/fuzz/seeds 2>&1 | tee "$dir/log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
    parsed=$(sed -n 's/^fuzz_mask: .* inputs, \([0-9]*\) of them masks that parse$/\1/p' "$dir/log")
    [ "${parsed:-0}" -ge 3000 ]
}

# The example of a stack, against what is installed.
megatron() {
    meson install -C "$build" >/dev/null && tests/megatron.sh cpu "$PWD/$build/prefix"
}

# Ranks that are killed, held up, absent or execute another plan.
rank_faults() {
    [ -x "$build/tests/peer-rank-faults" ] || { echo 'skipped: built without headers of CUDA and NCCL'; return 77; }
    BUILD=$PWD/$build tests/gpu/faults.sh 60 1 threads
}

format() {
    local off=0
    for file in $(git ls-files '*.c' '*.h' '*.cu' '*.cpp' '*.hpp'); do
        clang-format --dry-run -Werror "$file" || off=1
    done
    return $off
}

began=$SECONDS
step packages install_packages || exit 1
step build build_all || exit 1
step format format
step structure tests/structure.sh "$build"
step unit unit
step ranks rank_faults
step installed tests/installed.sh "$build"
step docs tests/docs.sh "$build"
step forecast tests/forecast.sh "$build"
step megatron megatron
step train tests/train.sh "$build/examples/train/hra-train"
step scaling tests/scaling.sh "$build"
step nodes tests/nodes.sh "$build"
step sanitize sanitize
step sm90 tests/sm90/run.sh
step fuzz fuzz
step faults tests/faults.sh
printf '%d s\n%d passed, %d failed, %d skipped\n' $((SECONDS - began)) "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ]

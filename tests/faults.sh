#!/usr/bin/env bash
# Plants faults that programs of this kind are known for, one at a time, and demands that a test catches each.
#
#     tests/faults.sh [PATCH ...]     all of tests/faults, or those named
#
# Each patch begins with two lines, then is a unified diff:
#     Fault: what is wrong
#     Caught by: command, run in the build directory, that must fail
# It is applied to a copy of the checkout, what the command runs is built there, and it is taken back. A patch that does not apply or does not build
# is a failure, and so is a command that fails without any patch.
set -u
cd "$(dirname "$0")/.." || exit 1
top=$PWD

# All of them in two halves side by side, each in a copy of its own: most tests use one core.
if [ $# -eq 0 ]; then
    patches=(tests/faults/*.patch)
    half=$(((${#patches[@]} + 1) / 2)) out=$(mktemp -d) status=0
    set -o pipefail
    tests/faults.sh "${patches[@]:half}" >"$out/2" 2>&1 &
    tests/faults.sh "${patches[@]:0:half}" 2>&1 | tee "$out/1" || status=1
    wait $! || status=1
    cat "$out/2"
    grep -h '^FAILED' "$out/1" "$out/2" # once more, where a log that is cut still has it
    rm -rf "$out"
    exit $status
fi
patches=("$@")

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export RANKS="timeout -k 5 120 mpirun --oversubscribe -n"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
failed=0
planted=0

git ls-files -z --cached --others --exclude-standard | xargs -0 tar -cf - | tar -xf - -C "$copy"
cd "$copy" || exit 1
{ meson setup build -Dcuda=disabled && ninja -C build -j 2; } >log 2>&1 || { tail -n 40 log; exit 1; }

# Without the headers of CUDA there are no peer-worker and peer-check, and what they would catch is left out.
if [ ! -e build/tests/peer-worker ]; then
    mapfile -t patches < <(cd "$top" && grep -L '^Caught by: .*peer-' "${patches[@]}")
    echo "left out: faults between GPUs, for want of cuda.h or nccl.h"
    [ ${#patches[@]} -gt 0 ] || exit 0
fi

# A caught fault may crash or run for ever: that is failing too, within bounds.
fails() { ! (cd build && timeout -k 5 150 bash -c "$1") >log 2>&1; }

sed -n 's/^Caught by: //p' "${patches[@]/#/$top/}" | sort -u >commands
while read -r command; do
    if fails "$command" </dev/null; then
        echo "FAILED  without any fault: $command"
        tail -n 20 log
        exit 1
    fi
done <commands

for patch in "${patches[@]}"; do
    fault=$(sed -n 's/^Fault: //p' "$top/$patch")
    command=$(sed -n 's/^Caught by: //p' "$top/$patch")
    planted=$((planted + 1))
    if [ -z "$command" ] || ! patch -p1 --fuzz=0 -s <"$top/$patch" >log 2>&1; then
        echo "FAILED  $patch does not apply"
        failed=$((failed + 1))
        cat log
        git -C "$top" ls-files -z --cached --others --exclude-standard | (cd "$top" && xargs -0 tar -cf -) | tar -xf - -C .
        continue
    fi
    # Only what the command runs: everything else would be linked again for each patch.
    mapfile -t programs < <(grep -oP '(?<![/\w])(tests|examples)/[a-z_/-]+' <<<"$command" | sort -u)
    if ! ninja -C build -j 2 "${programs[@]}" >log 2>&1; then
        echo "FAILED  does not build: $fault"
        failed=$((failed + 1))
        grep -E 'error' log | head -5
    elif fails "$command" </dev/null; then
        echo "caught  $fault"
    else
        echo "FAILED  not caught by '$command': $fault"
        failed=$((failed + 1))
    fi
    patch -R -p1 -s <"$top/$patch"
done
echo "$planted faults planted, $((planted - failed)) caught"
[ $failed -eq 0 ]

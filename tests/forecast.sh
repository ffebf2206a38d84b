#!/usr/bin/env bash
# hra-plan --model: the shipped machines, pictures, wrong options and files, and thousands of ranks; hra-bench --timeline:
# what is measured below a forecast.
#     tests/forecast.sh BUILD_DIR
set -u
cd "$(dirname "$0")/.." || exit 1
plan=${1:?usage: tests/forecast.sh BUILD_DIR}/examples/hra-plan
bench=$1/examples/hra-bench
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

report() { # NAME, what stands in its way (empty: nothing)
    if [ -z "$2" ]; then
        echo "ok      $1"
    else
        echo "FAILED  $1"
        printf '%s\n' "$2"
        failed=1
    fi
}

refused() { # WHAT its message has, OPTIONS...
    local said status
    said=$("$plan" "${@:2}" 2>&1 >"$scratch/out")
    status=$?
    [ $status -eq 2 ] || echo "exit status $status, not 2"
    [ -s "$scratch/out" ] && echo "something was printed"
    case $said in
        *"$1"*) ;;
        *) echo "'$said' lacks '$1'" ;;
    esac
}

efficiencies() { # MODEL RANKS OPTIONS...: forward and backward
    "$plan" --model "$1" --ranks "$2" "${@:3}" | sed -n 's/^[a-z]*ward  *[0-9.e+]* ms, efficiency \([0-9.]*\):.*/\1/p'
}

plausible() { # MODEL RANKS OPTIONS...
    local found
    found=$(efficiencies "$@" | awk '$1 > 0.5 && $1 <= 1' | wc -l)
    [ "$found" -eq 2 ] || echo "efficiencies: $(efficiencies "$@" | tr '\n' ' ')"
}

timeline() { # FILE, what it begins with
    "$plan" --model examples/models/two-h100.model --ranks 2 "${problem[@]}" --timeline "$1" >"$scratch/out" 2>&1 ||
        cat "$scratch/out"
    [ "$(head -c 4 "$1" | tr -d '\211')" = "$2" ] || echo "no picture"
}

measured() { # RANKS, TOKENS: a picture, and for each rank and pass times whose parts are no more than the whole
    timeout 60 mpirun --oversubscribe -n "$1" "$bench" --timeline "$scratch/both.svg" --model "$scratch/host.model" --tokens "$2" \
        --threads 1 --repeat 3 --json >"$scratch/out" 2>&1 || cat "$scratch/out"
    python3 - "$1" "$scratch/out" <<'CHECK' || cat "$scratch/out"
import json, sys
lines = [json.loads(line) for line in open(sys.argv[2])]
assert len(lines) == 2 * int(sys.argv[1]), len(lines)
for line in lines:
    assert 0 <= line["measured_busy_s"] + line["measured_waiting_s"] <= 1.001 * line["measured_s"], line
assert all(line["measured_busy_s"] > 0 and line["modelled_s"] > 0 for line in lines if line["rank"] == 0), lines
CHECK
    [ "$(head -c 4 "$scratch/both.svg")" = '<?xm' ] || echo "no picture"
}

problem=(--tokens 16384 --heads 4 --dim 128 --dtype bf16)
printf 'node ranks 8\ninside each rate 390 latency 8 us\n' >"$scratch/wrong.model"
printf 'inside each rate 1 GB/s latency 9 us\nmemory rate 9 GB/s\nlaunch time 1 us\n' >"$scratch/host.model"
for pass in forward backward; do
    echo "compute any any $pass full 0.03 TFLOP/s"
done >>"$scratch/host.model"
for model in examples/models/*.model; do
    report "$model gives 16 ranks a plausible time" "$(
        [[ "$model" = */two-* ]] && ranks=2 || ranks=16
        plausible "$model" $ranks --tokens 131072 --heads 64 --kv-heads 8 --dim 128 --dtype bf16)"
done
report "a line that is wrong is named" \
    "$(refused 'wrong.model:2: '\''rate'\'' is in GB/s' --model "$scratch/wrong.model" "${problem[@]}")"
report "a machine without a rate for the type is refused" \
    "$(refused "no line 'compute' is for f64, 128 channels, forward" --model examples/models/two-h100.model --dim 128 --dtype f64)"
report "a file that is not there is refused" "$(refused 'cannot be opened' --model "$scratch/none.model")"
report "--timeline without --model is refused" "$(refused '--model' --timeline "$scratch/a.svg")"
report "a timeline by another name is refused" \
    "$(refused '.png or .svg' --model examples/models/two-h100.model --timeline "$scratch/a.pdf")"
report "--rounds beside --model is refused" \
    "$(refused 'cannot go with it' --model examples/models/two-h100.model --rounds "$scratch/a.svg")"
report "a timeline as .png" "$(timeline "$scratch/a.png" PNG)"
report "a timeline as .svg" "$(timeline "$scratch/a.svg" '<?xm')"
report "three ranks, measured below a forecast" "$(measured 3 900)"
report "one rank" "$(measured 1 300)"
report "a rank without work" "$(measured 4 300)"
report "1,024 ranks in 30 s" "$(timeout 30 "$plan" --model examples/models/h100-nodes.model --ranks 1024 --tokens 2097152 \
    --heads 64 --kv-heads 8 --dim 128 --dtype bf16 --shard zigzag >"$scratch/out" 2>&1 || echo "exit status $?"
    grep -q 'efficiency' "$scratch/out" || cat "$scratch/out")"
exit $failed

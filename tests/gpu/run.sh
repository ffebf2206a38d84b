#!/usr/bin/env bash
# Everything that is tested on a GPU, on a machine that has one. Builds only where nothing is built yet; needs neither git
# nor Criterion, so that a checkout can be carried there with its build folder.
#     tests/gpu/run.sh [BUILD=DIR] [COMMIT=NAME] [STEP ...]     all steps, or those named
# A step is a list of commands; one that cannot run here, for want of mpirun or compute-sanitizer, counts as not run. One
# line a step, after it what failed; everything that was printed is in DIR/gpu-logs, and how long each command took in
# its file `times`. Steps that do not disturb each other run side by side, and what runs on one GPU is spread over all.
# What steps found on a commit, in one call or in several, is kept in DIR/gpu-steps, and docs/gpu-results.md is written
# from that, with what has not been run. FAULTS in the environment is how many faults faults_of_ranks draws; default
# 100. Exit status: 0 all passed, 1 something failed, 2 nothing failed but not all was run.
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=build
COMMIT=
FAULTS=${FAULTS:-100}
steps=()
for argument in "$@"; do
    case $argument in
        BUILD=*) BUILD=${argument#*=} ;;
        COMMIT=*) COMMIT=${argument#*=} ;;
        *) steps+=("$argument") ;;
    esac
done
[ -e "$BUILD/build.ninja" ] || [ -e "$BUILD/examples/hra-check" ] || { meson setup "$BUILD" && ninja -C "$BUILD"; } || exit 1
BUILD=$(cd "$BUILD" && pwd) || exit 1
logs=$BUILD/gpu-logs
rm -rf "$logs"
mkdir -p "$logs" || exit 1
export BUILD logs
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export LD_LIBRARY_PATH=$BUILD${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH=$PATH:/usr/local/cuda/bin
gpus=$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null)
[ -n "$gpus" ] || { echo "there is no GPU here"; exit 2; }
gpu_count=$(echo "$gpus" | wc -l)
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
export gpu_count capability

# ---- Commands of which steps are made; exit status 77: cannot run here ----

check() { "$BUILD/examples/hra-check" --backend "${BACKEND:-cuda}" "$@"; }

# COMMAND...: on the backend for Hopper, where the GPU is one.
fast() {
    [ "$capability" = 9.0 ] || return 77
    BACKEND=sm90 HRA_TEST_BACKEND=sm90 "$@"
}

worker() { "$BUILD/tests/gpu-worker" "$@"; }

# COUNT, COMMAND...: on that many ranks, which share the GPUs that are there.
ranks() {
    command -v mpirun >/dev/null || return 77
    local count=$1
    shift
    mpirun --oversubscribe --bind-to none -n "$count" "$@"
}

# TRANSPORT, COUNT, COMMAND...: the same, for NCCL only where each rank has a GPU of its own.
over() {
    [ "$1" != nccl ] || [ "$2" -le "$gpu_count" ] || return 77
    shift
    ranks "$@"
}

# COUNT: the PyTorch binding's test of itself, on one rank without torchrun.
bound() {
    python3 -c 'import torch' 2>/dev/null && [ "$1" -le "$gpu_count" ] || return 77
    local start=(python3)
    [ "$1" -eq 1 ] || start=(torchrun --standalone --nproc-per-node "$1")
    HRA_LIBRARY=$BUILD/libhra.so "${start[@]}" examples/pytorch/hra_torch.py | tee /dev/stderr | grep -q '^all ok'
}

# COMMAND...: as hosts of Megatron run, with one queue for all streams of a process.
one_queue() { CUDA_DEVICE_MAX_CONNECTIONS=1 "$@"; }

# OPTION...: two runs of hra-check print the same bits.
twice() {
    local one two
    one=$(check "$@" | grep '^bits ') && two=$(check "$@" | grep '^bits ') && echo "$one, $two" && [ "$one" = "$two" ]
}

# TOOL, COMMAND...: compute-sanitizer has nothing to report.
sanitize() {
    command -v compute-sanitizer >/dev/null || return 77
    local tool=$1 log
    shift
    log=$(mktemp) || return 1
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$@" >"$log" 2>&1
    local status=$?
    cat "$log"
    [ $status -eq 0 ] && grep -qE 'ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards' "$log"
    status=$?
    rm -f "$log"
    return $status
}

# TOOL, FAULT: the tool reports the planted fault, and nothing without it.
planted() {
    command -v compute-sanitizer >/dev/null || return 77
    sanitize "$1" "$BUILD/tests/gpu-fault" none || { echo "$1 reports what is right"; return 1; }
    ! sanitize "$1" "$BUILD/tests/gpu-fault" "$2" || { echo "$1 does not find the fault '$2'"; return 1; }
}

# FUNCTION ARGUMENT...: hra-check of the problems that the function prints, options a line, in one process.
listed() {
    local list
    list=$(mktemp) || return 1
    "$@" >"$list"
    check --list "$list"
    local status=$?
    rm -f "$list"
    return $status
}

# TYPE ORDER [DIM]: every mask.
masks_of() {
    local mask row=0
    local masks=(
        'full' 'causal' 'window(100,0)' 'window(-,17)' 'window(30,-5)' 'grid(3,4)' 'neighbourhood(7,5)'
        'neighbourhood(8,9; 2,3)' 'docs(1,127,200,30,122)' 'dilated(96,3)' 'dilated(96,3,head,both)'
        'dilated(200,5,0,residue)' 'global(16)' 'blocks(100; 0:0 4; 1:1; 2:0 2 3; 4:1 4)' 'local_blocks(32,1)'
        'strided_blocks(24,4,1)' 'global_blocks(40,1,1)' 'random_blocks(32,2,7)' 'hierarchical_blocks(16,1,3)'
        'slots(window(64,0))' 'slots(hilbert; causal & window(90,-))' 'slots(boxes:4x5; local_blocks(20,2))'
        'heads(0-1: causal; 2: full; 3: window(9,9))' 'batches(0: causal; 1: docs(240,240))' 'mix(causal; window(20,20); full)'
        'longnet(60:1, 240:4, 480:8)' '!causal' '!(grid(2,2) | global(3))' 'causal & docs(250,230)' 'window(5,5) | dilated(480,7)'
    )
    for mask in "${masks[@]}"; do
        row=$((row + 1))
        echo "--grid 24x20 --batch 2 --heads 4 --kv-heads 2 --dim ${3:-64} --dtype $1 --order $2 --mask '$mask' --seed $row"
    done
}

# TYPE: head sizes, tokens, groups of heads, options.
sizes_of() {
    local size row=1000
    local sizes=(
        '--tokens 1' '--tokens 2 --heads 1' '--tokens 127' '--tokens 128' '--tokens 129' '--tokens 1025 --heads 2'
        "--tokens 3000 --heads 1 --mask 'window(200,50)'" '--tokens 300 --dim 1' '--tokens 300 --dim 3 --dim-v 5'
        '--tokens 300 --dim 8 --dim-v 16' '--tokens 300 --dim 40' '--tokens 300 --dim 80 --dim-v 33' '--tokens 300 --dim 96'
        '--tokens 300 --dim 128 --dlse' '--tokens 300 --dim 192 --dim-v 128' '--tokens 300 --dim 256 --saved qkv'
        '--tokens 300 --dim 255 --dim-v 256 --dlse' '--tokens 300 --heads 12 --kv-heads 1'
        '--tokens 300 --heads 6 --kv-heads 3' "--tokens 300 --batch 3 --head0 2 --mask 'dilated(64,4,head)'"
        '--tokens 300 --scale -0.3' '--tokens 300 --order morton --saved qkv --backward cublas --dlse'
    )
    for size in "${sizes[@]}"; do
        row=$((row + 1))
        echo "$size --dtype $1 --seed $row"
    done
}

# TRANSPORT: a weak and a strong sweep of one and two ranks; every pass is timed, on the GPU's best kernels, with its transfers.
swept() {
    local folder status
    folder=$(mktemp -d) || return 1
    PYTHONDONTWRITEBYTECODE=1 examples/scaling/scaling.py --bench "$BUILD/examples/hra-bench" --backend gpu --transport "$1" \
        --scale 1/8 --heads 4 --repeat 3 --ranks 1,2 --limit 100 --launch 'mpirun --oversubscribe --bind-to none' \
        --out "$folder" causal-d128-16k image-hilbert dilated-both-residues &&
        [ "$(find "$folder" -name '*.svg' | wc -l)" -eq 6 ] && python3 - "$folder/scaling.json" <<'PYTHON'
import json, os, sys
points = json.load(open(sys.argv[1]))["points"]
assert len(points) == 3 * 2 * 2 * 2, len(points)
for p in points:
    assert p["time_s"] > 0 and p["gflops_a_rank"] > 0 and p["efficiency"] > 0, p
    assert p["backend"] == ("sm90" if os.environ["capability"] == "9.0" else "cuda"), p
    assert p["ranks"] == 1 or p["exposed_s"] is not None and p["hidden_s"] >= 0, p
PYTHON
    status=$?
    rm -rf "$folder"
    return $status
}
export -f check fast worker ranks over bound one_queue twice sanitize planted swept listed masks_of sizes_of

# ---- The steps: a command a line ----

every_mask_and_order() {
    local type order
    for type in bf16 f16 f32; do
        for order in identity hilbert boxes:8x8 morton snake residues:96:3 random:5; do
            echo "listed masks_of $type $order"
        done
    done
}

every_size() { printf 'listed sizes_of %s\n' bf16 f16 f32; }

random_problems() {
    echo "check --random 200"
    echo "check --random 50 --seed 2 --backward cublas"
}

same_bits() {
    local type
    for type in bf16 f16 f32; do
        echo "twice --tokens 2000 --heads 2 --dtype $type"
        echo "twice --grid 40x40 --heads 4 --kv-heads 1 --dtype $type --order hilbert --mask 'grid(7,7)' --dlse"
        echo "twice --tokens 1500 --heads 3 --dim 96 --dtype $type --mask 'mix(causal; full)' --saved qkv"
    done
}

programs() {
    printf 'worker %s\n' twin steps graph refused reorder large
}

# What is free on a GPU before and after: nothing else may run there meanwhile.
memory() {
    echo 'worker memory'
    echo "over peer 2 \$BUILD/tests/gpu-ring growth peer"
    echo "over peer 4 \$BUILD/tests/gpu-ring growth peer"
    echo "over nccl 2 \$BUILD/tests/gpu-ring growth nccl"
    echo "one_queue over peer 2 \$BUILD/tests/gpu-ring growth peer"
    echo "over peer 4 \$BUILD/tests/gpu-ring making peer"
    echo "over nccl 2 \$BUILD/tests/gpu-ring making nccl"
}

several_ranks() {
    local count
    echo "ranks 2 \$BUILD/tests/gpu-ring blocking mpi"
    echo "ranks 2 \$BUILD/tests/gpu-ring hops mpi"
    echo "ranks 2 \$BUILD/tests/gpu-ring trace mpi"
    for count in 2 4 8; do
        echo "ranks $count \$BUILD/examples/hra-check --backend cuda --random 40 --seed $count"
    done
    for count in 4 8; do
        echo "ranks $count \$BUILD/examples/hra-check --backend cuda --tokens 3000 --heads 2 --dtype bf16"
        echo "ranks $count \$BUILD/examples/hra-check --backend cuda --grid 50x50 --order hilbert --mask 'grid(6,6)' --dtype f32 --heads 2 --dlse"
    done
}

# Larger than a tile, so that whole tiles and several steps occur; K/V heads shared by 1, 4 and 8.
sm90() {
    local type order dim count test on='$BUILD/examples/hra-check --backend sm90'
    for type in bf16 f16; do
        for dim in 64 128; do
            for order in identity hilbert boxes:8x8 residues:96:3 random:5; do
                echo "fast listed masks_of $type $order $dim"
            done
            for count in 8 2 1; do
                echo "fast check --tokens 1100 --heads 8 --kv-heads $count --dim $dim --dtype $type --mask 'window(300,-)' --dlse"
            done
            echo "fast twice --tokens 2000 --heads 3 --dim $dim --dtype $type --mask causal"
            echo "fast twice --grid 40x40 --heads 4 --kv-heads 1 --dim $dim --dtype $type --order hilbert --mask 'grid(7,7)' --dlse"
            for order in boxes:8x8 boxes:8x16 boxes:4x16 residues:512:4 hilbert; do
                echo "fast check --rows tokens --grid 72x64 --heads 4 --kv-heads 2 --batch 2 --dim $dim --dtype $type --order $order --mask 'grid(7,7)' --dlse"
            done
            echo "fast check --rows tokens --grid 6x16x32 --heads 3 --kv-heads 1 --dim $dim --dtype $type --order boxes:4x4x8 --mask 'neighbourhood(3,7,7)'"
            echo "fast twice --rows tokens --tokens 4096 --heads 2 --dim $dim --dtype $type --order residues:1024:4 --mask 'dilated(1024,4,0,both)'"
        done
    done
    echo "fast check --random 200"
    echo "fast check --random 50 --seed 2 --backward cublas"
    echo "fast check --random 50 --seed 3 --sm-margin 100"
    printf 'fast worker %s\n' steps graph large margin
    for count in 2 4 8; do
        echo "fast ranks $count $on --random 40 --seed $count"
        echo "fast over peer $count $on --transport peer --timeout 60 --random 40 --seed 2$count"
    done
    echo "fast over nccl 2 $on --transport nccl --timeout 60 --random 40 --seed 22"
    for test in same graph layers; do
        echo "fast over peer 2 \$BUILD/tests/gpu-ring $test peer"
        echo "fast over nccl 2 \$BUILD/tests/gpu-ring $test nccl"
    done
}

# hra-check chooses its own ranks' GPUs; a rank that waits for a minute has been left alone. The halo of two has more ranges in a
# message than are copied, and added, in one launch.
transports() {
    local transport count options='--backend cuda --timeout 60 --random 100'
    local mask="blocks(128; 0: $(seq -s ' ' 41 2 79); 40: $(seq -s ' ' 1 2 39))"
    for transport in mpi peer nccl; do
        echo "over $transport 2 \$BUILD/examples/hra-check --transport $transport --backend cuda --timeout 60 --schedule halo --shard contiguous --heads 1 --dim 12 --dim-v 7 --dtype bf16 --tokens 10240 --mask '$mask'"
    done
    for transport in peer nccl gpu; do
        for count in 2 4 8; do
            echo "over $transport $count \$BUILD/examples/hra-check --transport $transport $options --seed 1$count"
        done
    done
}

rings() {
    local test
    for test in same graph layers comms hops held trace outlived; do
        echo "over peer 2 \$BUILD/tests/gpu-ring $test peer"
        echo "over peer 4 \$BUILD/tests/gpu-ring $test peer"
        echo "over nccl 2 \$BUILD/tests/gpu-ring $test nccl"
    done
    for test in same graph hops; do
        echo "over peer 8 \$BUILD/tests/gpu-ring $test peer"
        echo "over gpu 3 \$BUILD/tests/gpu-ring $test gpu"
    done
}

single_queue() {
    local test options='--backend cuda --timeout 60 --random 50 --seed 3'
    for test in same graph layers comms hops held; do
        echo "one_queue over peer 2 \$BUILD/tests/gpu-ring $test peer"
        echo "one_queue over peer 4 \$BUILD/tests/gpu-ring $test peer"
        echo "one_queue over nccl 2 \$BUILD/tests/gpu-ring $test nccl"
    done
    echo "one_queue over peer 4 \$BUILD/examples/hra-check --transport peer $options"
    echo "one_queue over nccl 2 \$BUILD/examples/hra-check --transport nccl $options"
}

# The host's own NCCL, which wants a GPU for each rank, whatever ours is.
beside_nccl() {
    local transport
    for transport in peer nccl; do
        echo "over nccl 2 \$BUILD/tests/gpu-ring foreign $transport"
        echo "one_queue over nccl 2 \$BUILD/tests/gpu-ring foreign $transport"
        echo "over nccl 2 \$BUILD/tests/gpu-ring ways $transport"
        echo "fast over nccl 2 \$BUILD/tests/gpu-ring foreign $transport"
        echo "HRA_TEST_MARGIN=16 fast over nccl 2 \$BUILD/tests/gpu-ring foreign $transport"
    done
}

pytorch() { printf 'bound %s\n' 1 2; }

# What `make CUDA=1` in a copy of examples/megatron gave, put there before.
stack() {
    local gpus
    for gpus in one several; do
        echo "[ -x \"\$BUILD/megatron/megatron\" ] || exit 77; tests/megatron.sh $gpus \"\$BUILD/megatron/megatron\""
    done
}

# Over peer ranks may share a GPU.
sweeps() {
    echo 'over peer 2 true && swept peer'
    echo 'over nccl 2 true && swept nccl'
}

faults_of_ranks() {
    echo "tests/gpu/faults.sh $FAULTS"
}

planted_faults() {
    printf 'planted %s\n' 'memcheck memory' 'initcheck init' 'synccheck sync' 'racecheck race'
}

# Racecheck does not follow the barriers that bulk copies complete on: of the sm90 backend it reports all reads of what they
# bring. Plans and communicators give back what they took: leaks are looked for in `steps`, which ends its context.
sanitizers() {
    local tool
    echo "sanitize memcheck --leak-check full \$BUILD/tests/gpu-worker steps"
    echo "sanitize memcheck \$BUILD/tests/gpu-worker graph"
    echo "sanitize initcheck \$BUILD/tests/gpu-worker unset"
    for tool in synccheck racecheck; do
        echo "sanitize $tool \$BUILD/tests/gpu-worker steps"
    done
    for tool in memcheck initcheck synccheck racecheck; do
        echo "sanitize $tool \$BUILD/examples/hra-check --backend cuda --random 12 --seed 3"
        [ $tool = racecheck ] || echo "fast sanitize $tool \$BUILD/examples/hra-check --backend sm90 --random 12 --seed 3"
    done
}

# ---- Running them ----

# COMMAND: how many processes it starts, as far as its words say: of ranks so many, else one.
weight_of() {
    local words
    read -r -a words <<<"$1"
    for i in "${!words[@]}"; do
        case ${words[i]} in
            ranks) echo "${words[i + 1]}" && return ;;
            over) echo "${words[i + 2]}" && return ;;
        esac
    done
    echo 1
}

# STEP NUMBER SECONDS COMMAND: one line of a list. It begins when there are cores for its processes, of which a pipe holds a
# byte each; one command at a time takes from there, or two could wait for each other. Its output goes to a file of its own, its
# result to those of the step. It counts as many times as hra-check says that it has checked problems, some of which may have
# failed; else once. What starts no ranks and asks for no other GPUs has one to itself or shares it: the next one in turn.
one() {
    local step=$1 id=$1-$2 limit=$3 command=$4 status=0 result=passed all=1 bad=1 weight began
    weight=$(weight_of "$command")
    weight=$((weight < pool ? weight : pool))
    flock "$logs/taking" head -c "$weight" <&9 >/dev/null
    [[ "$command" =~ ranks|over|bound|faults|megatron ]] || export CUDA_VISIBLE_DEVICES=$(($2 % gpu_count))
    began=$SECONDS
    timeout -k 5 "$limit" bash -c "$command" >"$logs/$id" 2>&1 </dev/null 9<&- || status=$?
    printf '%5d s  %s: %s\n' $((SECONDS - began)) "$id" "$command" >>"$logs/times"
    printf "%${weight}s" >&9
    case $status in
        0) ;;
        77) result='not run' ;;
        *) result=failed ;;
    esac
    read -r all bad < <(sed -n 's/^\([0-9]\+\) problems, \([0-9]\+\) failed$/\1 \2/p' "$logs/$id" | tail -n 1 | grep . || echo 1 1)
    [ "$result" != passed ] || bad=0
    [ "$all" -eq "$bad" ] || printf '%s\tpassed\t%s\t%s\t%s\n' "$id" "$status" $((all - bad)) "$command" >>"$logs/results-$step"
    [ "$bad" -eq 0 ] || printf '%s\t%s\t%s\t%s\t%s\n' "$id" "$result" "$status" "$bad" "$command" >>"$logs/results-$step"
}
export -f weight_of one

all_steps=()
begun=()

# STEP RESULT: how many problems had it.
count_of() { awk -F '\t' -v result="$2" '$2 == result {n += $4} END {print n + 0}' "$logs/results-$1"; }

step() { # NAME, JOBS side by side, SECONDS for each, what it is in words: begins, and is waited for by `together`
    all_steps+=("$1")
    if [ ${#steps[@]} -gt 0 ] && [[ ! " ${steps[*]} " == *" $1 "* ]]; then
        return 0
    fi
    begun+=("$1")
    run_step "$@" &
}

# The steps before it end before those after it begin.
together() { wait; }

run_step() {
    local name=$1 jobs=$2 limit=$3 began=$SECONDS n=0 p f u line
    : >"$logs/results-$name"
    "$name" | while read -r line; do
        n=$((n + 1))
        printf '%s\0%s\0%s\0%s\0' "$name" "$n" "$limit" "$line"
    done | xargs -0 -n 4 -P "$jobs" bash -c 'one "$@"' one
    p=$(count_of "$name" passed)
    f=$(count_of "$name" failed)
    # What left no result did not run either.
    u=$(($(count_of "$name" 'not run') + $("$name" | wc -l) - $(cut -f 1 "$logs/results-$name" | sort -u | wc -l)))
    {
        echo "$commit"
        echo "$p $f $u"
        echo "| $name | $4 | $gpu_names | $p | $f | $u | $((SECONDS - began)) |"
        awk -F '\t' '$2 != "passed" {printf "    %s: %s\n", $2, $5}' "$logs/results-$name"
    } >"$kept/$name"
    { # in one piece: other steps print too
        printf '%-22s %4d passed %4d failed %4d not run %5d s\n' "$name" "$p" "$f" "$u" $((SECONDS - began))
        while IFS=$'\t' read -r id _ status _ line; do
            printf 'FAILED  %s, exit status %s: %s\n' "$id" "$status" "$line"
            tail -n 25 "$logs/$id"
        done < <(awk -F '\t' '$2 == "failed"' "$logs/results-$name" | head -n 10)
    } >"$logs/said-$name"
    cat "$logs/said-$name"
}

# What is kept of all steps of this commit.
write_results() {
    local name rows=() p=0 f=0 u=0 counts absent=()
    for name in "${all_steps[@]}"; do
        if [ "$(head -n 1 "$kept/$name" 2>/dev/null)" != "$commit" ]; then
            absent+=("$name")
            continue
        fi
        read -r -a counts < <(sed -n 2p "$kept/$name")
        p=$((p + counts[0])) f=$((f + counts[1])) u=$((u + counts[2]))
        rows+=("$(sed -n 3p "$kept/$name")")
    done
    [ ${#rows[@]} -gt 0 ] || return 1
    cat <<END
# What the tests on GPUs found

Written by \`tests/gpu/run.sh\` on machines with GPUs. What could not run there counts as not run, never as passed.

| | |
|---|---|
| commit | $commit |
| date | $(date -u +%Y-%m-%d) |
| driver | $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) |
| CUDA compiler | $(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' | grep . || echo 'not here') |
| result | $p passed, $f failed, $u not run${absent:+, and steps not begun: ${#absent[@]}} |

| step | what | GPUs | passed | failed | not run | s |
|---|---|---|---|---|---|---|
$(printf '%s\n' "${rows[@]}")
END
    [ ${#absent[@]} -eq 0 ] || printf '\nSteps that were not begun on this commit: %s.\n' "$(echo "${absent[*]}" | sed 's/ /, /g')"
    [ $((f + u)) -gt 0 ] || return 0
    printf '\nWhat did not pass:\n\n'
    for name in "${all_steps[@]}"; do
        [ "$(head -n 1 "$kept/$name" 2>/dev/null)" != "$commit" ] || sed 1,3d "$kept/$name"
    done
}

commit=$COMMIT
if [ -z "$commit" ]; then
    commit=$(git rev-parse --short HEAD 2>/dev/null) || commit='not known: no git here'
    [ -z "$(git status --porcelain 2>/dev/null)" ] || commit+=', with changes'
fi
gpu_names=$(echo "$gpus" | sort | uniq -c | awk '{n = $1; $1 = ""; print n " x" $0}' | paste -sd ';')
kept=$BUILD/gpu-steps # what steps found, from one call to the next
mkdir -p "$kept" || exit 1

cores=$(nproc)
pool=$((cores + cores / 2)) # processes at one time: many of them wait for a GPU
export pool
mkfifo "$logs/pool" || exit 1
exec 9<>"$logs/pool"
printf "%${pool}s" >&9
jobs=$((cores < 16 ? cores : 16))
step programs "$jobs" 400 'twin against oracle; steps, graphs, refusals, reordering; large problems against the twin'
step every_mask_and_order "$jobs" 300 'hra-check, every mask on every order in bf16, f16, f32'
step every_size "$jobs" 300 'hra-check, head sizes, tokens, groups of heads, options'
step random_problems "$jobs" 400 'hra-check, 200 and 50 drawn problems'
step same_bits "$jobs" 300 'hra-check twice, the same bits'
step sm90 "$jobs" 400 'the kernels for Hopper: masks, orders, drawn problems, graphs, 2, 4 and 8 ranks'
step planted_faults "$jobs" 300 'compute-sanitizer finds a planted fault, and nothing without it'
step sanitizers "$jobs" 500 'compute-sanitizer: memcheck with leaks, initcheck, synccheck, racecheck'
step several_ranks "$jobs" 400 '2, 4 and 8 ranks over MPI that share the GPUs'
step transports "$jobs" 400 'hra-check over peer, nccl and both, 2, 4 and 8 ranks, 100 drawn problems each'
step pytorch 1 300 'the PyTorch binding against attention written out, on one rank and on two under torchrun'
together
step rings "$jobs" 120 'same bits as over MPI, graphs, layers and communicators in turn, hops, late ranks'
step single_queue "$jobs" 120 'the same under CUDA_DEVICE_MAX_CONNECTIONS=1'
together
step beside_nccl 1 200 "beside 1,000 all-reduces of the host's NCCL; communicators from ids and from the host's"
step sweeps 1 600 'examples/scaling on one and two ranks over peer and nccl'
step stack 1 1500 'examples/megatron: gradients, and 50 steps in f32 and bf16 on one GPU and on grids of all that are here'
together
step memory 1 120 'no memory of the GPU is lost in 100 steps, on one rank and on several'
together
step faults_of_ranks 1 $((120 + 8 * FAULTS)) "$FAULTS faults: ranks killed, held up, absent, with another plan"
together

passed=0
failed=0
not_run=0
for name in "${begun[@]}"; do
    read -r p f u < <(sed -n 2p "$kept/$name")
    passed=$((passed + p)) failed=$((failed + f)) not_run=$((not_run + u))
done
echo "$passed passed, $failed failed, $not_run not run"
if results=$(write_results); then
    echo "$results" >docs/gpu-results.md
fi
[ "$failed" -eq 0 ] || exit 1
[ "$not_run" -eq 0 ] || exit 2

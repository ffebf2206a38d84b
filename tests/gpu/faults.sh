#!/usr/bin/env bash
# Faults between ranks on GPUs, drawn from a seed, counted by kind and outcome; tests/gpu/faults.c says what they are.
#     BUILD=DIR tests/gpu/faults.sh FAULTS [SEED [TRANSPORT]]
# Batches of faults, each one mpirun, over all transports or one, with 2 and 4 ranks, with and without
# CUDA_DEVICE_MAX_CONNECTIONS=1; over nccl with a GPU for each rank. Where TRANSPORT is `threads` it is peer on the devices of
# tests/peer, and no GPU is needed. Prints one line a kind, then what was wrong. A fault
# of which nothing is heard, since a process hung or crashed, is wrong. Exit status: 0 every fault was noticed rightly,
# 1 not, 77 cannot run here.
set -u
faults=${1:?how many faults} seed=${2:-1} only=${3:-}
command -v mpirun >/dev/null || exit 77
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
[ "$gpus" -gt 0 ] || [ "$only" = threads ] || exit 77
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
logs=${logs:-$BUILD}/faults
rm -rf "$logs"
mkdir -p "$logs" || exit 1

program=gpu-rank-faults
ways=('peer 2 -' 'peer 4 -' 'peer 2 1' 'peer 4 1' 'gpu 3 -')
if [ "$only" = threads ]; then
    program=peer-rank-faults gpus=0 only=peer
    ways=('peer 2 -' 'peer 4 -' 'peer 2 1' 'peer 3 1' 'peer 5 -')
elif [ "$gpus" -ge 2 ]; then
    ways=('nccl 2 -' 'peer 2 -' 'nccl 2 1' 'peer 4 -' 'peer 2 1' 'gpu 2 -' 'peer 4 1' 'nccl 2 -')
else
    echo 'nccl: not run, it needs a GPU for each of 2 ranks'
fi
if [ -n "$only" ]; then
    mapfile -t ways < <(printf '%s\n' "${ways[@]}" | grep "^$only ")
    [ ${#ways[@]} -gt 0 ] || { echo "over $only: nothing to run"; exit 77; }
fi
export logs BUILD gpus program

# NUMBER FAULTS SEED TRANSPORT RANKS CONNECTIONS: one mpirun; its lines go to a file of their own. Where there are more than two
# GPUs batches take pairs of them in turn.
batch() {
    local out=$logs/$1 processes=$(($5 + ($2 + 3) / 5)) # a fifth are kills, each of which takes a process
    local pair=$(($1 % (gpus / 2 > 0 ? gpus / 2 : 1)))
    [ "$gpus" -lt 4 ] || export CUDA_VISIBLE_DEVICES=$((2 * pair)),$((2 * pair + 1))
    [ "$6" = - ] || export CUDA_DEVICE_MAX_CONNECTIONS=$6 HRA_TEST_QUEUES=$6
    local began=$SECONDS limit=$((60 + 12 * $2)) # processes that hang end themselves long before
    timeout -k 5 $limit mpirun --oversubscribe --bind-to none --enable-recovery \
        --mca mpi_yield_when_idle 1 -n "$processes" \
        "$BUILD/tests/$program" "$4" "$5" "$2" "$3" >"$out.out" 2>"$out.err" </dev/null
    local status=$? heard
    printf 'took\t%s\t%s\n' $((SECONDS - began)) "$limit" >>"$out.out"
    heard=$(grep -c $'^fault\t' "$out.out")
    # mpirun's own status says nothing where processes were killed, but for that of timeout.
    if [ $status -eq 124 ] || [ "$heard" -lt "$2" ] || grep -qE '^a process (crashed|hangs)' "$out.err"; then
        printf 'lost\t%s\t%s\t%s\n' $(($2 - heard)) "$status" \
            "$4, $5 ranks, $2 faults, seed $3, connections $6" >>"$out.out"
    fi
}
export -f batch

# Batches of 10 to 25, so that there are enough of them for all ways.
size=$((faults / ${#ways[@]}))
size=$((size < 10 ? 10 : size > 25 ? 25 : size))
jobs=$(($(nproc) / 3))
most=$((4 * gpus < 4 ? 4 : 4 * gpus))
jobs=$((jobs < 1 ? 1 : jobs > most ? most : jobs))
began=$SECONDS
# Stopped from outside, nothing is left running, and what was heard is counted.
stopped=0
trap 'stopped=1; pkill -TERM -f "$BUILD/tests/$program"' TERM INT
for ((n = 0, left = faults; left > 0; n++, left -= size)); do
    printf '%s %s %s %s\n' "$n" $((left < size ? left : size)) $((seed * 1000 + n)) "${ways[n % ${#ways[@]}]}"
done | xargs -L 1 -P "$jobs" bash -c 'batch "$@"' batch

cat "$logs"/*.out >"$logs/all"
awk -F '\t' '
    $1 == "fault" {
        kind = $2 "\t" $4 ", " $5
        count[kind]++
        outcome[kind, $7]++
        outcomes[$7]
        all++
        wrong[kind] += $8 != "right"
        bad += $8 != "right"
    }
    $1 == "lost" { lost += $2; crashed += $2 == 0 }
    $1 == "took" && $2 > slowest { slowest = $2; limit = $3 }
    END {
        for (kind in count) {
            line = ""
            for (o in outcomes)
                if ((kind, o) in outcome)
                    line = line sprintf("  %s %d", o, outcome[kind, o])
            split(kind, part, "\t")
            row = sprintf("%-5s %-33s %4d faults, %d wrong:", part[1], part[2], count[kind], wrong[kind])
            print row line | "sort"
        }
        close("sort")
        printf "%d faults, %d of them wrong; %d without a word, %d batches that crashed or did not end\n",
            all + lost, bad, lost, crashed
        printf "the slowest batch took %d s of %d\n", slowest, limit
        exit bad + lost + crashed > 0
    }' "$logs/all"
result=$?
[ $stopped -eq 0 ] || { echo "stopped before all $faults were drawn"; result=1; }
echo "$((SECONDS - began)) s, $jobs batches at a time"
if [ $result -ne 0 ]; then
    grep -h -e $'\tWRONG\t' -e $'^lost\t' "$logs/all" | head -n 20
    for log in "$logs"/*.err; do
        grep -H -m 12 -e '^rank ' -e '^fault ' -e '^a process ' "$log"
    done | sed "s|^$logs/||" | head -n 60
fi
exit $result

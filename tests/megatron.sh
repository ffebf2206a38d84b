#!/usr/bin/env bash
# megatron.sh - holds examples/megatron to its promises: it builds outside the source tree against an installed libhra and
# nothing else, the same losses on any grid, gradients that are right, clear refusals. A line a check; fails if one does.
#
#     tests/megatron.sh cpu PREFIX              builds it against the libhra that is installed there, and runs it over MPI
#     tests/megatron.sh one|several PROGRAM     runs what `make CUDA=1` built, on one GPU, or on grids of all that are
#                                               here; 77: there are too few
set -u

usage() { echo "usage: $0 cpu PREFIX | one PROGRAM | several PROGRAM" >&2; exit 2; }
[ $# -eq 2 ] && [ -e "$2" ] || usage
kind=$1
given=$(realpath "$2")
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
failed=0
passed=0

ranks() { # ranks N arguments...: run on N ranks, output to the file `out`; mpirun need not wait for those that leave
    local n=$1
    shift
    timeout -k 5 300 mpirun --oversubscribe --bind-to none --mca odls_base_sigkill_timeout 0 -n "$n" \
        "$program" --text "$top/examples/data/alice.txt" "$@" >out 2>&1 </dev/null
}

check() { # check NAME STATUS [WHAT IS KNOWN]
    if [ "$2" -eq 0 ]; then
        echo "ok    $1${3:+: $3}"
        passed=$((passed + 1))
    else
        echo "FAIL  $1${3:+: $3}"
        sed 's/^/      /' out | tail -n 20
        failed=$((failed + 1))
    fi
}

# The largest relative difference of the losses in two files, and failure where it is above $3 or the files do not hold
# the same $4 steps.
same_losses() {
    local file
    for file in "$1" "$2"; do
        sed -n 's/^{"step": \([0-9]*\), "loss": \([0-9.]*\), .*}$/\1,\2/p' "$file" >"$file.csv"
        [ "$(wc -l <"$file")" -eq "$(wc -l <"$file.csv")" ] || { echo "$file has other lines"; return 1; }
    done
    paste -d, "$1.csv" "$2.csv" | awk -F, -v most="$3" -v steps="$4" '
        { d = $2 - $4; d = d < 0 ? -d : d; d /= $2; if (!(d <= worst)) worst = d
          if ($1 != NR || $3 != NR || $2 + 0 != $2 || $4 + 0 != $4) bad = 1 }
        END { printf "largest relative difference %.1e over %d steps", worst, NR
              exit bad || NR != steps || !(worst <= most) }'
}

falls() { # falls FILE FACTOR: the last loss is below FACTOR times the first
    sed -n 's/.*"loss": \([^,]*\),.*/\1/p' "$1" | awk -v factor="$2" 'NR == 1 { first = $1 } { last = $1 }
        END { printf "%.3f, then %.3f", first, last; exit !(last < factor * first) }'
}

# GRID MOST OPTION...: 50 steps on the grid give the losses of the file `one` to MOST.
like_one() {
    local grid=$1 most=$2 n note
    shift 2
    n=$((${grid//x/*}))
    ranks "$n" "$@" --steps 50 --grid "$grid" --json "losses-$grid"
    check "$n ranks as $grid run" $?
    note=$(same_losses one "losses-$grid" "$most" 50)
    check "$grid gives the losses of one rank to $most" $? "$note"
}

# NAME GRID OPTION...: --check finds loss and gradients right.
right_gradients() {
    local name=$1 grid=$2 note
    shift 2
    ranks $((${grid//x/*})) --check --grid "$grid" "$@" && [ "$(grep -c '^ok' out)" -eq 3 ]
    local status=$?
    note=$(sed -n 's/^ok *gradients, [^:]*: \([^ ]* in .*\) on .*/\1/p' out)
    check "gradients on $grid, $name" $status "$note"
}

# ---- GPUs ----

if [ "$kind" = one ] || [ "$kind" = several ]; then
    program=$given
    command -v mpirun >/dev/null || { echo "there is no mpirun here"; exit 77; }
    gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | wc -l)
    [ "$gpus" -gt 0 ] || { echo "there is no GPU here"; exit 77; }
    [ "$kind" = one ] || [ "$gpus" -gt 1 ] || { echo "there is one GPU here"; exit 77; }
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
    small="--backend cuda --layers 2 --channels 256 --heads 4 --kv-heads 2 --hidden 300 --tokens 300 --batch 2"
    large="--backend cuda --layers 4 --channels 256 --heads 4 --kv-heads 2 --hidden 512 --tokens 2048 --batch 2"
    grids="1x2x1 2x1x1 1x1x2"
    [ "$gpus" -ge 4 ] && grids+=" 2x2x1"
    [ "$gpus" -ge 8 ] && grids+=" 2x2x2"
    # shellcheck disable=SC2086 # the options are several words
    for type in f32 bf16; do
        ranks 1 $large --type $type --steps 50 --json one
        check "$type on one GPU runs" $?
        if [ "$kind" = one ]; then
            note=$(sed -n 's/^attention: //p' out)
            [ "$type" = f32 ] || [ "$capability" != 9.0 ] || [[ "$note" == *', sm90, '* ]]
            check "$type: attention has the GPU's best kernels" $? "$note"
            note=$(falls one 0.7)
            check "$type: the loss falls" $? "$note"
            right_gradients "$type" 1x1x1 $small --type $type
            continue
        fi
        for grid in $grids; do
            right_gradients "$type" "$grid" $small --type $type --mask 'heads(0-1: full; 2-3: window(70,0))'
            like_one "$grid" "$([ $type = f32 ] && echo 1e-4 || echo 1e-2)" $large --type $type
        done
    done
    echo "$passed passed, $failed failed"
    [ $failed -eq 0 ]
    exit
fi
[ "$kind" = cpu ] || usage

# ---- CPUs: build ----

PKG_CONFIG_PATH=$(dirname "$(find "$given" -name hra.pc)")
export PKG_CONFIG_PATH
cp -r "$top/examples/megatron" source
make -s -C source -j 2 CXXFLAGS='-O2 -Wall -Wextra -Wpedantic -Werror' >out 2>&1
check "make builds it against $given" $?
program=$work/source/megatron
readelf -d "$program" | grep -q 'NEEDED.*libhra-mpi' && ! grep -rn "$top" source/*.o >out
check "it is linked with libhra-mpi and knows nothing of the source tree" $?
cmake -S "$top/examples/megatron" -B by-cmake -DCMAKE_PREFIX_PATH="$given" -DCMAKE_BUILD_TYPE=Debug >out 2>&1 && cmake --build by-cmake -j 2 >>out 2>&1 &&
    by-cmake/megatron --help >>out 2>&1 && grep -q -- --grid out
check "CMake builds it" $?

# The GPU's side cannot run where there is no GPU, but is built where it can be.
cuda=/usr/local/cuda
if [ -x $cuda/bin/nvcc ] && [ -e $cuda/include/nccl.h ] && [ -n "$(find "$given" -name nccl.h)" ]; then
    cp -r "$top/examples/megatron" cuda
    make -s -C cuda -j 2 CUDA=1 CXXFLAGS='-O1 -Wall -Wextra -Wpedantic -Werror' CUDA_ARCH=-arch=sm_80 \
        NVCC="$cuda/bin/nvcc -Werror all-warnings -Xcompiler=-Wall,-Wextra" >out 2>&1 && [ ! -s out ]
    check "make CUDA=1 builds it without a warning" $?
    if ! nvidia-smi >/dev/null 2>&1; then
        program=$work/cuda/megatron ranks 1 --backend cuda
        [ $? -eq 2 ] && grep -q '^megatron: NCCL wants a GPU for each rank; on some node there are 1 too few' out
        check "which says that there is no GPU" $?
    fi
else
    echo "skipped: there is no nvcc or no NCCL here, or the library has no GPUs: make CUDA=1"
fi

# ---- CPUs: gradients ----

small="--layers 2 --channels 32 --heads 4 --kv-heads 2 --hidden 48 --tokens 70 --batch 2"
by_head='heads(0-1: full; 2-3: window(20,0))'
# shellcheck disable=SC2086 # the options are several words
{
    right_gradients "f64" 1x1x1 $small --type f64
    right_gradients "f64, another mask for each tensor rank" 2x2x2 $small --type f64 --mask "$by_head"
    right_gradients "f64, heads and vocabulary in thirds, Hilbert order" 3x2x1 --layers 1 --channels 30 --heads 3 \
        --tokens 41 --batch 1 --type f64 --order hilbert
    right_gradients "f32, ranks without rows" 1x6x1 $small --tokens 4
    right_gradients "bf16" 2x2x1 $small --type bf16

    # Faults that the check must find, each in a copy.
    planted() { # planted NAME FILE SED
        cp -a source planted
        sed -i "$3" "planted/$2"
        if cmp -s "source/$2" "planted/$2" || ! make -s -C planted CXXFLAGS=-O0 >out 2>&1; then
            check "a planted fault can be planted: $1" 1
        else
            program=$work/planted/megatron ranks 8 --check --grid 2x2x2 $small --type f64 --mask "$by_head"
            [ $? -eq 1 ] && grep -q '^FAILED *gradients' out
            check "the check finds a planted fault: $1" $?
        fi
        rm -rf planted
    }
    planted "all tensor ranks have head 0" attention.cpp 's/problem.head0 = .*/problem.head0 = 0;/'
    planted "positions are those of local rows" model.cpp \
        's/for (int64_t token : tokens)$/for (int64_t token = 0; token < static_cast<int64_t>(tokens.size()); token++)/'
    planted "gradients of column-parallel inputs are not added up" model.cpp \
        's/if (l.how == split::rows)/if (l.how == split::none)/'
}

# ---- CPUs: training ----

model="--layers 2 --channels 64 --heads 4 --kv-heads 2 --hidden 128 --tokens 192 --batch 4 --lr 0.003"
# shellcheck disable=SC2086
{
    ranks 1 $model --steps 50 --json one
    check "one rank runs" $?
    note=$(falls one 0.7)
    check "the loss falls" $? "$note"
    like_one 2x2x2 1e-4 $model
    for grid in 1x4x1 2x1x2; do
        like_one $grid 1e-4 $model
    done

    # The comparison can fail.
    awk 'NR == 37 { match($0, /"loss": [0-9.]*/); loss = substr($0, RSTART + 8, RLENGTH - 8)
                    sub(/"loss": [0-9.]*/, sprintf("\"loss\": %.12g", loss * 1.0002)) } { print }' losses-2x2x2 >off
    note=$(same_losses one off 1e-4 50)
    check "one loss of 50 that is off by 2e-4 is seen" $((!$?)) "$note"
    sed 37d losses-2x2x2 >short
    note=$(same_losses one short 1e-4 50)
    check "a step that is missing is seen" $((!$?)) "$note"
    sed '37s/"loss": [^,]*/"loss": nan/' losses-2x2x2 >nan
    note=$(same_losses one nan 1e-4 50)
    check "a loss that is no number is seen" $((!$?)) "$note"

    more="$model --steps 8"
    ranks 1 $more --json same
    ranks 4 $more --grid 2x2x1 --type bf16 --json bf16
    note=$(same_losses same bf16 1e-2 8)
    check "bf16 on 2x2x1 gives the losses of one rank in f32 to 1e-2" $? "$note"
    for option in '--seed 2' '--lr 0.001' '--warmup 3' '--decay 1' '--order hilbert' '--mask window(9,0)' '--threads 2'; do
        ranks 2 $more $option --grid 1x2x1 --json other
        note=$(same_losses same other 1e-6 8)
        status=$?
        case $option in
            --order* | --threads*) check "$option changes no loss" $status "$note" ;;
            *) check "$option changes the losses" $((!status)) "$note" ;;
        esac
    done
}

# ---- CPUs: refusals ----

refused() { # refused RANKS SENTENCE arguments...: exit 2 and the sentence, once
    local n=$1 sentence=$2
    shift 2
    ranks "$n" "$@"
    local status=$?
    [ $status -eq 2 ] && grep "^megatron: " out | grep -qF -e "$sentence" && [ "$(grep -c '^megatron:' out)" -eq 1 ]
    check "refused: $sentence" $?
}
refused 2 "--grid 2x2x2: takes 8 ranks, there are 2" --grid 2x2x2
refused 1 "--grid 2x2: must be TENSORxCONTEXTxDATA" --grid 2x2
refused 2 "--heads 3: must be a multiple of the grid's tensor ranks, 2" --grid 2x1x1 --heads 3 --channels 96
refused 2 "--kv-heads 1: must be a multiple of the grid's tensor ranks, 2" --grid 2x1x1 --kv-heads 1
refused 2 "--batch 3: must be a multiple of the grid's data ranks, 2" --grid 1x1x2 --batch 3
refused 1 "--channels 130: must be a multiple of --heads 4" --channels 130
refused 1 "heads have 512 channels; must be a multiple of 2 and at most 256" --channels 2048
refused 1 "mask: character 1: expected a mask" --mask 'windo(3)'
refused 1 "cannot read the text nowhere: No such file" --text nowhere
refused 2 "alice.txt has 148476 bytes: too few for a sequence of 200000" --tokens 200000
refused 2 "cannot write /nowhere/file: No such file" --json /nowhere/file
refused 1 "--steps 5x: must be a whole number" --steps 5x
refused 1 "unknown option --frob" --frob
refused 1 "--backend cuda: this program was built without CUDA" --backend cuda
refused 2 "--mask: batches() numbers the sequences of one data rank" --grid 1x1x2 --mask 'batches(0: causal; 1: full)'
ranks 2 --grid 1x2x1 --steps 2 --json /dev/full
[ $? -eq 1 ] && grep -q '^megatron: rank 0: cannot write /dev/full: No space left' out
check "a file that cannot be written further ends the job" $?

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

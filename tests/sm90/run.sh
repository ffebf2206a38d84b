#!/usr/bin/env bash
# Tests the logic of the sm90 kernels on a machine without a GPU: their source is compiled for the host on top of emulator.h.
# Needs g++, MPI, and the headers of CUDA 12.5 or later, which come with nvcc; nothing else of CUDA.
#     tests/sm90/run.sh [BUILD=DIR]     builds in DIR, which is kept; default: a folder that is removed at the end
# First hra-check, the tests of resuming and of cutting and those of the order of sums must pass; then faults are planted in
# the kernels, each of which must be caught.
# Exit status: 0 passed, 1 something failed, 77 there are no headers of CUDA.
# shellcheck disable=SC2016 # commands that another shell is given
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=
for argument in "$@"; do
    case $argument in
        BUILD=*) BUILD=${argument#*=} ;;
        *) echo "usage: tests/sm90/run.sh [BUILD=DIR]" >&2 && exit 1 ;;
    esac
done
if [ -z "$BUILD" ]; then
    BUILD=$(mktemp -d) || exit 1
    trap 'rm -rf "$BUILD"' EXIT
fi
mkdir -p "$BUILD/objects" || exit 1
export BUILD OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# ---- Building ----

nvcc=$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")
CUDA=
for folder in "${CUDA_PATH:-}/include" "${CUDA_HOME:-}/include" "${nvcc%/bin/nvcc}/include" /usr/local/cuda/include /usr/include; do
    if printf '#include <cuda.h>\n#include <cuda_bf16.h>\n#if CUDA_VERSION < 12050\n#error\n#endif\n' |
        g++ -I "$folder" -fsyntax-only -x c++ - 2>/dev/null; then
        CUDA=$folder
        break
    fi
done
[ -n "$CUDA" ] || { echo "skipped: the headers of CUDA 12.5 or later are not here; CUDA_PATH says where they are"; exit 77; }
MPI=$(mpicc --showme:compile)
export CUDA MPI

# SOURCE: of the library, as with CUDA, and of the programs, as without a GPU.
compile() {
    # shellcheck disable=SC2046,SC2086
    gcc -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -Wno-psabi -fopenmp-simd -Iinclude -I. -isystem "$CUDA" $MPI \
        -DHRA_HAVE_MPI $([ "$1" != src/plan.c ] || echo -DHRA_CUDA) -c "$1" \
        -o "$BUILD/objects/$(echo "${1%.c}" | tr / _).o"
}

# PASS FOLDER OBJECT: the kernel of a pass on the emulator; what is in FOLDER takes the place of the checkout's files.
emulator() {
    local source=tests/sm90/backward.cpp
    [ "$1" = backward ] || source=tests/sm90/emulator.cpp
    g++ -std=c++17 -O2 -ftree-vectorize -march=native -ffp-contract=off -fno-strict-aliasing -U_FORTIFY_SOURCE -Wall -Wextra -Werror \
        -Wno-unknown-pragmas -Wno-psabi -Itests/sm90 -I"$2" -Iinclude -I. -isystem "$CUDA" -c "$source" -o "$3"
}

# PROGRAM OBJECT...: these and the library.
link() {
    # shellcheck disable=SC2046
    g++ -o "$1" "${@:2}" "$BUILD"/objects/{src,comm,kernels}_*.o -lopenblas -lm -lpthread $(mpicc --showme:link)
}
export -f compile emulator link

tools=("$BUILD"/objects/examples_tools_{hra-check,npy,problem,world,oracle,plain,device}.o)
export CHECK=${tools[*]}
{
    echo 'emulator forward . "$BUILD/forward.o"'
    echo 'emulator backward . "$BUILD/backward.o"'
    for source in src/*.c comm/{comm,hops,self,mpi}.c kernels/{cpu,sm90}/*.c tests/sm90/{resume,twice,order,margin,cuts,home}.c \
        examples/tools/{hra-check,npy,problem,world,oracle,plain,device}.c; do
        echo "compile $source"
    done
} | xargs -d '\n' -n 1 -P 2 bash -c || exit 1
link "$BUILD/hra-check" "$BUILD/forward.o" "$BUILD/backward.o" "${tools[@]}" &&
    link "$BUILD/resume" "$BUILD/forward.o" "$BUILD/backward.o" "$BUILD/objects/tests_sm90_resume.o" &&
    link "$BUILD/twice" "$BUILD/forward.o" "$BUILD/backward.o" "$BUILD/objects/tests_sm90_twice.o" &&
    link "$BUILD/order" "$BUILD/forward.o" "$BUILD/backward.o" "$BUILD/objects/tests_sm90_order.o" &&
    link "$BUILD/margin" "$BUILD/forward.o" "$BUILD/backward.o" "$BUILD/objects/tests_sm90_margin.o" &&
    link "$BUILD/cuts" "$BUILD/forward.o" "$BUILD/backward.o" "$BUILD/objects/tests_sm90_cuts.o" &&
    link "$BUILD/home" "$BUILD/forward.o" "$BUILD/backward.o" "$BUILD/objects/tests_sm90_home.o" || exit 1
echo "built after $SECONDS s"

# ---- Running ----

# Ragged tiles, groups of heads, batches, several tiles a row, and rows that have keys late or never.
cat >"$BUILD/list" <<'END'
--tokens 385 --heads 3 --kv-heads 1 --dim 128 --dtype f16 --batch 2 --mask full --seed 1
--tokens 129 --heads 4 --kv-heads 2 --dim 64 --dtype bf16 --mask causal --seed 2
--tokens 511 --heads 2 --dim 64 --dtype f16 --mask 'window(140,-)' --dlse --seed 3
--tokens 640 --heads 1 --dim 128 --dtype bf16 --mask 'mix(causal; window(20,20); full)' --seed 4
--grid 24x20 --heads 4 --kv-heads 2 --batch 2 --dim 64 --dtype bf16 --order hilbert --mask 'grid(3,4)' --seed 5
--tokens 400 --heads 1 --dim 128 --dtype bf16 --mask 'blocks(50; 0:0 1; 1:7; 3:0 7)' --seed 7
--tokens 900 --heads 3 --kv-heads 1 --batch 2 --dim 64 --dtype bf16 --mask causal --dlse --seed 8
--tokens 1000 --heads 2 --dim 64 --dtype f16 --mask 'window(140,130)' --seed 9
--grid 40x40 --heads 2 --dim 128 --dtype bf16 --order hilbert --mask 'grid(4,4)' --seed 10
--tokens 3 --heads 32 --dim 64 --dtype f16 --scale 20 --mask full --seed 6
END

# What three groups of consumers compute: mostly three query tiles as two items, whose lists are joined and differ.
cat >"$BUILD/threes" <<'END'
--tokens 1152 --heads 3 --dim 64 --dtype bf16 --mask '!blocks(128; 1:3; 7:2)' --seed 1
--tokens 1200 --heads 4 --kv-heads 2 --dim 64 --dtype f16 --mask '!blocks(16; 9:31; 60:2) & !blocks(128; 4:1)' --seed 2
END

# Rows by token. Boxes of half a tile, of a tile, and cut short at an end; in three axes; residues as tiles, and two of them in
# one, with rows that nobody selects.
cat >"$BUILD/tokens" <<'END'
--rows tokens --grid 32x32 --heads 2 --batch 2 --dim 128 --dtype bf16 --order boxes:8x8 --mask 'grid(4,4)' --seed 1
--rows tokens --grid 20x32 --heads 4 --kv-heads 2 --batch 2 --dim 64 --dtype f16 --order boxes:8x16 --mask 'grid(6,6)' --seed 2
--rows tokens --grid 6x8x16 --heads 2 --kv-heads 1 --dim 128 --dtype bf16 --order boxes:4x4x8 --mask 'neighbourhood(3,5,5)' --dlse --seed 3
--rows tokens --tokens 1024 --heads 1 --batch 2 --dim 128 --dtype f16 --order residues:512:4 --mask 'dilated(512,4,0,both)' --seed 4
--rows tokens --tokens 1024 --heads 2 --dim 64 --dtype bf16 --order residues:256:4 --mask causal --seed 5
END
# No boxes: what is read comes into slot order, and may be kept for backward.
cat >"$BUILD/gathered" <<'END'
--rows tokens --grid 24x20 --heads 2 --batch 2 --dim 128 --dtype bf16 --order hilbert --mask 'grid(4,4)' --seed 1
--rows tokens --saved qkv --tokens 700 --heads 4 --kv-heads 2 --dim 64 --dtype f16 --order random:3 --mask 'window(200,9)' --dlse --seed 2
END

# Items that do not come out even on 2 to 4 multiprocessors, of which each plan finds another number: some are cut in two, and
# second parts begin behind first ones.
cat >"$BUILD/uneven" <<'END'
--tokens 640 --heads 1 --dim 128 --dtype f16 --mask full --seed 1
--tokens 640 --heads 1 --dim 128 --dtype bf16 --mask full --seed 2
--tokens 640 --heads 1 --dim 64 --dtype f16 --mask full --dlse --seed 3
--tokens 640 --heads 5 --dim 128 --dtype f16 --mask full --seed 4
--tokens 900 --heads 3 --dim 64 --dtype bf16 --mask full --seed 5
--grid 24x24 --heads 5 --dim 128 --dtype f16 --order hilbert --mask 'grid(7,7)' --seed 6
--grid 24x24 --heads 3 --dim 64 --dtype bf16 --order hilbert --mask 'grid(9,9)' --seed 7
--grid 24x24 --heads 3 --dim 128 --dtype bf16 --order hilbert --mask 'grid(9,9)' --seed 8
END

# Every line of it is read and written where it is.
as_they_are() {
    local line
    while read -r line; do
        eval "check $line" | grep "forward takes them as they are, backward reorders them" || return 1
    done <"$BUILD/tokens"
}

check() { "$BUILD/hra-check" --backend sm90 "$@"; }

ranks() { mpirun --oversubscribe --bind-to none -n "$1" "$BUILD/hra-check" --backend sm90 "${@:2}"; }

# FILE SCRIPT PASS [COMMAND]: the first problems of the list, or the command, on a kernel into which sed has planted a fault.
# Passes where they fail, and do so in time.
fault() {
    local folder other=backward status=0
    folder=$(mktemp -d "$BUILD/fault-XXXXXX") && mkdir -p "$folder/kernels/sm90" || return 1
    sed -z "$2" "kernels/sm90/$1" >"$folder/kernels/sm90/$1"
    ! cmp -s "kernels/sm90/$1" "$folder/kernels/sm90/$1" || { echo "the fault is not planted: $2"; return 1; }
    [ "$3" = forward ] || other=forward
    # shellcheck disable=SC2086
    emulator "$3" "$folder" "$folder/emulator.o" && link "$folder/hra-check" "$folder/emulator.o" "$BUILD/$other.o" $CHECK &&
        link "$folder/twice" "$folder/emulator.o" "$BUILD/$other.o" "$BUILD/objects/tests_sm90_twice.o" &&
        link "$folder/home" "$folder/emulator.o" "$BUILD/$other.o" "$BUILD/objects/tests_sm90_home.o" || return 1
    head -n 2 "$BUILD/list" >"$folder/list"
    # shellcheck disable=SC2086
    PATH=$folder:$PATH timeout -k 5 90 ${4:-hra-check --backend sm90 --list "$folder/list"} || status=$?
    [ $status -ne 0 ] && [ $status -ne 124 ]
}

# NAME COMMAND: must pass.
one() {
    local began=$SECONDS status=0 log
    log=$(mktemp "$BUILD/log-XXXXXX") || exit 1
    timeout -k 5 120 bash -c "$2" >"$log" 2>&1 </dev/null || status=$?
    printf '%-8s%-48s%4d s\n' "$([ $status -eq 0 ] && echo ok || echo FAILED)" "$1" $((SECONDS - began))
    [ $status -eq 0 ] || { tail -n 20 "$log"; exit 1; }
}
export -f as_they_are check ranks fault one

both() { printf '%s\0%s\0' "$@"; }

{
    both "drawn problems" 'check --random 20'
    both "drawn problems on 3 ranks" 'ranks 3 --random 6 --seed 2'
    both "ragged tiles" 'check --list "$BUILD/list"'
    both "three groups of consumers" 'check --list "$BUILD/threes"'
    both "rows by token" 'check --list "$BUILD/tokens"'
    both "rows by token as they are" as_they_are
    both "rows by token in another order" 'check --list "$BUILD/gathered"'
    both "ragged tiles on 3 ranks" 'ranks 3 --list "$BUILD/list"'
    both "kernels go on from what comes home" 'mpirun --oversubscribe --bind-to none -n 2 "$BUILD/home"'
    both "the same bits, however lists are cut" '"$BUILD/resume"'
    both "items that are cut in two" 'check --list "$BUILD/uneven"'
    both "cut items are there once, and launches end sooner" '"$BUILD/cuts"'
    both "the same bits every time" '"$BUILD/twice"'
    both "the order of sums of whole GPUs can be kept" '"$BUILD/order"'
    both "multiprocessors are left to others" '"$BUILD/margin"'
} | xargs -0 -n 2 -P 2 bash -c 'one "$@"' one || exit 1

# What stands in the loop of the kernel, for sed: a wait, and that a slot of the ring is given back. With few slots what is
# given back too soon is soon overwritten.
wait_s='products_wait<1>();\n *pin(scores);\n *'
wait_o='products_wait<0>();\n *pin(out);\n *'
# First parts are late, which alone is no fault.
linger='for (int i = 0; i < 3000; i++, emulated::chip.progress++) emulated::yield();'
late_state="s/keep_state<D>(out[^;]*;/{ if (item.flags[0] \& HRA_SM90_TELLS) $linger & }/"
late_part="s/HRA_SM90_FIRST) {/&$linger/"
listed="hra-check --backend sm90 --list $BUILD/list"
joined="hra-check --backend sm90 --list $BUILD/threes"
give='if (signals)\n *barrier_arrive(shared_address(&s.empty.SLOT.slot.));\n *'
{
    both "fault: S is read before it is there" "fault forward.cu 's/products_wait<1>/products_wait<2>/' forward"
    both "fault: P is overwritten while it is read" "fault forward.cu 's/${wait_o}if/pack_probabilities<X>(p, scores);&/' forward"
    both "fault: K is given back while it is read" "fault forward.cu 's/D == 128 ? 6 : G == 2 ? 13 : 11/3/;s/static_assert(is_as[^;]*;//g;s/\\($wait_s\\)\\(${give/SLOT/at}\\)/\\2\\1/' forward 'hra-check --backend sm90 --list $BUILD/list'"
    both "fault: V is given back while it is read" "fault forward.cu 's/D == 128 ? 6 : G == 2 ? 13 : 11/3/;s/static_assert(is_as[^;]*;//g;s/\\($wait_o\\)\\(${give/SLOT/value}\\)/\\2\\1/' forward 'hra-check --backend sm90 --list $BUILD/list'"
    both "fault: halves are given back while they are read" "fault forward.cu 's/SLOTS = D == 128 ? 12 : 26/SLOTS = 12/;s/\(products_wait<1>();\n *pin(scores);\n *\)\(free_part(part);\n *\)/\2\1/' forward '$listed'"
    both "fault: one group has the other's halves" "fault forward.cu 's/group == 0 ? 0 : (int)(places/group == 1 ? 0 : (int)(places/' forward '$listed'"
    both "fault: the bits of the left half for the right" "fault forward.cu 's/bits & HRA_SM90_RIGHT ? 1 : 0/0/' forward '$listed'"
    both "fault: the second axis of boxes is forgotten" "fault forward.cu 's/g.axes == 2/g.axes > 0/' forward 'hra-check --backend sm90 --list $BUILD/tokens'"
    both "fault: outputs go to slots" "fault forward.cu 's/a.token\[row\]/row/' forward 'hra-check --backend sm90 --list $BUILD/tokens'"
    both "fault: a second part does not wait for the first" "fault forward.cu 's/item.flags.0. & HRA_SM90_WAITS) .\* who/false) \/* who/;$late_state' forward 'hra-check --backend sm90 --list $BUILD/uneven'"
    both "fault: what is waited for has not ended" "fault forward.cu 's/if (!(before & HRA_SM90_TELLS)/if (true || !(before \& HRA_SM90_TELLS)/' forward 'hra-check --backend sm90 --list $BUILD/uneven'"
    both "fault: Q is given back without a fence" "fault forward.cu 's/D == 128 ? 6 : G == 2 ? 13 : 11/3/;s/static_assert(is_as[^;]*;//g;s/publish_shared();//g' forward 'hra-check --backend sm90 --list $BUILD/list'"
    both "fault: Q in shared memory is given back too soon" "fault forward.cu 's/q.matrix = [^;]*;/&if (signals) barrier_arrive(shared_address(\&s.empty_q[buffer]));/;s/G == 3 && next & /false \&\& &/;s/G == 2 ? 1 : 2/1/;s/static_assert(is_as[^;]*;//g' forward '$joined'"
    both "fault: the bits of an item's first tile for both" "fault forward.cu 's/? s.second.slot. : tile/\&\& slot < 0 ? 1u : tile/' forward '$joined'"
    both "fault: what only the other tile has is attended to" "fault forward.cu 's/ABSENT)\n *return {0, 0}/ABSENT) return {~0u, ~0u}/' forward '$joined'"
    both "fault: the item before lends its Q" "fault forward.cu 's/load_queries<D>(q[^;]*;/if (turn == 0) &/' forward"
    both "fault: negative scores are compared as integers" "fault forward.cu 's/return __any_sync(~0u, rows.high[^;]*;/return rows.high[0] > 1e30f;/' forward 'hra-check --backend sm90 $(tail -n 1 "$BUILD/list")'"
    both "fault: dQ is added in any order" "fault backward.cu 's/while (load_acquire(a.added[^;]*;//' backward twice"
    both "fault: dK is gone on with before it is left" "fault backward.cu 's/while (load_acquire(&a.told[^;]*;//;$late_part' backward 'hra-check --backend sm90 --list $BUILD/uneven'"
    both "fault: dV of a first part is lost" "fault backward.cu 's/load_sums<HRA_SM90_CONSUMERS>(dv[^;]*;/begin_sums(dv, place_of(chunk.dv, item, chunk.head0, thread), chunk.zero, thread);/' backward 'hra-check --backend sm90 --list $BUILD/uneven'"
    both "fault: what came home of tiles that nobody sees is lost" "fault backward.cu 's/if (!chunk.zero) {/if (false) {/' backward 'mpirun --oversubscribe --bind-to none -n 2 home'"
    both "fault: dQ is overwritten before it is read" "fault backward.cu 's/stores_wait_read();//' backward"
    both "fault: dS is overwritten while it is read" "fault backward.cu 's/barrier_wait(shared_address(&s.empty_slope), n % 2 . 1);//' backward"
    both "fault: keys are overwritten while they are read" "fault backward.cu 's/barrier_wait(shared_address(&s.empty_[kv]), turn % 2 . 1);//g' backward"
    both "fault: gradients of keys that do not exist" "fault backward.cu 's/to.row + 8 . r < to.rows/true/;s/row + 8 . r < item.rows/true/' backward"
} | xargs -0 -n 2 -P 2 bash -c 'one "$@"' one || exit 1

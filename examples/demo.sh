#!/usr/bin/env bash
# demo.sh - the real job on this machine: installs what is missing (Debian), builds, trains on a text and
# on a photograph over several ranks, and says where the pictures are.
#
#     examples/demo.sh [RANKS]     4 ranks unless told; under two minutes on 2 idle cores after the build
#
# Output goes to build-demo/results of the checkout.
set -eu

ranks=${1:-4}
case $ranks in
'' | *[!0-9]* | 0*) echo "usage: $0 [RANKS]   RANKS is a whole number from 1" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
root=$PWD
data=examples/data
results=$root/build-demo/results

.ci/install gcc libc6-dev meson ninja-build pkg-config openmpi-bin libopenmpi-dev libopenblas-pthread-dev libcairo2-dev

if [ ! -f build-demo/build.ninja ]; then
    meson setup build-demo --buildtype=release -Dtests=disabled -Dexamples=enabled >/dev/null
fi
ninja -C build-demo >/dev/null || ninja -C build-demo # the second run says what is wrong
train=$root/build-demo/examples/train/hra-train

# OpenBLAS 0.3.21 takes processors newer than itself for the oldest it knows: 32 instead of 75 GFLOP/s a
# core where it happened. Its kernels for AVX2 run on all of them.
if [ -z "${OPENBLAS_CORETYPE:-}" ] && grep -qw avx2 /proc/cpuinfo && grep -qw fma /proc/cpuinfo; then
    export OPENBLAS_CORETYPE=Haswell
fi
flags=(--oversubscribe -n "$ranks")
[ "$(id -u)" -ne 0 ] || flags+=(--allow-run-as-root)

mkdir -p "$results"
begin=$SECONDS
echo
echo "== A text, $ranks ranks: the next byte of Alice's Adventures in Wonderland"
mpirun "${flags[@]}" "$train" --text $data/alice.txt --steps 450 --out "$results/text"
text_s=$((SECONDS - begin))
echo
echo "== A photograph, $ranks ranks: fill in the pixels that are hidden"
mpirun "${flags[@]}" "$train" --image $data/astronaut.png --steps 250 --out "$results/image"
all_s=$((SECONDS - begin))
echo
echo "text $text_s s, photograph $((all_s - text_s)) s, together $all_s s; look at"
printf '    %s\n' "$results/image/picture.png" "$results/image/loss.png" "$results/text/loss.png"

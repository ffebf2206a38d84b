#!/usr/bin/env bash
# pictures.sh - makes docs/pictures: one picture a mask, pair by pair, and a few of whole plans. On one machine the same
# bytes every time; on another the letters may come from other fonts.
#
#     docs/pictures.sh [BUILD_DIR]     build unless told; configured and built where it is not
set -eu

cd "$(dirname "$0")/.."
build=${1:-build}
out=docs/pictures
scratch=$(mktemp -d) # the pictures of before stay until all new ones are there
trap 'rm -rf "$scratch"' EXIT

if [ ! -e "$build/build.ninja" ]; then
    meson setup "$build" -Dexamples=enabled >/dev/null
fi
ninja -C "$build" examples/hra-plan >/dev/null || ninja -C "$build" examples/hra-plan # the second run says what is wrong
plan=$build/examples/hra-plan

pairs() { # NAME, MASK, OPTIONS...
    "$plan" --mask "$2" --pairs "$scratch/$1.png" "${@:3}" >/dev/null
    echo "$out/$1.png"
}

picture() { # NAME, OPTIONS...
    "$plan" "${@:2}" >/dev/null
    echo "$out/$1.png"
}

text=(--heads 1 --tokens 32)
image=(--heads 1 --grid 8x8)

pairs full 'full' "${text[@]}"
pairs causal 'causal' "${text[@]}"
pairs window 'window(4,2)' "${text[@]}"
pairs grid 'grid(1,1)' "${image[@]}"
pairs neighbourhood 'neighbourhood(3,3)' "${image[@]}"
pairs neighbourhood-stride 'neighbourhood(4,4; 2,2)' "${image[@]}"
pairs docs 'docs(10,3,12,7)' "${text[@]}"
pairs dilated-keys 'dilated(16,4)' "${text[@]}"
pairs dilated-both 'dilated(16,4,1,both)' "${text[@]}"
pairs dilated-residue 'dilated(16,4,0,residue)' "${text[@]}"
pairs global 'global(3)' "${text[@]}"
pairs blocks 'blocks(8; 0:0 3; 1:1; 2:1 2; 3:0 3)' "${text[@]}"
pairs local-blocks 'local_blocks(4,1)' "${text[@]}"
pairs strided-blocks 'strided_blocks(2,4,1)' "${text[@]}"
pairs global-blocks 'global_blocks(4,1,1)' "${text[@]}"
pairs random-blocks 'random_blocks(4,2,7)' "${text[@]}"
pairs hierarchical-blocks 'hierarchical_blocks(1,2,3)' "${text[@]}"
pairs slots 'slots(hilbert; window(3,3))' "${image[@]}"
for head in 0 1; do
    pairs heads-$head 'heads(0: causal; 1: window(4,2))' --tokens 32 --heads 2 --head $head
done
for sequence in 0 1; do
    pairs batches-$sequence 'batches(0: docs(20,12); 1: docs(9,23))' "${text[@]}" --batch 2 --sequence $sequence
done
pairs mix 'mix(window(6,0); dilated(32,4))' "${text[@]}"
pairs longnet 'longnet(8:1, 16:2, 32:4)' "${text[@]}"
pairs not '!window(4,2)' "${text[@]}"
pairs and 'causal & window(6,6)' "${text[@]}"
pairs or 'window(2,2) | global(2)' "${text[@]}"

for order in hilbert boxes:8x16; do
    name=plan-${order%%:*}
    picture "$name" --grid 64x64 --mask 'grid(16,16)' --order "$order" --ranks 4 --picture "$scratch/$name.png"
done
picture ring --tokens 4096 --mask full --ranks 4 --rounds "$scratch/ring.png"

mkdir -p "$out"
rm -f "$out"/*.png
cp "$scratch"/*.png "$out"

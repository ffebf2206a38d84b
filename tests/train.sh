#!/usr/bin/env bash
# train.sh - holds hra-train to its promises: the same losses on 1 and 4 ranks, resuming that cannot be
# told from an uninterrupted run, and clear refusals. A line a check; fails if one does.
#
#     tests/train.sh path/to/hra-train
set -u

[ $# -eq 1 ] && [ -x "$1" ] || { echo "usage: $0 path/to/hra-train" >&2; exit 2; }
train=$(realpath "$1")
data=$(cd "$(dirname "$0")/.." && pwd)/examples/data
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0
passed=0

ranks() { # ranks N arguments...: run on N ranks, output to the file `out`
    local n=$1
    shift
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        timeout 300 mpirun --oversubscribe -n "$n" "$train" "$@" >out 2>&1
}

check() { # check NAME STATUS [WHAT IS KNOWN]
    if [ "$2" -eq 0 ]; then
        echo "ok    $1${3:+: $3}"
        passed=$((passed + 1))
    else
        echo "FAIL  $1${3:+: $3}"
        sed 's/^/      /' out | head -20
        failed=$((failed + 1))
    fi
}

# The largest relative difference of the losses in two files, and failure where it is above $3 or the
# files do not hold $4 steps each.
same_losses() {
    paste -d, "$1" "$2" | awk -F, -v most="$3" -v steps="$4" '
        NR > 1 { d = $2 - $4; d = d < 0 ? -d : d; d /= $2; if (!(d <= worst)) worst = d
                 if ($1 != $3 || $2 == "" || $4 == "" || $2 + 0 != $2 || $4 + 0 != $4) bad = 1 }
        END { printf "largest relative difference %.1e over %d steps", worst, NR - 1
              exit bad || NR - 1 != steps || !(worst <= most) }'
}

falls() { # falls FILE FACTOR: the last loss is below FACTOR times the first
    awk -F, -v factor="$2" 'NR == 2 { first = $2 } { last = $2 }
        END { printf "%.3f, then %.3f", first, last; exit !(last < factor * first) }' "$1"
}

text="--text $data/alice.txt --tokens 600 --layers 2 --dim 48 --heads 4 --kv-heads 2 --seed 3"
image="--image $data/astronaut.png --layers 1 --dim 16 --heads 1 --seed 3"

# shellcheck disable=SC2086 # the options are several words
{
    ranks 1 $text --steps 50 --out text1
    check "text on 1 rank runs" $?
    ranks 4 $text --steps 50 --out text4
    check "text on 4 ranks runs" $?
    note=$(same_losses text1/loss.csv text4/loss.csv 1e-4 50)
    check "text: 1 and 4 ranks give the same losses to 1e-4" $? "$note"
    note=$(falls text1/loss.csv 0.7)
    check "text: the loss falls" $? "$note"
    ranks 4 $text --steps 50 --seed 4 --out other
    same_losses text1/loss.csv other/loss.csv 1e-4 50 >/dev/null
    check "text: another seed gives other losses" $((!$?))

    ranks 1 $image --steps 8 --out image1
    check "image on 1 rank runs" $?
    ranks 4 $image --steps 8 --out image4
    check "image on 4 ranks runs" $?
    note=$(same_losses image1/loss.csv image4/loss.csv 1e-4 8)
    check "image: 1 and 4 ranks give the same losses to 1e-4" $? "$note"
    [ -s image4/picture.png ] && [ -s image4/loss.png ]
    check "image: the pictures are there" $?

    ranks 2 $text --steps 20 --out whole
    ranks 2 $text --steps 20 --stop 9 --checkpoint state --out part
    check "a run that stops writes its checkpoint" $?
    ranks 2 $text --steps 20 --resume state --out resumed
    cmp whole/loss.csv resumed/loss.csv >>out 2>&1 && [ "$(wc -l <resumed/loss.csv)" -eq 21 ]
    check "text: resuming gives every bit of the uninterrupted run's losses" $?
    ranks 4 $image --steps 6 --stop 3 --checkpoint state-image --out part
    ranks 4 $image --steps 6 --resume state-image --out resumed
    ranks 4 $image --steps 6 --out whole
    cmp whole/loss.csv resumed/loss.csv >>out 2>&1
    check "image: likewise" $?

    # A run that is killed, with the options that no other check turns.
    more="$text --steps 40 --order snake --mask window(99,0) --threads 2 --lr 0.005 --quiet"
    ranks 2 $more --out whole
    check "text: order, mask, threads, rate, quiet" $(($? + $(grep -c '^step' out)))
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        mpirun --oversubscribe -n 2 "$train" $more --checkpoint killed --checkpoint-every 1 --out part >out 2>&1 &
    for _ in $(seq 600); do
        [ -e killed ] && break
        sleep 0.05
    done
    kill $!
    wait $!
    ranks 3 $more --resume killed --out resumed
    note=$(same_losses whole/loss.csv resumed/loss.csv 1e-4 40)
    check "text: a killed run goes on, on 3 ranks instead of 2" $? "$note"

    refused() { # refused NAME SENTENCE arguments...: exit 2 and the sentence
        local name=$1 sentence=$2
        shift 2
        ranks 2 "$@" --out refused
        local status=$?
        [ $status -eq 2 ] && grep -q "^hra-train: .*$sentence" out && [ "$(grep -c '^hra-train:' out)" -eq 1 ]
        check "refused: $name" $?
    }
    head -c 5000 state >cut
    refused "a checkpoint that is cut off" "cut is cut off" $text --steps 20 --resume cut
    cp state damaged
    printf 'X' | dd of=damaged bs=1 seek=3000 conv=notrunc 2>/dev/null
    refused "a checkpoint with another byte in it" "damaged is damaged" $text --steps 20 --resume damaged
    refused "the checkpoint of another model" "made with layers 2, this run has layers 3" \
        $text --steps 20 --layers 3 --resume state
    refused "the checkpoint of another length" "made with steps 20, this run has steps 30" \
        $text --steps 30 --resume state
    refused "a text as checkpoint" "is no checkpoint" $text --steps 20 --resume "$data/alice.txt"
    refused "a text that is not there" "cannot read the text nowhere: No such file" --text nowhere
    refused "a picture that is none" "as a PNG: it is none or damaged" --image "$data/alice.txt"
    refused "more tokens than text" "too few for a sequence of 200000 tokens" --text "$data/alice.txt" --tokens 200000
    refused "a checkpoint that cannot be written" "cannot write the checkpoint /nowhere/state: No such file" \
        $text --checkpoint /nowhere/state
    refused "an unknown option" "unknown option --frob" --frob
    refused "a number that is none" "steps 5x: must be a whole number" $text --steps 5x
    refused "no job" "give either --text FILE or --image FILE"
    refused "heads that do not divide" "dim 50: must be a multiple of 2 x --heads 4" $text --dim 50
    refused "a mask that does not parse" "character" $text --mask "window(3"
    refused "an order that is none" "zigzag" $text --order zigzag
    ranks 1 --help && grep -q -- --checkpoint-every out
    check "--help shows the options" $?
}

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

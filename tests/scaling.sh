#!/usr/bin/env bash
# scaling.sh - holds examples/scaling to its promises with a bench whose times are known: what it makes of them, resuming,
# limits, failures, refusals. The real hra-bench is swept in nodes.sh. A line a check; fails if one does.
#
#     tests/scaling.sh BUILD_DIR
set -u

[ $# -eq 1 ] && [ -x "$1/examples/hra-plan" ] || { echo "usage: $0 BUILD_DIR" >&2; exit 2; }
plan=$(realpath "$1")/examples/hra-plan
folder=$(cd "$(dirname "$0")/.." && pwd)/examples/scaling
export PYTHONDONTWRITEBYTECODE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0
passed=0

check() { # check NAME STATUS
    if [ "$2" -eq 0 ]; then
        echo "ok    $1"
        passed=$((passed + 1))
    else
        echo "FAIL  $1"
        sed 's/^/      /' out | tail -20
        failed=$((failed + 1))
    fi
}

# mpirun and hra-bench in one: notes that it was called, fails on 3 ranks, never ends on 5. A pass over n ranks takes
# 1 + 0.1 (n - 1) times what n times the rate of one rank would take; a quarter of it is exposed.
cat >fake <<'END'
#!/usr/bin/env bash
n=$2
echo "$*" >>calls
[ "$n" -ne 3 ] || { echo "hra-bench: HRA_ERR_ARG: a \"sentence\" & <more>" >&2; exit 2; }
[ "$n" -ne 5 ] || { trap '' TERM; sleep 1000 & echo $! >child; wait; sleep 1000; }
[ ! -e slow ] || [ "$n" -eq 1 ] || { touch running; sleep 1000 & echo $! >child; wait; }
tokens=$(sed -E 's/.*--tokens ([0-9]+).*/\1/' <<<"$*")
alone=1
backend=cpu
[[ $* != *'--backend gpu'* ]] || backend=sm90
[[ $* != *--no-alone* ]] || alone=0
awk -v n="$n" -v tokens="$tokens" -v alone="$alone" -v backend="$backend" 'BEGIN {
    for (pass = 1; pass <= 2; pass++) {
        work = tokens * tokens * 4 * 128 * pass
        t = work / (n * 1e9 * 100) * (1 + 0.1 * (n - 1))
        printf "{\"what\": \"%s\", \"backend\": \"%s\", \"ranks\": %d, \"nodes\": %d, \"balance\": 1.05, ",
            pass == 1 ? "forward" : "backward", backend, n, (n + 1) / 2
        printf "\"median_s\": %.9g, \"min_s\": %.9g, \"max_s\": %.9g, ", t, t, t
        printf "\"gflops_live_pairs\": %.9g", work / n / t * 1e-9
        if (n > 1)
            printf ", \"bytes_received\": 1, \"transfer_s\": %.9g", 0.6 * t
        if (n > 1 && alone)
            printf ", \"exposed_s\": %.9g, \"efficiency\": 0.9", t / 4
        print "}"
    }
}'
END
chmod +x fake

sweep() { # options...: the driver over the fake; output to the file `out`
    timeout 60 "$folder/scaling.py" --bench "$plan" --launch ./fake --scale 1/8 "$@" >out 2>&1
}

gone() { # the last process that the fake left to itself ends soon
    for _ in $(seq 100); do
        [ -d "/proc/$(cat child)" ] || return 0
        sleep 0.05
    done
    return 1
}

# holds FILE PYTHON: an expression over the JSON file's `data`, and point(kind, pass, ranks)
holds() {
    python3 - "$1" "$2" >>out 2>&1 <<'END'
import json, sys
data = json.load(open(sys.argv[1]))
def point(kind, way, ranks):
    found = [p for p in data["points"] if (p["kind"], p["pass"], p["ranks"]) == (kind, way, ranks)]
    assert len(found) == 1, found
    return found[0]
def near(a, b):
    return abs(a - b) <= 1e-6 * abs(b)
held = eval(f"({sys.argv[2]})")
print(sys.argv[2], held)
sys.exit(not held)
END
}

sweep --out a --ranks 1,2,4 --alone 2 dense-d128-8k
check "a sweep is done" $?
[ "$(wc -l <calls)" -eq 5 ] && grep -q -- '-n 4 .* --no-alone .*--transport mpi .*--tokens 4096 --mask full' calls &&
    grep -q -- '-n 2 .*--tokens 1024 --mask full' calls && [ "$(grep -c -- --no-alone calls)" -eq 2 ]
check "five runs, that of one rank for both sweeps, each rank alone up to --alone" $?
holds a/scaling.json 'all(near(point(k, w, n)["efficiency"], 1 / (1 + 0.1 * (n - 1)))
    for k in ("strong", "weak") for w in ("forward", "backward") for n in (1, 2, 4)) and len(data["points"]) == 12'
check "efficiency" $?
holds a/scaling.json 'near(point("strong", "forward", 1)["time_s"], 2 * point("strong", "forward", 2)["time_s"] / 1.1) and
    near(point("weak", "forward", 1)["time_s"] * 4 * 1.3, point("weak", "forward", 4)["time_s"])'
check "times: a weak sweep of full has n times the pairs a rank" $?
holds a/scaling.json 'all(near(p["exposed_s"], p["time_s"] / 4) and near(p["hidden_s"], 0.35 * p["time_s"])
    for p in data["points"] if p["ranks"] == 2) and all(near(p["exposed_s"], p["time_s"] * (1 - 1.05 / 1.3)) and
    p["exposed_against"] == "sweep" for p in data["points"] if p["ranks"] == 4)'
check "exposed and hidden transfer, with and without each rank alone" $?
python3 - a/dense-d128-8k-strong.svg a/dense-d128-8k-weak.svg >>out 2>&1 <<'END'
import sys, xml.etree.ElementTree as tree
for name in sys.argv[1:]:
    root = tree.parse(name).getroot()
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    words = " ".join(e.text for e in root.iter() if e.tag.endswith("text"))
    assert len(dots) == 2 * (3 + 3 + 3 + 2 + 2), len(dots)
    assert all(0 < float(d.get("cx")) < 1000 and 0 < float(d.get("cy")) < 760 for d in dots)
    assert all(w in words for w in ("time, ms", "GFLOP/s a rank", "efficiency", "transfer of a rank", "ranks", "nodes")), words
END
check "figures hold all points" $?

: >calls
sweep --out a --ranks 1,2,4 --alone 2 dense-d128-8k && [ ! -s calls ]
check "what is there is not run again" $?
sweep --out a --ranks 1,2,4 --alone 2 --again all --kind weak dense-d128-8k && [ "$(wc -l <calls)" -eq 3 ]
check "but with --again" $?
cp a/dense-d128-8k-weak.svg before.svg
rm a/*.svg
sweep --out a --plot && cmp before.svg a/dense-d128-8k-weak.svg
check "--plot draws what is there" $?

: >calls
sweep --out b --ranks 1,2,3,5 --kind strong --limit 1 dense-d128-8k
[ $? -eq 1 ] && grep -q 'not timed .* 3 .*exit status 2: hra-bench: HRA_ERR_ARG: a "sentence" & <more>' out &&
    grep -q 'not timed .* 5 .*not done after 1 s' out
check "failures are recorded, and the sweep goes on" $?
holds b/scaling.json '[(r["ranks"], r["status"]) for r in data["runs"]] ==
    [(1, "ok"), (2, "ok"), (3, "failed"), (5, "timeout")]'
check "in the file too" $?
gone
check "nothing is left of a run that was stopped" $?
python3 -c 'import xml.etree.ElementTree as tree; tree.parse("b/dense-d128-8k-strong.svg")' >>out 2>&1
check "and its figure is well-formed" $?
: >calls
sweep --out b --ranks 1,2,3 --kind strong --again failed dense-d128-8k
[ $? -eq 1 ] && [ "$(wc -l <calls)" -eq 1 ]
check "--again failed" $?

touch slow
"$folder/scaling.py" --bench "$plan" --launch ./fake --out c --ranks 1,2 --kind strong dense-d128-8k >first 2>&1 &
driver=$!
for _ in $(seq 200); do [ -e running ] && break; sleep 0.05; done
sweep --out c --ranks 1,2 --kind strong dense-d128-8k
[ $? -eq 2 ] && grep -q 'another scaling.py is at work in c' out
check "two at once in one folder are refused" $?
kill -TERM $driver
wait $driver
[ $? -eq 143 ] && gone
check "a sweep that is stopped stops its run" $?
rm slow
: >calls
"$folder/scaling.py" --bench "$plan" --launch ./fake --out c --ranks 1,2 --kind strong dense-d128-8k >out 2>&1 &&
    [ "$(cut -c 1-4 calls)" = "-n 2" ]
check "and goes on where it was" $?

sweep --out gpus --ranks 1,2 --kind strong --backend gpu dense-d128-8k && grep -q 'TFLOP/s a GPU' out &&
    grep -q 'TFLOP/s a GPU' gpus/*.svg && tail -n 1 calls | grep -q -- '--transport gpu --backend gpu --dtype bf16'
check "on GPUs: bf16 over gpu, rates of a GPU" $?

refused() { # refused NAME SENTENCE options...: exit status 2 and the sentence, a/scaling.json as it was
    local name=$1 sentence=$2
    shift 2
    cp a/scaling.json before
    sweep "$@"
    [ $? -eq 2 ] && grep -q -- "$sentence" out && cmp a/scaling.json before
    check "refused: $name" $?
}
refused "results of another scale in one file" "made with scale '1/8', this run has '1/4'" --out a --scale 1/4 dense-d128-8k
refused "a case that is none" "there is no case 'dens'" dens
refused "a number of ranks that is none" "'1,x' is no list of numbers" --ranks 1,x
refused "zero ranks" "'0,1' is no list of numbers" --ranks 0,1
refused "a sweep that is none" "'soft' is none of strong, weak" --kind soft
refused "a backend that is none" "invalid choice: 'gpus'" --backend gpus
refused "GPU transports between CPUs" "there is mpi only" --transport nccl
refused "a bench that is not there" "there is no program /nowhere/hra-bench" --bench /nowhere/hra-bench
refused "a launcher that is not there" "cannot start nowhere: No such file" --out d --launch nowhere dense-d128-8k
refused "a folder that cannot be" "cannot write in fake/x" --out fake/x dense-d128-8k
head -c 700 a/scaling.json >cut.json
mkdir e && cp cut.json e/scaling.json
refused "a file that is cut off" "e/scaling.json is no file of results" --out e dense-d128-8k
cmp cut.json e/scaling.json
check "and it is left as it was" $?
echo '{"format": 1, "settings": {}, "runs": [{"case": "x"}]}' >e/scaling.json
refused "a file that lacks things" "is no file of results" --out e --plot
echo '{"format": 2}' >e/scaling.json
refused "a file of another version" "has format 2, this program reads 1" --out e --plot
refused "plots of nothing" "there are no results in nowhere" --out nowhere --plot

# Masks with the orders in which they are to be measured.
"$folder/scaling.py" --list >cases 2>out
cat >wanted <<'END'
--tokens 8192 --mask full --order identity --dim 128
--tokens 16384 --mask full --order identity --dim 128
--tokens 32768 --mask full --order identity --dim 128
--tokens 65536 --mask full --order identity --dim 128
--tokens 32768 --mask full --order identity --dim 64
--tokens 8192 --mask causal --order identity --dim 128 --heads 16
--tokens 8192 --mask causal --order identity --dim 128 --heads 64 --kv-heads 8
--tokens 16384 --mask causal --order identity --dim 128
--tokens 32768 --mask causal --order identity --dim 128
--tokens 65536 --mask causal --order identity --dim 128
--tokens 32768 --mask causal --order identity --dim 64
--tokens 32768 --mask 'causal & window(4095,0)' --order identity --dim 128
--tokens 32768 --mask 'causal & window(1023,0)' --order identity --dim 128
--tokens 65536 --mask 'strided_blocks(128,16,3)' --order identity --dim 128
--grid 256x256 --mask 'grid(16,16)' --order identity --dim 128
--grid 256x256 --mask 'grid(16,16)' --order hilbert --dim 128
--grid 256x256 --mask 'grid(16,16)' --order boxes:8x16 --dim 128
--grid 1024x1024 --mask 'grid(16,16)' --order hilbert --dim 128
--grid 1024x1024 --mask 'grid(16,16)' --order boxes:8x16 --dim 128
--grid 32x64x64 --mask 'grid(4,8,8)' --order identity --dim 128
--grid 32x64x64 --mask 'grid(4,8,8)' --order hilbert --dim 128
--grid 32x64x64 --mask 'grid(4,8,8)' --order boxes:4x4x8 --dim 128
--tokens 65536 --mask 'dilated(16384,4,0,both)' --order residues:16384:4 --dim 128
--tokens 32768 --mask 'slots(hilbert; dilated(4096,4,0,keys))' --order residues:4096:4:hilbert --dim 64
--grid 256x256 --mask 'neighbourhood(80,80)' --order hilbert --dim 128 --heads 24
--grid 30x48x80 --mask 'neighbourhood(18,24,24)' --order hilbert --dim 128 --heads 24
END
lacking=0
while read -r wanted; do
    grep -qF -- " $wanted" cases || { echo "no case has $wanted" >>out; lacking=1; }
done <wanted
check "every mask that has a target is a case" $lacking
"$folder/scaling.py" --list --scale 1/64 --heads 2 >cases 2>out
check "--list" $?
status=0
while read -r name options; do
    eval "\"$plan\" --ranks 3 $options" >plan 2>>out || { echo "$name: $options" >>out; status=1; }
done <cases
[ $status -eq 0 ] && [ "$(wc -l <cases)" -ge 27 ]
check "a plan can be made of every case" $?
"$folder/scaling.py" --list --scale 1/8 --heads 2 dilated-both-residues dilated-hilbert-residues >cases 2>out
while read -r _ options; do eval "\"$plan\" $options"; done <cases >out 2>&1
grep -q ' residues:2048:4 ' cases && grep -q ' residues:512:4:hilbert ' cases && [ "$(grep -cE '^tiles .* 0 partial' out)" -eq 2 ]
check "segments of orders by residues are scaled as those of their masks" $?
SLURM_JOB_NUM_NODES=2 SLURM_SUBMIT_DIR=$folder/../.. bash "$folder/slurm.sbatch" --bench "$plan" --dry-run \
    --backend gpu causal-d128-8k >out 2>&1 && grep -q -- '^mpirun .*-n 16 .* --backend gpu' out
check "the Slurm script" $?

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

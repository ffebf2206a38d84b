#!/usr/bin/env bash
# Two "nodes" on this machine: network namespaces with names and addresses of their own and two links between them, one on
# which mpirun reaches its daemons and one for the messages of the ranks, which Open MPI sends over TCP. Rings, the trainer
# and a scaling sweep run across them, and then links are cut. Under 40 seconds on two cores; a line a check.
#
#     tests/nodes.sh BUILD_DIR
#
# Exit status: 0; 1 where a check failed; 77 where such namespaces are not allowed, and the last line says what is missing.
# Needs root, or a kernel that lets users be root in a namespace of their own. All of it happens in a process namespace that
# ends with this script, however that ends, and the nodes and links with it.
set -u

skip() {
    echo "skipped: $1"
    exit 77
}

# ---- Outside: make the namespace in which everything happens ----

if [ "${2-}" != inside ]; then
    [ $# -eq 1 ] && [ -x "$1/examples/hra-check" ] || { echo "usage: $0 BUILD_DIR" >&2; exit 2; }
    for tool in ip unshare nsenter setpriv mpirun python3; do
        command -v "$tool" >/dev/null || skip "there is no program $tool"
    done
    for needed in tests/worker examples/hra-bench examples/train/hra-train; do
        [ -x "$1/$needed" ] || skip "$needed is not built"
    done
    sandbox=(unshare --net --mount --pid --fork --kill-child --mount-proc)
    probe=(ip link add probe type veth peer name probed)
    why=$("${sandbox[@]}" "${probe[@]}" 2>&1) || {
        sandbox+=(--user --map-root-user)
        "${sandbox[@]}" "${probe[@]}" 2>/dev/null || skip "namespaces and links in them are not allowed here: $why"
    }
    work=$(mktemp -d)
    child=
    trap '[ -z "$child" ] || kill -KILL "$child" 2>/dev/null; wait; rm -rf "$work"' EXIT
    trap 'exit 143' TERM INT HUP
    setpriv --pdeathsig KILL "${sandbox[@]}" "$(realpath "$0")" "$(realpath "$1")" inside "$work" </dev/null &
    child=$!
    wait "$child"
    exit $?
fi

# ---- Inside: the nodes ----

build=$1
work=$3
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$work" || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work PYTHONDONTWRITEBYTECODE=1
failed=0
passed=0

on() { # NODE, COMMAND...
    nsenter --net="$work/$1.net" --uts="$work/$1.uts" -- "${@:2}"
}

links() { # up or down, LINK...: on both nodes
    local link
    for link in "${@:2}"; do
        on a ip link set "$link" "$1" && on b ip link set "$link" "$1" || return 1
    done
}

# 10.79.0.x is admin, for mpirun and its daemons; 10.79.1.x is fabric, for the ranks.
make_nodes() {
    local node link number=0
    for node in a b; do
        touch $node.net $node.uts
        unshare --net="$work/$node.net" --uts="$work/$node.uts" hostname node-$node || return 1
        on $node ip link set lo up || return 1
    done
    for link in admin fabric; do
        on a ip link add $link type veth peer name $link netns "$work/b.net" &&
            on a ip address add 10.79.$number.1/24 dev $link &&
            on b ip address add 10.79.$number.2/24 dev $link &&
            links up $link || return 1
        number=$((number + 1))
    done
    printf '10.79.0.%d slots=2\n' 1 2 >hosts
}
make_nodes || exit 1

# What mpirun starts in the place of ssh: HOST COMMAND. As with ssh, the environment stays behind.
cat >agent <<END
#!/bin/sh
case \$1 in
10.79.0.1) node=a ;;
10.79.0.2) node=b ;;
*) echo "agent: there is no node \$1" >&2; exit 1 ;;
esac
shift
exec nsenter --net="$work/\$node.net" --uts="$work/\$node.uts" -- env -i PATH="\$PATH" HOME="\$HOME" sh -c "\$*"
END
chmod +x agent

# OpenBLAS 0.3.21 takes processors newer than itself for the oldest it knows.
if [ -z "${OPENBLAS_CORETYPE:-}" ] && grep -qw avx2 /proc/cpuinfo && grep -qw fma /proc/cpuinfo; then
    export OPENBLAS_CORETYPE=Haswell
fi
# Ranks that wait yield, since both nodes have the same cores.
mpi=(mpirun --hostfile "$work/hosts" --bind-to none -x OPENBLAS_CORETYPE --mca plm_rsh_agent "$work/agent"
    --mca orte_tmpdir_base "$work" --mca oob_tcp_if_include admin --mca pml ob1 --mca btl tcp,self
    --mca btl_tcp_if_include fabric --mca mpi_yield_when_idle 1)

ranks() { # N [OPTION...] PROGRAM [ARGUMENT...]: the first two ranks on node a; output to the file `out`
    on a timeout -k 5 60 "${mpi[@]}" -n "$@" >out 2>&1
}

check() { # check NAME STATUS [WHAT IS KNOWN]
    if [ "$2" -eq 0 ]; then
        echo "ok    $1${3:+: $3}"
        passed=$((passed + 1))
    else
        echo "FAIL  $1${3:+: $3}"
        sed 's/^/      /' out | tail -20
        failed=$((failed + 1))
    fi
}

sent() { # LINK: bytes that went from node a to node b, then those that came back
    on a ip -s link show "$1" | awk '/RX:/ { getline; received = $1 } /TX:/ { getline; print $1, received }'
}

# ---- Rings ----

check_command=$build/examples/hra-check
ranks 4 hostname
[ "$(sort out | uniq -c | awk '{ printf "%s %s ", $1, $2 }')" = "2 node-a 2 node-b " ]
check "four ranks are on two nodes" $?

read -r there_before back_before < <(sent fabric)
read -r admin_before _ < <(sent admin)
ranks 4 -x HRA_LOG=info "$check_command" --tokens 800 --heads 2 --dim 64 --mask full --schedule ring --threads 1
check "a ring over two nodes gives the oracle's answer" $?
[ "$(grep -c 'communicator over mpi, rank [0-3] of 4, 2 on this node' out)" -eq 4 ]
check "the library sees two ranks on each node" $?
read -r there back < <(sent fabric)
read -r admin _ < <(sent admin)
least=$((400 * 2 * 64 * 2 * 4)) # K and V of two ranks, in f32
[ $((there - there_before)) -gt $least ] && [ $((back - back_before)) -gt $least ] && [ $((admin - admin_before)) -lt $least ]
check "its messages went over the fabric" $? "$((there - there_before)) bytes there, $((back - back_before)) back"
ranks 3 -x HRA_LOG=info "$check_command" --tokens 500 --grid 20x25 --order hilbert --mask 'grid(3,4)'
[ $? -eq 0 ] && [ "$(grep -c 'of 3, 2 on this node' out)" -eq 2 ] && [ "$(grep -c 'of 3, 1 on this node' out)" -eq 1 ]
check "two ranks on one node and one on the other" $?
ranks 4 "$check_command" --random 50 --seed 31
[ $? -eq 0 ] && grep -q '^50 problems, 0 failed' out
check "drawn problems of all masks" $?

# ---- The trainer ----

same_losses() { # A B: the losses of 30 steps differ by 1e-4 of themselves at most
    paste -d, "$1" "$2" | awk -F, 'NR > 1 { d = ($2 - $4) / $2; if (d < 0) d = -d; if (!(d <= worst)) worst = d }
        END { printf "%.1e over %d steps", worst, NR - 1; exit NR != 31 || !(worst <= 1e-4) }'
}
train=("$build/examples/train/hra-train" --text "$top/examples/data/alice.txt" --tokens 600 --layers 2 --dim 48
    --heads 4 --kv-heads 2 --steps 30 --threads 1 --quiet)
ranks 1 "${train[@]}" --out one
check "the trainer runs on one rank" $?
ranks 4 "${train[@]}" --out four
check "the trainer runs on two nodes" $?
note=$(same_losses one/loss.csv four/loss.csv)
check "its losses are those of one rank" $? "$note"
awk -F, -v OFS=, 'NR == 20 { $2 *= 1.001 } 1' four/loss.csv >other.csv
! same_losses one/loss.csv other.csv >/dev/null
check "and one that is off by 0.001 would be noticed" $?

# ---- A sweep ----

sweep() {
    on a timeout -k 5 90 "$top/examples/scaling/scaling.py" --bench "$build/examples/hra-bench" --scale 1/16 --heads 1 \
        --repeat 1 --limit 40 --launch "${mpi[*]} --map-by ppr:2:node" "$@" >out 2>&1
}
sweep --ranks 1,4 window-1024
check "a strong and a weak sweep" $?
python3 - scaling/scaling.json >>out 2>&1 <<'END'
import json, sys
data = json.load(open(sys.argv[1]))
assert [(r["kind"], r["ranks"], r["status"]) for r in data["runs"]] == [
    (None, 1, "ok"), ("strong", 4, "ok"), ("weak", 4, "ok")]
assert {p["ranks"]: p["nodes"] for p in data["points"]} == {1: 1, 4: 2}
assert len(data["points"]) == 8 and all(0 < p["efficiency"] < 10 for p in data["points"])
assert all(p["transfer_s"] > 0 and p["exposed_s"] is not None for p in data["points"] if p["ranks"] > 1)
END
check "their results, on one node and on two" $?
[ -s scaling/window-1024-strong.svg ] && [ -s scaling/window-1024-weak.svg ]
check "their figures" $?

# ---- Links that are cut ----

worker=$build/tests/worker

ended() { # FOLDER: all four ranks have left their line there, and no worker is left
    [ "$(find "$1" -name 'rank-*' | wc -l)" -eq 4 ] && ! grep -qx worker /proc/[0-9]*/comm 2>/dev/null
}

soon() { # SECONDS, COMMAND...: the command comes true in that time
    local until=$((SECONDS + $1))
    while ! "${@:2}"; do
        [ $SECONDS -le $until ] || return 1
        sleep 0.05
    done
}

# NAME, LINK...: forwards and backwards under way when the links go down. The limit of the communicator is 2 s.
cut_links() {
    local name=$1 folder=$work/$1
    shift
    mkdir "$folder"
    ranks 4 "$worker" link "$folder" &
    launcher=$!
    soon 20 test -e "$folder/begun"
    check "$name: passes are under way" $?
    links down "$@" && soon 10 ended "$folder"
    check "$name: all ranks end within the limit, and no process is left" $?
    cat "$folder"/rank-* >>out
    [ "$(cat "$folder"/rank-* | grep -cE '^HRA_ERR_(TIMEOUT|REMOTE) in call [0-9]+ after [0-2]\.[0-9] s: .*round [0-9]')" -eq 4 ]
    check "$name: each has TIMEOUT or REMOTE with the round and the peer" $? "$(head -n 1 "$folder/rank-0")"
}

mkdir whole
ranks 4 "$worker" link "$work/whole"
[ $? -eq 0 ] && [ "$(cat whole/rank-* | grep -c '^HRA_OK in call 200 ')" -eq 4 ]
check "with links that hold, all passes are done and right" $?

cut_links "the fabric cut" fabric
soon 10 eval '! kill -0 $launcher 2>/dev/null' && ! wait $launcher
check "the fabric cut: mpirun ends and says that the run failed" $?
links up fabric && ranks 4 "$check_command" --tokens 300
check "the fabric mended, a new run is right" $?

cut_links "a node cut off" admin fabric # mpirun may not notice for minutes; it goes when this script ends

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

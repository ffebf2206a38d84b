#!/usr/bin/env bash
# The library as others find it: installed, programs built in a folder that has nothing but the prefix, by pkg-config and,
# against a copy of the prefix in another place, by CMake: the README's program, a test of hra.hpp, one of versions and structs
# that needs no MPI. Then the tools, their man pages, and the PyTorch module where there is PyTorch.
#     tests/installed.sh BUILD_DIR    whose prefix lies in it: it is deleted and installed anew
# PYTHON in the environment is the Python that is asked for PyTorch; default python3.
set -u
cd "$(dirname "$0")/.." || exit 1
build=$(cd "${1:?usage: tests/installed.sh BUILD_DIR}" && pwd) || exit 1
prefix=$(meson introspect --buildoptions "$build" |
    python3 -c 'import json, sys; print(next(o["value"] for o in json.load(sys.stdin) if o["name"] == "prefix"))')
case $prefix in
    "$build"/?*) ;;
    *) echo "the prefix is '$prefix'; it must lie in $build, as it is deleted"; exit 1 ;;
esac
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

try() { # NAME, COMMAND...: exit status 77: cannot run here, which its last line explains
    local name=$1 status began=$SECONDS
    shift
    (set -e; "$@") >"$scratch/log" 2>&1 </dev/null
    status=$?
    case $status in
        0) echo "ok      $name, $((SECONDS - began)) s" ;;
        77) echo "skipped $name: $(tail -n 1 "$scratch/log")" ;;
        *)
            echo "FAILED  $name, exit status $status"
            cat "$scratch/log"
            failed=1
            ;;
    esac
}

ranks() { # COUNT, COMMAND...
    timeout 120 mpirun --oversubscribe -n "$@"
}

install_all() {
    rm -rf "$prefix"
    ninja -C "$build" build.ninja # else an option that has changed, such as the prefix, is not what is installed by
    meson install --no-rebuild -C "$build"
    [ -e "$prefix/include/hra/hra.h" ]
}

# README.md shows examples/minimal.c whole.
readme() {
    awk '/^```c$/ {on = 1; next} /^```$/ {on = 0} on' README.md >"$scratch/program.c"
    sed -n '/^#include <hra/,$p' examples/minimal.c | diff - "$scratch/program.c"
}

# The three programs in FOLDER; libraries are found there or where LD_LIBRARY_PATH says.
run_programs() { # FOLDER, PREFIX that they must use, RANKS
    local program
    for program in program test abi; do
        if ldd "$1/$program" | grep 'libhra' | grep -v "=> $2/"; then
            echo "$program uses these, not those of $2"
            return 1
        fi
    done
    if ldd "$1/abi" | grep 'libmpi'; then
        echo "abi needs no MPI"
        return 1
    fi
    "$1/abi"
    ranks "$3" "$1/program"
    ranks "$3" "$1/test"
}

by_pkg_config() {
    local warnings='-Wall -Wextra -Wpedantic -Werror -O1' libdir
    libdir=$(dirname "$(find "$prefix" -name libhra.so)")
    export PKG_CONFIG_PATH=$libdir/pkgconfig LD_LIBRARY_PATH=$libdir
    mkdir "$scratch/pkg-config"
    cp tests/installed/abi.c tests/installed/test.cpp "$scratch/program.c" "$scratch/pkg-config"
    cd "$scratch/pkg-config"
    # shellcheck disable=SC2046,SC2086
    {
        mpicc -std=c11 $warnings program.c $(pkg-config --cflags --libs hra-mpi) -o program
        cc -std=c11 $warnings abi.c $(pkg-config --cflags --libs hra) -o abi
        # Without MPI's own bindings for C++, which are full of warnings.
        mpicxx -std=c++17 $warnings -Wshadow -Wconversion -DOMPI_SKIP_MPICXX test.cpp \
            $(pkg-config --cflags --libs hra-mpi) -o test
    }
    run_programs "$scratch/pkg-config" "$prefix" 3
}

by_cmake() {
    cp -a "$prefix" "$scratch/moved"
    cp -r tests/installed "$scratch/cmake"
    cmake -S "$scratch/cmake" -B "$scratch/cmake-build" -DCMAKE_PREFIX_PATH="$scratch/moved" \
        -DPROGRAM="$scratch/program.c"
    cmake --build "$scratch/cmake-build"
    run_programs "$scratch/cmake-build" "$scratch/moved" 2
}

find_hra() { # part of what cmake must print, ARGUMENTS for it...
    local expected=$1
    shift
    rm -rf "$scratch/find"
    cmake -S tests/installed/find -B "$scratch/find" -DCMAKE_PREFIX_PATH="$prefix" -DLANGUAGE=C "$@" \
        >"$scratch/found" 2>&1 || true
    cat "$scratch/found"
    tr -s '\n ' ' ' <"$scratch/found" | grep -qF -- "$expected"
}

# What find_package takes and what it refuses.
cmake_package() {
    local without=-DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON
    find_hra '-- has hra::hra -- has hra::mpi' '-DWANTED=0.1;COMPONENTS;mpi' -DLANGUAGE=CXX
    find_hra '-- has hra::hra -- Configuring done' -DWANTED=0.1 $without
    find_hra 'component mpi: find_package(MPI) finds none' '-DWANTED=0.1;COMPONENTS;mpi' $without
    find_hra 'component gpu: there is only mpi' '-DWANTED=0.1;COMPONENTS;gpu' $without
    find_hra 'considered but not accepted' -DWANTED=0.2 $without
    find_hra 'considered but not accepted' -DWANTED=1.0 $without
}

# docs/troubleshooting.md quotes what libhra says; behind a colon what CUDA says may be that of another version.
quoted() {
    local libdir line lacking=0
    libdir=$(dirname "$(find "$prefix" -name libhra.so)")
    export PKG_CONFIG_PATH=$libdir/pkgconfig LD_LIBRARY_PATH=$libdir
    # shellcheck disable=SC2046
    mpicc -std=c11 -Wall -Wextra -Wpedantic -Werror tests/installed/errors.c $(pkg-config --cflags --libs hra-mpi) \
        -o "$scratch/errors"
    ranks 2 "$scratch/errors" >"$scratch/said"
    [ "$(grep -c '^HRA_ERR' "$scratch/said")" -ge 20 ] || {
        cat "$scratch/said"
        echo 'too few mistakes were made'
        exit 1
    }
    sed -i 's/0x[0-9a-f]*/0x.../g; s/\(cuda: no device: \|cudaGetDevice([^)]*): \).*/\1/' "$scratch/said"
    while read -r line; do
        grep -qF -- "$line" docs/troubleshooting.md || { echo "not quoted: $line"; lacking=1; }
    done <"$scratch/said"
    return $lacking
}

# One version everywhere, and the soname that goes with it.
versions() {
    local header soname
    header=$(sed -n 's/^#define HRA_VERSION "\(.*\)"/\1/p' "$prefix/include/hra/hra.h")
    echo "hra.h $header"
    PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name hra.pc)")
    export PKG_CONFIG_PATH
    [ "$(pkg-config --modversion hra)" = "$header" ]
    [ "$(pkg-config --modversion hra-mpi)" = "$header" ]
    grep -F "\"$header\"" "$(find "$prefix" -name hraConfigVersion.cmake)"
    grep -qF "## $header" CHANGELOG.md
    find "$prefix" -name "libhra.so.$header" | grep .
    soname=$(readelf -d "$(find "$prefix" -name libhra.so)" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
    echo "soname $soname"
    grep -F "\`$soname\`" docs/versions.md
}

tools() {
    local tool
    LD_LIBRARY_PATH=$(dirname "$(find "$prefix" -name libhra.so)")
    export LD_LIBRARY_PATH
    for tool in "$prefix"/bin/*; do
        "$tool" --help >/dev/null
        ls "$prefix/share/man/man1/$(basename "$tool").1"*
    done
    ranks 2 "$prefix/bin/hra-check" --tokens 300 --dtype f64
    "$prefix/bin/hra-plan" --ranks 4 --tokens 1000
}

# Wrong use: one sentence on stderr, status 2.
misuse() {
    local wrong sentence words status
    LD_LIBRARY_PATH=$(dirname "$(find "$prefix" -name libhra.so)")
    export LD_LIBRARY_PATH
    mkdir -p "$scratch/empty"
    printf -- '--tokens 8\n--tokens 8 --frob 2\n' >"$scratch/list"
    printf -- '--tokens 8 --backend auto\n--tokens 8 --backend cuda\n' >"$scratch/elsewhere"
    while IFS='|' read -r words sentence; do
        status=0
        # shellcheck disable=SC2086
        (cd "$scratch/empty" && eval "\"$prefix/bin/\"$words") >/dev/null 2>"$scratch/said" || status=$?
        wrong=
        [ $status -eq 2 ] || wrong="exit status $status"
        [ "$(wc -l <"$scratch/said")" -eq 1 ] || wrong+=" not one line"
        grep -qF -- "${words%% *}: $sentence" "$scratch/said" || wrong+=" other words"
        [ -z "$wrong" ] || { echo "$words:$wrong:"; cat "$scratch/said"; return 1; }
    done <<'LIST'
hra-check frob|'frob' is no option
hra-check --tokens|--tokens lacks its value
hra-check --tokens 5x|--tokens: '5x' is no whole number
hra-check --tokens 5 --tokens 6|--tokens is given twice
hra-check --schedule star|--schedule: 'star' is none of auto, ring, halo, heads
hra-check --heads 1 --schedule heads|plan: HRA_ERR_UNSUPPORTED: options.schedule is heads
hra-check --order residues:8|plan: HRA_ERR_ARG: order: 'residues:8' is not of the form
hra-check --mask 'windo(3)'|plan: HRA_ERR_ARG: mask: character 1
hra-check --transport peer|--transport: 'peer' is between ranks
hra-check --list nowhere|nowhere: No such file
hra-check --list .|.: Is a directory
hra-check --list ../list|../list, line 2: '--frob' is no option
hra-check --list ../elsewhere|../elsewhere, line 2: --backend: memory is the host's
hra-check --sm-margin 3|plan: HRA_ERR_UNSUPPORTED: problem.sm_margin is 3
hra-check --sm-margin -1|--sm-margin
hra-check --random 3 --tokens 5|--tokens: --random says the whole problem
hra-plan --ranks 0|--ranks: '0' is no whole number
hra-plan --picture x.gif|x.gif: the name of a picture ends in .png or .svg
hra-plan --model nowhere|nowhere: cannot be opened
hra-plan --timeline t.svg|--timeline draws a forecast
hra-plan --heads 1 --schedule heads|options.schedule is heads
hra-bench --hops|--hops: here is one rank
hra-bench --reorder --plan|--reorder: --plan is given too
hra-bench --timeline t.svg|--timeline: it draws a forecast, too
hra-bench --model two-h100.model|--model: it is for --timeline
hra-bench --timeline t.svg --model nowhere|nowhere: cannot be opened
hra-bench --timeline t.gif --model nowhere|t.gif: the name of a picture ends in .png or .svg
hra-bench --packed 9|--packed: documents are for --plan
hra-bench --backend sm90|HRA_ERR_UNSUPPORTED
hra-train|give either --text FILE or --image FILE
hra-train --image ../list|cannot read ../list as a PNG: it is none or damaged
hra-train --frob|unknown option --frob
LIST
    [ -z "$(ls "$scratch/empty")" ] || { ls "$scratch/empty"; return 1; }
}

pytorch() {
    local python=${PYTHON:-python3}
    "$python" -c 'import torch' 2>/dev/null || { echo "$python has no PyTorch"; exit 77; }
    cd "$scratch"
    PYTHONPATH=$prefix/share/hra "$python" - "$prefix" <<'END'
import sys
import torch
import hra_torch

q, k, v = (torch.randn(1, 300, 4, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
ours = hra_torch.HraAttention("causal")(q, k, v)
heads = (x.transpose(1, 2) for x in (q, k, v))
theirs = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)
g = torch.randn_like(ours)
for mine, right in zip(torch.autograd.grad(ours, (q, k, v), g), torch.autograd.grad(theirs, (q, k, v), g)):
    assert torch.allclose(mine, right, rtol=0, atol=1e-12)
assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
loaded = [line.split()[-1] for line in open("/proc/self/maps") if "libhra.so" in line]
assert loaded and all(path.startswith(sys.argv[1]) for path in loaded), loaded
END
}

try 'installed' install_all
[ $failed -eq 0 ] || exit 1
try "the README's program is examples/minimal.c" readme
try 'programs by pkg-config' by_pkg_config
try 'programs by CMake, in a prefix that was moved' by_cmake
try 'find_package' cmake_package
try 'sentences in docs/troubleshooting.md' quoted
try 'versions' versions
try 'tools and man pages' tools
try 'wrong use of tools' misuse
try 'PyTorch module' pytorch
exit $failed

#!/usr/bin/env bash
# What the compiler does not check: the direction of includes, the symbols that can be seen, headers that compile alone.
#     tests/structure.sh BUILD_DIR
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:?usage: tests/structure.sh BUILD_DIR}
failed=0

report() { # NAME, what stands in its way (empty: nothing)
    if [ -z "$2" ]; then
        echo "ok      $1"
    else
        echo "FAILED  $1"
        printf '%s\n' "$2"
        failed=1
    fi
}

includes() { grep -nE "#include *[<\"]($1)" -r "${@:2}" --include='*.[ch]' --include='*.[ch]pp' --include='*.cu' 2>/dev/null; }

report "kernels include of src/ only status.h and cuda.h, and nothing of comm/" \
    "$(includes '(comm|src)/' kernels | grep -vE '"src/(status|cuda)\.h"')"
report "comm includes of src/ only status.h and cuda.h, and nothing of kernels/" \
    "$(includes '(kernels|src)/' comm | grep -vE '"src/(status|cuda)\.h"')"
report "only src/plan.* and src/ring.c see comm/" "$(includes 'comm/' src | grep -vE '^src/(plan\.[ch]|ring\.c):')"
report "src/ sees of kernels/ only kernels.h" "$(includes 'kernels/' src | grep -v '"kernels/kernels.h"')"
report "only comm/mpi.c and hra/mpi.h see mpi.h" "$(includes 'mpi\.h|hra/mpi\.h' src kernels comm include | grep -vE '^(comm/mpi\.c|include/hra/mpi\.h):')"
report "examples use the public headers only" "$(includes '(src|kernels|comm)/' examples)"

report "no files of the library need each other in a circle" "$(python3 tests/circles.py "$build" 2>&1)"
report "hra_torch.py has the structs of hra.h" "$(python3 tests/binding.py 2>&1)"

for library in libhra libhra-mpi; do
    file=$build/$library.so
    [ -e "$file" ] || continue
    report "$library shows only hra_ symbols" "$(nm -D --defined-only "$file" | awk '{print $3}' | grep -v '^hra_')"
    report "$library has a soname" "$(readelf -d "$file" | grep -q "SONAME.*$library\.so\.[0-9]" || echo 'none')"
done
report "libhra needs no MPI" "$(readelf -d "$build/libhra.so" | grep -i 'NEEDED.*mpi')"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
warnings='-Wall -Wextra -Wpedantic -Werror'
for header in $(ls src/*.h kernels/*.h kernels/cpu/{number,pool,cpu}.h kernels/cuda/blocks.h comm/*.h); do
    echo "#include \"$header\"" >"$scratch/one.c"
    # shellcheck disable=SC2086
    report "$header compiles alone" "$(cc -std=c11 $warnings -Iinclude -I. -fsyntax-only "$scratch/one.c" 2>&1)"
done

# Public headers alone, in each language that they are for.
alone() { # HEADER, LANGUAGES, COMPILER of C, of C++, FLAGS...
    local header=$1 language compiler
    for language in $2; do
        case $language in
            c++*) compiler=$4 ;;
            *) compiler=$3 ;;
        esac
        echo "#include <$header>" >"$scratch/one.${language%%[0-9]*}"
        # shellcheck disable=SC2086
        report "$header alone is $language" \
            "$("$compiler" -std="$language" $warnings -Iinclude "${@:5}" -fsyntax-only "$scratch/one.${language%%[0-9]*}" 2>&1)"
    done
}
cuda=/usr/local/cuda/include
echo '#include <nccl.h>' >"$scratch/nccl.c"
alone hra/hra.h 'c11 c17 c++17 c++20' cc c++ -Wshadow -Wconversion
alone hra/hra.hpp 'c++17 c++20' cc c++ -Wshadow -Wconversion -Wold-style-cast
# Without MPI's own bindings for C++, which are full of warnings.
! command -v mpicxx >/dev/null || alone hra/mpi.h 'c11 c17 c++17' mpicc mpicxx -DOMPI_SKIP_MPICXX
! cc -isystem "$cuda" -fsyntax-only "$scratch/nccl.c" 2>/dev/null || alone hra/nccl.h 'c11 c17 c++17' cc c++ -isystem "$cuda"
nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc)
echo '#include <hra/hra.hpp>' >"$scratch/one.cu"
[ -z "$nvcc" ] || report "hra/hra.hpp alone goes through nvcc" \
    "$("$nvcc" -std=c++17 -Werror all-warnings -Iinclude -c "$scratch/one.cu" -o "$scratch/one.o" 2>&1)"

calls_of() { sed -n 's/^HRA_API .*[ *]\(hra_[a-z0-9_]*\)(.*/\1/p' "$1"; }
report "libhra exports every call of hra.h" "$(calls_of include/hra/hra.h | sort | comm -23 - <(
    nm -D --defined-only "$build/libhra.so" | awk '{print $3}' | sort))"
# hra_version needs no handle and cannot fail, and is called as it is.
report "hra.hpp has every call of the other headers" "$(for header in include/hra/*.h; do calls_of "$header"; done |
    grep -vx hra_version | while read -r call; do grep -qw "$call" include/hra/hra.hpp || echo "$call"; done)"
exit $failed

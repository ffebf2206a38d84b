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

includes() { grep -nE "#include *[<\"]($1)" -r "${@:2}" --include='*.[ch]' 2>/dev/null; }

report "kernels include of src/ only status.h, and nothing of comm/" "$(includes '(comm|src)/' kernels | grep -v '"src/status.h"')"
report "comm includes of src/ only status.h, and nothing of kernels/" "$(includes '(kernels|src)/' comm | grep -v '"src/status.h"')"
report "only src/plan.* and src/ring.c see comm/" "$(includes 'comm/' src | grep -vE '^src/(plan\.[ch]|ring\.c):')"
report "src/ sees of kernels/ only kernels.h" "$(includes 'kernels/' src | grep -v '"kernels/kernels.h"')"
report "only comm/mpi.c and hra/mpi.h see mpi.h" "$(includes 'mpi\.h|hra/mpi\.h' src kernels comm include | grep -vE '^(comm/mpi\.c|include/hra/mpi\.h):')"
report "examples use the public headers only" "$(includes '(src|kernels|comm)/' examples)"

for library in libhra libhra-mpi; do
    file=$build/$library.so
    [ -e "$file" ] || continue
    report "$library shows only hra_ symbols" "$(nm -D --defined-only "$file" | awk '{print $3}' | grep -v '^hra_')"
    report "$library has a soname" "$(readelf -d "$file" | grep -q "SONAME.*$library\.so\.[0-9]" || echo 'none')"
done
report "libhra needs no MPI" "$(readelf -d "$build/libhra.so" | grep -i 'NEEDED.*mpi')"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for header in include/hra/hra.h $(ls src/*.h kernels/*.h kernels/cpu/{number,pool,cpu}.h kernels/cuda/blocks.h comm/*.h); do
    echo "#include \"$header\"" >"$scratch/one.c"
    report "$header compiles alone" "$(cc -std=c11 -Wall -Wextra -Wpedantic -Werror -Iinclude -I. -fsyntax-only "$scratch/one.c" 2>&1)"
done
echo '#include <hra/hra.h>' >"$scratch/one.cpp"
report "hra.h compiles as C++" "$(c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only "$scratch/one.cpp" 2>&1)"
exit $failed

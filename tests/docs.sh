#!/usr/bin/env bash
# What can be checked of the documentation: the API reference is made and nothing public lacks a comment; the man pages
# have the options that the tools list, and are right roff; links between documents lead somewhere.
#     tests/docs.sh BUILD_DIR
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:?usage: tests/docs.sh BUILD_DIR}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
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

# A copy of the headers without one comment must be refused, and with the line's name.
uncommented() { # PATTERN in hra.h of the comment's only line, NAME of what it told
    mkdir -p "$scratch/include"
    cp -r include/hra "$scratch/include/"
    sed -i "/$1/d" "$scratch/include/hra/hra.h"
    cmp -s include/hra/hra.h "$scratch/include/hra/hra.h" && { echo "there is no line '$1'"; return; }
    docs/reference.sh "$scratch/refused" "$scratch/include" >"$scratch/log" 2>&1 && echo "$2 is not missed"
    grep -q "$2.*is not documented" "$scratch/log" || { echo "$2 is not named:"; cat "$scratch/log"; }
}

reference() {
    local name
    docs/reference.sh "$scratch/reference" 2>&1 || { echo "exit status $?"; return; }
    for name in $(sed -n 's/^HRA_API .*[ *]\(hra_[a-z0-9_]*\)(.*/\1/p' include/hra/*.h); do
        grep -rqs "<name>$name</name>" "$scratch/reference/xml" || echo "$name is not in it"
    done
}

links() {
    local file target
    find . -name '*.md' -not -path './build*' -not -path './.*' | while read -r file; do
        grep -oE '\]\([^)# ]+' "$file" | sed 's/^](//' | grep -v '^[a-z]*:' | while read -r target; do
            [ -e "$(dirname "$file")/$target" ] || echo "$file: $target"
        done
    done
}

roff() {
    local page
    for page in docs/man/*.1; do
        groff -man -Tutf8 -ww -z "$page" 2>&1 | sed "s|^|$page: |"
    done
}

# docs/versions.md tells of every struct and handle what linked programs can count on.
promises() {
    local name
    for name in $(sed -n 's/^typedef struct \(hra_[a-z_]*\).*/\1/p' include/hra/*.h); do
        grep -qw "$name" docs/versions.md || echo "$name is not in docs/versions.md"
        grep -q "^typedef struct $name $name;" include/hra/*.h || grep -qw "$name" tests/installed/abi.c ||
            echo "$name is not in tests/installed/abi.c"
    done
}

report "the API reference is made, and has every call" "$(reference)"
report "a call without a comment is refused" "$(uncommented '^\/\* The version of the library that was loaded' hra_version)"
report "man pages have the options of their tools" "$(docs/man/options.py --check "$build/examples" 2>&1)"
report "man pages are right roff" "$(roff)"
report "docs/versions.md and abi.c have every struct" "$(promises)"
report "links between documents lead somewhere" "$(links)"
exit $failed

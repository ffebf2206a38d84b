#!/usr/bin/env bash
# The API reference, from the headers by Doxygen: OUT/html, and OUT/xml for other tools.
#     docs/reference.sh OUT [INCLUDE]    INCLUDE: the folder with hra/hra.h; default that of this checkout
# Exit status 1 and what is wrong where something public has no comment, or a comment cannot be read.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?usage: docs/reference.sh OUT [INCLUDE]}"
HRA_REFERENCE=$(cd "$1" && pwd)
HRA_HEADERS=$(cd "${2:-$here/../include}" && pwd)
HRA_FILTER=$here/reference_filter.py
HRA_VERSION=$(sed -n 's/^#define HRA_VERSION "\(.*\)"/\1/p' "$HRA_HEADERS/hra/hra.h")
export HRA_REFERENCE HRA_HEADERS HRA_FILTER HRA_VERSION
command -v doxygen >/dev/null || { echo "docs/reference.sh: there is no doxygen" >&2; exit 1; }
doxygen "$here/Doxyfile"

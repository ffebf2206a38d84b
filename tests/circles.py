#!/usr/bin/env python3
"""circles.py BUILD_DIR - files of the library that need each other's functions in a circle, a line for
each circle; none is right."""
import pathlib
import re
import subprocess
import sys


def symbols(path):
    """What an object file defines and what it needs."""
    defined, needed = set(), set()
    for line in subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout.splitlines():
        *_, kind, name = line.split()
        if kind == "U":
            needed.add(name)
        elif kind.isupper():
            defined.add(name)
    return defined, needed


def circles(needs):
    """The strongly connected components of more than one file: all that reach each other."""
    def reached(start):
        seen, open_ = set(), [start]
        while open_:
            for other in needs[open_.pop()] - seen:
                seen.add(other)
                open_.append(other)
        return seen
    reach = {name: reached(name) for name in needs}
    return {frozenset(other for other in reach[name] if name in reach[other])
            for name in needs if name in reach[name]}


def main(build):
    files = {}
    for folder in ("libhra.so*.p", "lib*-kernels.a.p"):
        for path in pathlib.Path(build).glob(f"{folder}/*.o"):
            files[re.sub(r"\.(c|cu)\.o$", r".\1", path.name)] = symbols(path)
    if not files:
        print(f"there are no objects in {build}")
        return
    home = {symbol: name for name, (defined, _) in files.items() for symbol in defined}
    needs = {name: {home[s] for s in needed if s in home} - {name} for name, (_, needed) in files.items()}
    for circle in circles(needs):
        print(", ".join(sorted(circle)))


if __name__ == "__main__":
    main(sys.argv[1])

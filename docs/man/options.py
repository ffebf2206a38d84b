#!/usr/bin/env python3
"""The OPTIONS of the man pages are what the tools' --help lists.

    docs/man/options.py FOLDER          write them into docs/man/*.1; FOLDER has the tools somewhere in it
    docs/man/options.py --check FOLDER  say what differs, and where a page names an option that its tool lacks

A tool that is not in FOLDER is named, and is a failure with --check."""
import difflib
import pathlib
import re
import subprocess
import sys

BEGIN = '.\\" What follows is written by docs/man/options.py.\n'
END = '.\\" The end of what it writes.\n'


def help_of(tool):
    """What the tool prints for --help."""
    done = subprocess.run([tool, "--help"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        sys.exit(f"{tool} --help: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def listed(text):
    """The options of a --help: (name, value or "", what it does)."""
    options = []
    for line in text.split("\n"):
        option = re.fullmatch(r"  (--[\w-]+)(?: (\S+(?: \S+)*))?  +(\S.*)", line)
        more = re.fullmatch(r" {10,}(\S.*)", line)
        if option:
            options.append([option.group(1), option.group(2) or "", option.group(3)])
        elif more and options:
            options[-1][2] += " " + more.group(1)
        elif line.startswith("  --"):
            sys.exit(f"not understood: {line}")
    if "--help" not in (name for name, _, _ in options):
        options.append(["--help", "", "show these options and nothing else"])
    return options


def roff(text):
    """Text as roff shows it."""
    return text.replace("\\", "\\e").replace("-", "\\-")


def section(options):
    """The source of the options."""
    lines = []
    for name, value, told in options:
        # a name for a value is in capitals; choices stand for themselves
        shown = re.sub(r"[A-Z]+", r"\\fI\g<0>\\fR", roff(value)) if value else ""
        lines += [".TP", f"\\fB{roff(name)}\\fR {shown}".rstrip(), re.sub(r"^(?=[.'])", r"\\&", roff(told))]
    return "\n".join(lines) + "\n"


def strange(page, options):
    """Options that the page names and the tool does not have; those of mpirun stand in lines that begin with mpirun."""
    lines = [re.sub(r"\\f[BIR]", "", line).replace("\\-", "-") for line in page.split("\n")]
    own = [re.sub(r".*mpirun .*?hra-", "", line) for line in lines]
    named = {name for line in own for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", line)}
    return sorted(named - {name for name, _, _ in options})


def main(arguments):
    """The exit status."""
    check = arguments[:1] == ["--check"]
    folders = arguments[1:] if check else arguments
    if len(folders) != 1:
        sys.exit(__doc__)
    failed = 0
    for path in sorted(pathlib.Path(__file__).parent.glob("*.1")):
        tool = next((f for f in pathlib.Path(folders[0]).rglob(path.stem) if f.is_file()), None)
        if tool is None:
            print(f"{path.stem}: not in {folders[0]}")
            failed = 1
            continue
        page = path.read_text(encoding="utf-8")
        options = listed(help_of(tool))
        head, begin, rest = page.partition(BEGIN)
        _, end, tail = rest.partition(END)
        if not begin or not end:
            sys.exit(f"{path} lacks the two lines between which its options stand")
        wanted = head + BEGIN + section(options) + END + tail
        if not check:
            path.write_text(wanted, encoding="utf-8")
        elif page != wanted:
            failed = 1
            sys.stdout.writelines(difflib.unified_diff(page.splitlines(True), wanted.splitlines(True),
                                                       str(path), f"{path.stem} --help"))
        for name in strange(wanted, options):
            failed = 1
            print(f"{path}: {path.stem} has no {name}")
    return failed if check else 0


sys.exit(main(sys.argv[1:]))

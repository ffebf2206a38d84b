#!/usr/bin/env python3
"""Writes a header to stdout with its comments as Doxygen wants them; Doxyfile names it as the filter.

Comments in include/hra are plain. One before a declaration is of that declaration, and of those that follow
it without a blank line or another comment; one behind a field or a constant is of that. In comments, indented
lines are tables. What tells a declaration from a line of a body relies on clang-format."""
import re
import sys

# What the headers leave to be understood.
VERSION = "The version of these headers."
INITIAL = "What a {} is started from: its size, and 0, which means the default, for all else."
WHOLE = {"enum": "Its constants tell.", "struct": "Its fields tell."}
FIELD = "Told with the struct."

MAIN = "hra.h" # whose first comment opens the whole reference


def escape(line):
    """Prose as Markdown that shows these characters. What stands between *stars* stays emphasised, `this`
    stays code, and in "quotes" nothing needs an escape."""
    def outside(text):
        text = re.sub(r"([\\@<>#%|$~]|&(?=\w))", r"\\\1", text)
        text = text.replace(".. ", "..\\ ")  # "0 .. n" ends no sentence
        return re.sub(r"((?<![\w*])\*\w+\*(?![\w*]))|\*", lambda star: star.group(1) or "\\*", text)

    parts = re.split(r'("[^"]*"|`[^`]*`)', line)
    return "".join(part if n % 2 else outside(part) for n, part in enumerate(parts))


def markdown(lines):
    """The text of a comment, without its stars: paragraphs, lists, and tables where it is indented."""
    out, inside = [], ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        kind = "prose"
        if line.lstrip().startswith("- ") or (inside == "list" and indent >= 2):
            kind = "list"
        elif indent >= 2:
            kind = "table"
        if not line.strip():
            kind = ""
        elif inside and kind != inside and "table" in (kind, inside):
            out.append("")
        out.append("    " + line if kind == "table" else escape(line.strip()))
        inside = kind
    return out


def comment(lines, indent="", opening="/**"):
    """A comment of Doxygen's with this Markdown."""
    return [f"{indent}{opening} {lines[0]}"] + [f"{indent} * {line}" for line in lines[1:]] + [f"{indent} */"]


def text_of(lines):
    """The text of the comment that these lines are."""
    first, *rest = re.sub(r"^/\*|\*/$", "", "\n".join(lines).strip()).split("\n")
    return [first.strip()] + [re.sub(r"^\s*\* ?", "", line).rstrip() for line in rest]


class Filter:
    def __init__(self, name):
        self.name = name
        self.out = []
        self.scopes = []  # of open braces: whether declarations are in them
        self.statement = ""  # the code of the declaration so far; "" before one
        self.held = None  # the comment that holds for the next declaration
        self.told = False  # and it has just been written
        self.first = True  # no comment was met so far
        self.section = False

    def declarations(self):
        return all(self.scopes)

    def close_section(self):
        if self.section:
            self.out.append("/** \\} */")
        self.section = False

    def block(self, lines, indent):
        """A comment on lines of its own."""
        text = text_of(lines)
        title = re.fullmatch(r"-+ (.*?) -+", text[0])
        if self.first: # of the file: "hra.h - what it is"
            self.first = False
            text[0] = text[0].split(" - ", 1)[-1]
            text[0] = text[0][0].upper() + text[0][1:]
            page = ["\\mainpage"] if self.name == MAIN else ["\\file"]
            if page == ["\\mainpage"]:
                self.out += comment(["\\file", markdown(text)[0]])
            self.out += comment(page + [""] + markdown(text))
        elif title:
            self.close_section()
            group = re.sub(r"\W+", "_", f"{self.name} {title.group(1)}").lower()
            self.out += comment([f"\\defgroup {group} {title.group(1)} ({self.name})", "\\{"])
            self.section = True
            self.held = None
        else:
            self.held = markdown(text)
            self.told = True
            self.out += comment(self.held, indent)

    def fields(self, code, told):
        """Fields or constants, perhaps several of one type, each with the comment."""
        several = re.fullmatch(r"(\s*[\w:]+ \**)(\w+(?:, \w+)+);\s*", code)
        if several:
            for name in several.group(2).split(", "):
                self.out.append(f"{several.group(1)}{name}; /**< {told} */")
        else:
            self.out.append(f"{code} /**< {told} */")

    def trailing(self, code, lines):
        """A comment behind a field or a constant."""
        told = escape(" ".join(line for line in text_of(lines) if line))
        self.fields(code, told)
        self.held = [told if len(lines) == 1 else FIELD]
        self.told = False
        self.statement = ""

    def macro(self, line):
        named = re.match(r"#define (HRA_\w+) ?", line)
        if named and named.group(1) == "HRA_API": # which attributes a symbol has is nothing to read of
            line = ""
        elif named and not self.told and named.group(1) == "HRA_VERSION":
            self.out += comment([VERSION])
        elif named and not self.told and named.group(1).endswith("_INIT"):
            self.out += comment([INITIAL.format(named.group(1)[:-5].lower())])
        self.out.append(line)
        self.told = False

    def code(self, line):
        bare = line.strip()
        begins = self.declarations() and self.statement == "" and re.match(r"[A-Za-z~]", bare)
        label = re.match(r"(public|private|protected):|namespace\b|extern\b", bare)
        whole = re.match(r"typedef (enum|struct) \w+ {", bare)
        if bare == "} // namespace hra":
            self.close_section()
        if whole and begins and not self.told:
            self.out += comment([WHOLE[whole.group(1)]])
        elif begins and not label and not self.told and self.held:
            if re.fullmatch(r"[\w:]+ \**\w+(, \w+)*;", bare):
                self.fields(line.rstrip(), self.held[0])
                return
            self.out += comment(self.held, line[:len(line) - len(line.lstrip())])
        self.out.append(line)

        self.statement += " " + bare
        opened = bare.count("{") - bare.count("}")
        if opened > 0:
            scope = re.match(r" *(template <.*> )?(typedef )?(class|struct|enum|namespace|extern)\b[^(]*$",
                             re.sub(r"\(\*?\w*\)\(.*?\)", "", self.statement))
            self.scopes += [bool(scope)] * opened
            self.held = None if scope else self.held
        for _ in range(-opened):
            if self.scopes:
                self.scopes.pop()
        if bare == "":
            self.held = None
        if bare == "" or bare[-1] in ";{}:" or "} //" in bare:
            self.statement = ""
        self.told = False

    def run(self, lines):
        at = 0
        while at < len(lines):
            line = lines[at]
            opens = re.match(r"(\s*)(.*?)\s*(/\*.*)$", line)
            if line.startswith("#"):
                self.macro(line)
                while lines[at].endswith("\\"):
                    at += 1
                    self.out.append(lines[at])
            elif opens and self.declarations():
                found = [opens.group(3)]
                while "*/" not in lines[at]:
                    at += 1
                    found.append(lines[at])
                if opens.group(2):
                    self.trailing(opens.group(1) + opens.group(2), found)
                else:
                    self.block(found, opens.group(1))
            else:
                self.code(line)
            at += 1
        self.close_section()
        return "\n".join(self.out)


path = sys.argv[1]
with open(path, encoding="utf-8") as header:
    sys.stdout.write(Filter(path.rsplit("/", 1)[-1]).run(header.read().split("\n")))

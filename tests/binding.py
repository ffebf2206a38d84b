#!/usr/bin/env python3
"""Do the structs of examples/pytorch/hra_torch.py have the fields of those in include/hra/hra.h, in
order and of the same kinds, and its tables of names the numbers of the enumerations? Needs neither
PyTorch nor the library. Prints what differs."""

import ast
import pathlib
import re

top = pathlib.Path(__file__).resolve().parent.parent
header = re.sub(r"/\*.*?\*/", "", (top / "include/hra/hra.h").read_text(), flags=re.DOTALL)
binding = ast.parse((top / "examples/pytorch/hra_torch.py").read_text())

KINDS = {"size_t": "c_size_t", "double": "c_double", "int64_t": "c_int64", "int": "c_int"}


def kind(text):
    """ctypes' name for a C type; every enum is an int."""
    if "*" in text:
        return "c_char_p" if "char" in text else "c_void_p"
    return KINDS.get(text, "c_int")


def fields_of_header(name):
    body = re.search(r"typedef struct " + name + r" \{(.*?)\} " + name + ";", header, re.DOTALL)
    if not body:
        return None
    found = []
    for line in filter(None, map(str.strip, body.group(1).split(";"))):
        declared, names = re.match(r"((?:const )?\w+\s*\**)\s*(.*)", line, re.DOTALL).groups()
        for one in names.split(","):
            bare = one.strip().lstrip("*")
            stars = "*" * one.count("*") + declared
            count = re.search(r"\[(\w+)\]", bare)
            found.append((bare.split("[")[0], "array" if count else kind(stars.strip())))
    return found


def fields_of_binding(value):
    """(name, kind) of each field; what multiplies a type makes an array of it."""
    return [(name.value, "array" if isinstance(of, ast.BinOp) else of.id)
            for name, of in (pair.elts for pair in value.elts)]


checked = 0
for node in binding.body:
    if not isinstance(node, ast.ClassDef):
        continue
    for statement in node.body:
        if not isinstance(statement, ast.Assign) or statement.targets[0].id != "_fields_":
            continue
        name = "hra" + re.sub("([A-Z])", r"_\1", node.name.lstrip("_")).lower()
        here, there = fields_of_binding(statement.value), fields_of_header(name)
        if there is None:
            print(f"{node.name}: hra.h has no {name}")
        for number, (one, other) in enumerate(zip(here, there or [])):
            if one != other:
                print(f"{node.name}: field {number} is {one}, in {name} {other}")
        if there and len(here) != len(there):
            print(f"{node.name}: {len(here)} fields, {name} has {len(there)}")
        checked += 1
# Tables of names: the enumeration, what begins its constants, and which of them have no name.
TABLES = {"BACKENDS": ("hra_backend_kind", "HRA_BACKEND_", {"auto"}),
          "BACKWARDS": ("hra_backward_kind", "HRA_BACKWARD_", set()),
          "SAVED": ("hra_saved_kind", "HRA_SAVED_", set()),
          "SHARDS": ("hra_shard", "HRA_SHARD_", set()),
          "SCHEDULES": ("hra_schedule_kind", "HRA_SCHEDULE_", set()),
          "TRANSPORTS": ("hra_transport_kind", "HRA_TRANSPORT_", {"mpi"})}


def names_of_header(kind, prefix):
    """Name and number of each constant; those without `=` follow the one before."""
    body = re.search(r"typedef enum " + kind + r" \{(.*?)\} " + kind + ";", header, re.DOTALL)
    names, number = {}, -1
    for constant in filter(None, map(str.strip, body.group(1).split(","))):
        name, _, value = map(str.strip, constant.partition("="))
        number = int(value) if value else number + 1
        names[name.removeprefix(prefix).lower()] = number
    return names


tables = {node.targets[0].id: ast.literal_eval(node.value) for node in binding.body
          if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
          and node.targets[0].id in TABLES}
for table, (kind_name, begins, without) in TABLES.items():
    wanted = {name: number for name, number in names_of_header(kind_name, begins).items()
              if name not in without}
    if tables.get(table) != wanted:
        print(f"{table} is {tables.get(table)}, {kind_name} {wanted}")
if checked < 6:
    print(f"only {checked} structs were found in hra_torch.py")

#!/usr/bin/env python3
"""The core is built in floors, and each calls and includes only downwards.

    core_floors.py ROOT NM LIBRARY   reads coordinator/core below ROOT, and with NM the calls in LIBRARY (libkiln_core.a);
                                     prints each breach, exits 1 if there is one
    core_floors.py --self-test       small farms, each with one breach, of which exactly that one must be found

The list of floors is the one that people read, at the head of coordinator/core/state.h: a line a file, the lowest
first. Calls are taken from the object files, so no macro and no formatting hides one. farm.h is every file's to include:
it is the contract, and declares types that all floors share; what it declares as a function is checked as a call.
"""
import pathlib
import re
import subprocess
import sys

FOLDER = "coordinator/core"
CONTRACT = "farm"
LINE = re.compile(r"^ \*   (\w+)\.c  +\S", re.M)
INCLUDE = re.compile(rf'^[ \t]*#[ \t]*include[ \t]*"{FOLDER}/(\w+)\.h"', re.M)


def floors_of(text):
    """The names in the head comment of state.h, lowest first."""
    return LINE.findall(text[:text.index("*/")])


def calls_of(said):
    """What `nm LIBRARY` says as {file: names it defines}, {file: names it uses}."""
    defines, uses, file = {}, {}, None
    for line in said.splitlines():
        member = re.match(r"^(\w+)\.c\.o(?:bj)?:$", line)
        symbol = re.match(r"^(?:[0-9a-f]+)? +([A-Za-z]) (\S+)$", line)
        if member:
            file = member.group(1)
            defines[file], uses[file] = set(), set()
        elif symbol and file:
            kind, name = symbol.groups()
            (uses if kind == "U" else defines)[file].add(name)
    return defines, uses


def breaches(sources, said):
    """sources: {"batch.c": its text}; said: what nm says of the library."""
    floors, found = floors_of(sources["state.h"]), []
    level = {name: i for i, name in enumerate(floors)}
    for name in floors:
        if f"{name}.c" not in sources:
            found.append(f"state.h: {name}.c is listed as a floor and is not there")
    for file in sorted(sources):
        name = file.rsplit(".", 1)[0]
        if name not in level:
            found.append(f"{file}: is on no floor: list it at the head of state.h")
            continue
        for m in INCLUDE.finditer(sources[file]):
            line, header = sources[file].count("\n", 0, m.start()) + 1, m.group(1)
            if header != CONTRACT and level.get(header, len(floors)) > level[name]:
                found.append(f"{file}:{line}: includes {header}.h, which is on a floor above")
    defines, uses = calls_of(said)
    home = {symbol: file for file in defines for symbol in defines[file]}
    for file in sorted(uses):
        for symbol in sorted(uses[file]):
            to = home.get(symbol)
            if to in level and file in level and level[to] > level[file]:
                found.append(f"{file}.c: calls {symbol} of {to}.c, which is on a floor above")
    for name in floors:
        if name not in defines and f"{name}.c" in sources:
            found.append(f"{name}.c: not in the library that was read, so its calls were not checked")
    return found


STATE = """/* The data.
 *
 *   slab.c      elements
 *   state.c     the ground
 *   batch.c     batches,
 *               on two lines
 *   farm.c      the top
 */
#include "coordinator/core/farm.h"
#include "coordinator/core/slab.h"
/*
 *   later.c     is not at the head */
"""
SOURCES = {
    "state.h": STATE, "slab.h": "", "farm.h": "", "batch.h": '#include "coordinator/core/state.h"\n', "slab.c": "",
    "state.c": '#include "coordinator/core/state.h"\n', "batch.c": '#include "coordinator/core/batch.h"\n',
    "farm.c": '#include "coordinator/core/farm.h"\n#include "coordinator/core/batch.h"\n',
}
SAID = """
slab.c.o:
0000000000000010 T slab_take
                 U calloc

state.c.o:
0000000000000000 T farm_reserve
                 U slab_take

batch.c.o:
0000000000000000 t static_one
0000000000000020 T batch_open
                 U farm_reserve

farm.c.o:
0000000000000000 T farm_step
                 U batch_open
"""


def self_test():
    cases = [  # what is changed in the good farm, and the one breach that must be named
        ("nothing", {}, "", "", None),
        ("a call upwards", {}, "                 U farm_reserve\n", "                 U farm_step\n",
         "batch.c: calls farm_step of farm.c"),
        ("a call from the ground", {}, "                 U calloc\n", "                 U farm_reserve\n",
         "slab.c: calls farm_reserve of state.c"),
        ("an include upwards", {"state.c": '\n#include "coordinator/core/batch.h"\n'}, "", "", "state.c:2: includes batch.h"),
        ("an include of a header without a floor", {"batch.c": '#include "coordinator/core/x.h"\n'}, "", "",
         "batch.c:1: includes x.h"),
        ("a file on no floor", {"x.c": ""}, "", "", "x.c: is on no floor"),
        ("a header on no floor", {"x.h": ""}, "", "", "x.h: is on no floor"),
        ("a floor without a file", {"state.h": STATE.replace("farm.c ", "farm.c  top\n *   y.c  ")}, "", "",
         "state.h: y.c is listed"),
        ("a library without one of the files", {}, "batch.c.o:", "other.c.o:", "batch.c: not in the library"),
    ]
    failed = 0
    for title, changed, old, new, breach in cases:
        found = breaches({**SOURCES, **changed}, SAID.replace(old, new, 1) if old else SAID)
        if not (len(found) == 1 and found[0].startswith(breach) if breach else not found):
            failed += 1
            print(f"{title}: found {found}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 4:
        print(__doc__.split("\n\n")[1])
        return 2
    folder = pathlib.Path(sys.argv[1], FOLDER)
    sources = {f.name: f.read_text(encoding="utf-8") for f in sorted(folder.iterdir()) if f.suffix in {".c", ".h"}}
    said = subprocess.run([sys.argv[2], sys.argv[3]], capture_output=True, text=True, check=True).stdout
    found = breaches(sources, said)
    floors = floors_of(sources["state.h"])
    print("\n".join(found) if found else f"{len(floors)} floors, each calls and includes only downwards")
    return 1 if found else 0


sys.exit(main())

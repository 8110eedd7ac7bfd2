#!/usr/bin/env python3
"""The budgets of kernels: registers, local memory, shared memory, threads. budgets.txt declares it, kernel by kernel.

    budgets.py launch NVCC ARGUMENT...     compiles, and keeps ptxas' report beside the object (OBJECT.resources)
    budgets.py compiled TABLE LIST         LIST: a file that names the objects; every kernel for every architecture in them is
                                           held against the table
    budgets.py launched TABLE FOLDER TEST=PROGRAM...   FOLDER: what the tests on the shim launched (KX_SHIM_LAUNCHES), a file a
                                           test; skipped (77) unless all of them have run since their program was built
    budgets.py --self-test                 builds a table and reports with one breach each, and wants exactly that one found

A kernel without a line is a breach, and so is a line without a kernel, or one whose kernels never ran on the shim.
"""
import fnmatch
import os
import pathlib
import re
import subprocess
import sys
import tempfile

REGISTERS = 65536
# Shared memory of a multiprocessor and the most of one block, bytes; a block takes 1 KB more than it asked for.
SHARED = {80: (164, 163), 86: (100, 99), 87: (164, 163), 89: (100, 99), 90: (228, 227), 100: (228, 227), 103: (228, 227),
          110: (228, 227), 120: (100, 99), 121: (100, 99)}


class Budget:
    def __init__(self, number, words):
        self.number = number
        self.pattern = words[0]
        self.threads, self.blocks, self.registers, self.local, self.static, self.dynamic = map(int, words[1:7])
        self.only = {} if words[7] == "-" else {int(a) for a in words[7].split(",")}
        self.compiled = self.launched = 0


def read_table(path):
    budgets = []
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        # The name may hold blanks (template arguments), the seven columns after it do not.
        line = line.split("#")[0].strip()
        if not line:
            continue
        words = line.rsplit(None, 7)
        if len(words) != 8 or not all(w.isdigit() for w in words[1:7]):
            sys.exit(f"{path}:{number}: wants a kernel and seven columns")
        budgets.append(Budget(number, words))
    return budgets


def plain(names):
    """Mangled names to 'kernel<arguments>'."""
    names = list(names)
    if not names:
        return {}
    out = subprocess.run(["c++filt"], input="\n".join(names) + "\n", capture_output=True, text=True, check=True).stdout
    result = {}
    for mangled, text in zip(names, out.splitlines()):
        depth, end = 0, len(text)
        for i, c in enumerate(text):  # up to the parameters
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0 and not text[i:].startswith("(anonymous"):
                end = i
                break
        text = text[:end]
        text = re.sub(r"^void ", "", text)
        text = re.sub(r"(\(anonymous namespace\)|_INTERNAL_\w+|_GLOBAL__N_\w*)::", "", text)
        text = re.sub(r"\((int|unsigned int|bool|[\w ]+)\)(?=-?\w)", "", text)  # (int)4: as nvcc may say it
        result[mangled] = text
    return result


def budget_of(budgets, name):
    for b in budgets:
        if fnmatch.fnmatchcase(name, b.pattern.replace("[", "[[]")):
            return b
    return None


def read_report(text):
    """[(mangled, architecture, registers, local bytes, static bytes)]"""
    found, entry = [], None
    for line in text.splitlines():
        m = re.search(r"Compiling entry function '(\S+)' for 'sm_(\d+)\w?'", line)
        if m:
            if entry:
                raise ValueError(f"{entry[0]}: its report is cut")
            entry = [m[1], int(m[2]), None, None]
            continue
        m = re.search(r"Function properties for (\S+)", line)
        if m:
            inside = entry and m[1] == entry[0]
            continue
        m = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if m and entry and inside:
            entry[3] = max(map(int, m.groups()))
        m = re.search(r"Used (\d+) registers", line)
        if m and entry:
            smem = re.search(r"(\d+) bytes smem", line)
            if entry[3] is None:
                raise ValueError(f"{entry[0]}: its report is cut")
            found.append((entry[0], entry[1], int(m[1]), entry[3], int(smem[1]) if smem else 0))
            entry = None
    if entry:
        raise ValueError(f"{entry[0]}: its report is cut")
    return found


def check_compiled(table, reports):
    """reports: (where, text). The breaches, as lines."""
    budgets, bad, entries = read_table(table), [], []
    for where, text in reports:
        try:
            entries += [(where, *e) for e in read_report(text)]
        except ValueError as e:
            bad.append(f"{where}: {e}")
    names = plain(sorted({e[1] for e in entries}))
    for where, mangled, arch, registers, local, static in sorted(entries):
        name, b = names[mangled], budget_of(budgets, names[mangled])
        what = f"{name} for sm_{arch}"
        if not b:
            bad.append(f"{what}: no line in the table (it takes {registers} registers, {local} local, {static} shared)")
            continue
        b.compiled += 1
        for took, may, unit in ((registers, b.registers, "registers"), (local, b.local, "bytes of local memory"),
                                (static, b.static, "bytes of static shared memory")):
            if took > may:
                bad.append(f"{what}: {took} {unit}, and line {b.number} allows {may}")
        per_warp = (registers * 32 + 255) // 256 * 256  # handed out in units of 256 a warp
        warps = (b.threads + 31) // 32
        if per_warp * warps * b.blocks > REGISTERS:
            bad.append(f"{what}: {registers} registers do not let {b.blocks} blocks of {b.threads} threads in")
        if arch in SHARED and (not b.only or arch in b.only):
            of_all, of_one = SHARED[arch]
            if static + b.dynamic > of_one * 1024:
                bad.append(f"{what}: {static + b.dynamic} bytes of shared memory, and a block may have {of_one} KB")
            elif (static + b.dynamic + 1024) * b.blocks > of_all * 1024:
                bad.append(f"{what}: {static + b.dynamic} bytes of shared memory do not let {b.blocks} blocks in")
    bad += [f"line {b.number}: no kernel is called {b.pattern}" for b in budgets if not b.compiled]
    return bad


def check_launched(table, reports):
    """reports: (test, text), a line a kernel: mangled name, most threads, most dynamic shared bytes."""
    budgets, bad, entries = read_table(table), [], []
    for test, text in reports:
        for line in text.splitlines():
            mangled, threads, dynamic = line.split()
            entries.append((test, mangled, int(threads), int(dynamic)))
    names = plain(sorted({e[1] for e in entries}))
    for test, mangled, threads, dynamic in entries:
        name, b = names[mangled], budget_of(budgets, names[mangled])
        if not b:
            bad.append(f"{name}: launched by {test}, no line in the table")
            continue
        b.launched += 1
        if threads > b.threads:
            bad.append(f"{name}: {test} launched {threads} threads, and line {b.number} allows {b.threads}")
        if dynamic > b.dynamic:
            bad.append(f"{name}: {test} launched it with {dynamic} bytes of dynamic shared memory, and line {b.number} allows {b.dynamic}")
    bad += [f"line {b.number}: no test on the shim launches {b.pattern}" for b in budgets
            if not b.launched and 90 not in b.only]
    return bad


def not_run(folder, tests):
    """The tests of TEST=PROGRAM whose file is missing, or older than the program that would write it again."""
    missing = []
    for test, program in (t.split("=", 1) for t in tests):
        file = pathlib.Path(folder) / test
        if not file.exists() or file.stat().st_mtime < pathlib.Path(program).stat().st_mtime:
            missing.append(test)
    return missing


def launch(command):
    out = pathlib.Path(command[command.index("-o") + 1])
    done = subprocess.run(command + ["-Xptxas=-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    report, rest = [], []
    for line in done.stdout.splitlines():
        ours = re.match(r"ptxas info|\s+\d+ bytes stack frame", line)
        (report if ours else rest).append(line)
    if rest:
        print("\n".join(rest), file=sys.stderr)
    if done.returncode == 0:
        out.with_name(out.name + ".resources").write_text("\n".join(report) + "\n")
    return done.returncode


GOOD_TABLE = """
# kernel             threads blocks registers local static dynamic only
scale<*>                 256      2       128     0   1024   16384 -
wide                    1024      1        64    16      0       0 -
"""
GOOD_REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5scaleI6__halfLi4EEvPT_' for 'sm_80'
ptxas info    : Function properties for _Z5scaleI6__halfLi4EEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4widePf' for 'sm_120'
ptxas info    : Function properties for _Z4widePf
    16 bytes stack frame, 0 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""
GOOD_LAUNCHES = "_Z5scaleI6__halfLi4EEvPT_ 256 16384\n_ZL4widePf 64 0\n"


def self_test():
    cases = [
        (check_compiled, None, None, None),
        (check_launched, None, None, None),
        (check_compiled, 0, ("wide  ", "wider "), "no line in the table"),
        (check_compiled, 1, ("Used 96", "Used 130"), "registers, and line"),
        (check_compiled, 1, ("Used 40", "Used 65"), "65 registers, and line"),
        (check_compiled, 1, ("16 bytes stack", "20 bytes stack"), "local memory"),
        (check_compiled, 1, ("1024 bytes smem", "1028 bytes smem"), "static shared"),
        (check_compiled, 0, (" 16384 -", "170000 -"), "a block may have"),
        (check_compiled, 0, ("    2       128     0   1024   16384 -", "    2       128     0   1024   90000 -"), "do not let 2"),
        (check_compiled, 0, ("256      2       128", "256      3       128"), "registers do not let 3"),
        (check_compiled, 1, ("ptxas info    : Used 40", "ptxas info    : Usd 40"), "its report is cut"),
        (check_compiled, 0, ("wide  ", "w*\nlost  "), "seven columns"),
        (check_launched, 1, (" 256 16384", " 257 16384"), "threads, and line"),
        (check_launched, 1, (" 256 16384", " 256 16385"), "dynamic shared memory, and line"),
        (check_launched, 1, ("_ZL4widePf 64 0\n", ""), "no test on the shim launches wide"),
        (check_launched, 1, ("4widePf", "4wadePf"), "no line in the table"),
    ]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        table = pathlib.Path(folder) / "table"
        for check, which, change, want in cases:
            texts = [GOOD_TABLE, GOOD_REPORT if check is check_compiled else GOOD_LAUNCHES]
            if change:
                if change[0] not in texts[which]:
                    sys.exit(f"self-test: {change[0]!r} is not there")
                texts[which] = texts[which].replace(*change)
            table.write_text(texts[0])
            try:
                bad = check(table, [("report", texts[1])])
            except SystemExit as e:
                bad = [str(e)]
            if bool(bad) != bool(want) or (want and not any(want in b for b in bad)):
                print(f"self-test: {change}: wanted {want!r}, found {bad}")
                failed += 1
    with tempfile.TemporaryDirectory() as folder:
        for name, when in (("program", 100), ("old", 99), ("new", 101)):
            path = pathlib.Path(folder) / name
            path.write_text("")
            os.utime(path, (when, when))
        program = pathlib.Path(folder) / "program"
        found = not_run(folder, [f"{test}={program}" for test in ("new", "old", "absent")])
        if found != ["old", "absent"]:
            print(f"self-test: a partial run: wanted old and absent, found {found}")
            failed += 1
    print(f"{len(cases) + 1 - failed} of {len(cases) + 1} as they should be")
    return failed > 0


def main():
    if sys.argv[1:2] == ["launch"]:
        return launch(sys.argv[2:])
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    kind, table, where, *tests = sys.argv[1:]
    reports = []
    if kind == "compiled":
        for line in pathlib.Path(where).read_text().split(";"):
            path = pathlib.Path(line.strip() + ".resources")
            if line.strip().endswith(".cu.o"):
                if not path.exists():
                    sys.exit(f"{path} is missing: build kx_cuda")
                reports.append((path.name, path.read_text()))
        bad = check_compiled(table, reports)
    else:
        missing = not_run(where, tests)
        if missing:
            print(f"skipped: {missing[0]} has not run since it was built, nor have {len(missing) - 1} other tests on the shim")
            return 77
        files = [pathlib.Path(where) / test.split("=", 1)[0] for test in tests]
        bad = check_launched(table, [(f.name, f.read_text()) for f in files])
    for line in bad:
        print(line)
    print(f"{len(bad)} breaches")
    return len(bad) > 0


if __name__ == "__main__":
    sys.exit(main())

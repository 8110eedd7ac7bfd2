#!/usr/bin/env python3
"""clang-tidy has nothing to say about the programs (.clang-tidy has the checks, and why some are off).

    tidy.py ROOT BUILD [--seconds N]   looks at what changed since it was last found clean, for about N seconds (45)
    tidy.py ROOT BUILD --all           looks at everything that is not known to be clean, however long it takes
    tidy.py --self-test ROOT           a file with one fault must be found

A source is known to be clean when its text, those of the project's headers that it includes, its compile command and
.clang-tidy are as they were: BUILD/tidy-clean has their digests. Findings differ between versions of clang-tidy, so the
check runs with version 14 alone and says "skipped" (exit 77) with another or with none. The whole tree takes about
eight minutes of a core at first, a changed source three seconds. Tests are not looked at.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

VERSION = 14
FOLDERS = ("base", "proto", "coordinator", "worker", "kernels", "cli")
INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.M)


def tool():
    for name in (f"clang-tidy-{VERSION}", "clang-tidy"):
        path = shutil.which(name)
        if path:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            if re.search(rf"version {VERSION}\.", said):
                return path
    return None


class Digests:
    """The digest of a source with all that it includes from the project."""

    def __init__(self, root):
        self.root, self.texts = root, {}
        self.config = (root / ".clang-tidy").read_bytes()

    def text(self, path):
        if path not in self.texts:
            file = self.root / path
            self.texts[path] = file.read_bytes() if file.is_file() else b""
        return self.texts[path]

    def of(self, path, command):
        seen, todo = set(), [path]
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                todo += [m.decode() for m in INCLUDE.findall(self.text(at))]
        h = hashlib.sha256(self.config + command.encode())
        for at in sorted(seen):
            h.update(at.encode() + b"\0" + self.text(at) + b"\0")
        return h.hexdigest()


def look(program, root, build, path):
    done = subprocess.run([program, "-p", build, "--quiet", path], capture_output=True, text=True, cwd=root)
    found = [line.replace(f"{root}/", "") for line in done.stdout.splitlines() if re.search(r": (warning|error): ", line)]
    return found or ([f"{path}: clang-tidy failed: {done.stderr.strip()[-300:]}"] if done.returncode else [])


def run(program, root, build, seconds):
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = os.path.relpath(entry["file"], root)
        if path.startswith(tuple(f + "/" for f in FOLDERS)) and path.endswith(".c"):
            commands.setdefault(path, entry["command"])
    digests, record = Digests(root), build / "tidy-clean"
    clean = set(record.read_text().split()) if record.is_file() else set()
    wanted = {path: digests.of(path, command) for path, command in sorted(commands.items())}
    todo = [path for path, digest in wanted.items() if digest not in clean]
    # what was changed last first
    todo.sort(key=lambda path: -(root / path).stat().st_mtime)
    end, found, looked = time.monotonic() + seconds, [], 0

    def one(path):
        return None if time.monotonic() > end else look(program, root, build, path)
    # a slice runs beside other tests
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() if seconds == float("inf") else 1) as pool:
        for path, said in zip(todo, pool.map(one, todo)):
            if said is None:
                continue
            looked += 1
            found += said
            if not said:
                clean.add(wanted[path])
    record.write_text("\n".join(sorted(clean & set(wanted.values()))) + "\n")
    print("\n".join(sorted(set(found))))
    print(f"{len(commands)} sources: {len(commands) - len(todo)} known to be clean, {looked} looked at, "
          f"{len(todo) - looked} left for another time; {len(set(found))} findings")
    return 1 if found else 0


def self_test(program, root):
    with tempfile.TemporaryDirectory() as folder:
        there = pathlib.Path(folder)
        shutil.copy(root / ".clang-tidy", there)
        (there / "base").mkdir()
        (there / "base/good.c").write_text("int good(int x) {\n    return x + 1;\n}\n")
        (there / "base/bad.c").write_text("int bad(int x) {\n    int *p = 0;\n    return x ? *p : 0;\n}\n")
        (there / "compile_commands.json").write_text(json.dumps(
            [{"directory": folder, "command": f"cc -c base/{n}.c", "file": f"{folder}/base/{n}.c"} for n in ("good", "bad")]))
        wrong = 0
        for name, want in (("good", None), ("bad", "core.NullDereference")):
            said = look(program, there, there, f"base/{name}.c")
            if not (len(said) == 1 and want in said[0] if want else not said):
                wrong += 1
                print(f"{name}.c: found {said}")
        digests = Digests(there)
        before = digests.of("base/good.c", "cc")
        if before == digests.of("base/good.c", "cc -O2") or before == digests.of("base/bad.c", "cc"):
            wrong += 1
            print("two sources have one digest")
    print(f"3 cases, {wrong} failed")
    return 1 if wrong else 0


def main():
    program = tool()
    if not program:
        print(f"skipped: no clang-tidy {VERSION}")
        return 77
    if sys.argv[1:2] == ["--self-test"]:
        return self_test(program, pathlib.Path(sys.argv[2]).resolve())
    if len(sys.argv) < 3:
        print(__doc__.split("\n\n")[1])
        return 2
    seconds = 45.0
    if "--all" in sys.argv:
        seconds = float("inf")
    elif "--seconds" in sys.argv:
        seconds = float(sys.argv[sys.argv.index("--seconds") + 1])
    return run(program, pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve(), seconds)


sys.exit(main())

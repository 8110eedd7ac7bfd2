#!/usr/bin/env python3
"""Every C file is as clang-format leaves it.

    format.py ROOT              names each file that is not, exits 1 if there is one
    format.py --self-test ROOT  a badly formatted file must be found with ROOT's .clang-format

Formats differ between versions of clang-format, so the check runs with version 14 alone and says "skipped" (exit 77) with
another or with none. To repair: clang-format -i FILE.
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

VERSION = 14
FOLDERS = ["base", "proto", "coordinator", "worker", "kernels", "cli", "tests"]
SUFFIXES = {".c", ".h", ".cu", ".cuh"}


def tool():
    for name in (f"clang-format-{VERSION}", "clang-format"):
        path = shutil.which(name)
        if path:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            if re.search(rf"version {VERSION}\.", said):
                return path
    return None


def unformatted(program, files):
    bad = []
    for start in range(0, len(files), 50):
        some = files[start:start + 50]
        done = subprocess.run([program, "--style=file", "--dry-run", *map(str, some)], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"clang-format failed:\n{done.stderr}")
        bad += re.findall(r"^(.+?):\d+:\d+: warning: code should be clang-formatted", done.stderr, re.M)
    return sorted(set(bad))


def main():
    arguments = sys.argv[1:]
    self_test = arguments[:1] == ["--self-test"]
    root = pathlib.Path(arguments[-1])
    if not (root / ".clang-format").is_file():
        print(f"{root}: no .clang-format in it: not the project's root")
        return 2
    program = tool()
    if not program:
        print(f"skipped: no clang-format {VERSION} here")
        return 77
    if self_test:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(root / ".clang-format", folder)
            good, bad = pathlib.Path(folder, "good.c"), pathlib.Path(folder, "bad.c")
            good.write_text("int f(int x) {\n    return x;\n}\n")
            bad.write_text("int f( int x )\n{\n  return x; }\n")
            found = unformatted(program, [good, bad])
            print(f"found: {found}")
            return 0 if found == [str(bad)] else 1
    files = [f for top in FOLDERS for f in sorted((root / top).rglob("*")) if f.suffix in SUFFIXES and f.is_file()]
    bad = unformatted(program, files)
    for file in bad:
        print(f"{pathlib.Path(file).relative_to(root)}: not formatted")
    print(f"{len(files)} files looked at, {len(bad)} not formatted")
    return 1 if bad else 0


sys.exit(main())

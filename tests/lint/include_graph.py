#!/usr/bin/env python3
"""Who may include whom.

    include_graph.py ROOT         reads every C and CUDA file below ROOT, prints each breach, exits 1 if there is one
    include_graph.py --self-test  builds small trees, each with one breach, and wants exactly that one found

The rules, with the reason for each:
  - base is everyone's and includes nobody; proto is for what talks over the network; coordinator, worker and cli are three
    programs that meet on the wire alone; the engine (kernels) knows nothing of farms, and only the worker uses it, through
    kernels/kiln.h.
  - the coordinator's own files stand in one order, and each includes, and so calls, only those below it.
  - coordinator/core is a pure function: libc and base, nothing that could do input or output by itself.
  - a library is seen in the one place that hides it, so that it can be replaced there.
  - cli is built in floors (farm, talk, folder, print, commands), and its files include each other in no circle.
Tests may include anything.
"""
import pathlib
import re
import sys
import tempfile

FOLDERS = ["base", "proto", "coordinator", "worker", "kernels", "cli"]
SUFFIXES = {".c", ".h", ".cu", ".cuh"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.M)

# folder -> prefixes of project files that it may include; the longest folder that matches counts.
ALLOWED = {
    "base": ["base/"],
    "proto": ["base/", "proto/"],
    "kernels": ["base/", "kernels/"],
    "coordinator": ["base/", "proto/", "coordinator/"],
    "coordinator/core": ["base/", "coordinator/core/"],
    "worker": ["base/", "proto/", "worker/", "kernels/kiln.h"],
    # cli: floors, each including only those below it; what lies flat in cli/ is the ground, and main.c the roof.
    "cli": ["base/", "proto/", "cli/args.h", "cli/cli.h", "cli/text.h", "cli/commands/commands.h"],
    "cli/farm": ["base/", "cli/cli.h", "cli/text.h", "cli/farm/"],
    "cli/talk": ["base/", "proto/", "cli/cli.h", "cli/text.h", "cli/farm/", "cli/talk/"],
    "cli/folder": ["base/", "proto/", "cli/cli.h", "cli/text.h", "cli/talk/", "cli/folder/"],
    "cli/print": ["base/", "proto/", "cli/cli.h", "cli/text.h", "cli/talk/", "cli/folder/", "cli/print/"],
    "cli/commands": ["base/", "proto/", "cli/"],
}

# Folders whose files include each other in no circle: a file and its header are one.
WITHOUT_CIRCLES = ("cli/",)

# library: (what its headers look like, the only files that may include them)
LIBRARIES = {
    "zmq": (r"^zmq", r"^proto/(wire|guard)\.c$"),
    "protobuf-c": (r"^(protobuf-c/|google/protobuf-c/)|\.pb-c\.h$", r"^proto/(codec\.c|codec_\w+\.[ch]|arena\.[ch])$"),
    "hiredis": (r"^hiredis/", r"^coordinator/store/[^/]*\.c$"),
    "libuv": (r"^(uv\.h$|uv/)", r"^(proto|worker|cli)/|^coordinator/(?!core/)"),
    "CUDA": (r"^(cuda|cublas|cudnn|nvml|nvrtc|curand)", r"^kernels/|^worker/device[^/]*\.c$"),
    "oneDNN": (r"^(oneapi/|dnnl)", r"^kernels/"),
}

# The coordinator's files from the top down. server.h is not server.c's alone: it is the state that all share.
FLOORS = ["main", "server", "recover", "enrol", "clients", "repair", "scrub", "lost", "explain", "waits", "workers", "carry_out", "trash",
          "aside", "send", "inspect", "history", "keys", "roles", "batches", "ticket", "collect", "objects"]
FLOORS_SHARED = {"coordinator/server.h"}

# Headers that are one folder's own affair, though the folder is everyone's.
PRIVATE = re.compile(r"^(base/record|proto/codec_\w+|proto/arena)\.h$")

# coordinator/core: libc's headers, and none of those by which a function would reach the world.
CORE_LIBC = {"assert.h", "ctype.h", "errno.h", "float.h", "inttypes.h", "limits.h", "math.h", "stdalign.h", "stdarg.h",
             "stdbool.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h"}
CORE_NO_BASE = {"base/clock.h", "base/fs.h", "base/log.h"}


def folder_of(path):
    return max((f for f in ALLOWED if path.startswith(f + "/")), key=len)


def without_comments(text):
    """Blanks out comments, keeps the lines."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.S)


def unit_of(path):
    return path.rsplit(".", 1)[0]


def circles(includes):
    """includes: [(path, line, header)]. One breach for each include that closes a circle."""
    edges, found, done = {}, [], set()
    for path, line, header in includes:
        if unit_of(path) != unit_of(header):
            edges.setdefault(unit_of(path), []).append((unit_of(header), path, line, header))

    def visit(unit, way):
        if unit in done:
            return
        for to, path, line, header in edges.get(unit, []):
            if to in way:
                ring = " -> ".join(way[way.index(to):] + [to])
                found.append(f"{path}:{line}: {header}: it closes a circle: {ring}")
            else:
                visit(to, way + [to])
        done.add(unit)

    for unit in sorted(edges):
        visit(unit, [unit])
    return found


def breaches(root):
    found, own = [], []
    for top in FOLDERS:
        for file in sorted((root / top).rglob("*")):
            if file.suffix not in SUFFIXES or not file.is_file():
                continue
            path = file.relative_to(root).as_posix()
            text = without_comments(file.read_text(encoding="utf-8"))
            if file.parent == root / "coordinator" and file.stem not in FLOORS:
                found.append(f"{path}:1: {file.name}: it has no place in FLOORS")
            for m in INCLUDE.finditer(text):
                line = text.count("\n", 0, m.start()) + 1
                if m.group(1) and path.startswith(WITHOUT_CIRCLES) and m.group(1).startswith(WITHOUT_CIRCLES):
                    own.append((path, line, m.group(1)))
                why = judge(root, path, m.group(1), m.group(2))
                if why:
                    found.append(f"{path}:{line}: {m.group(1) or m.group(2)}: {why}")
    return found + circles(own)


def upward(path, header):
    """Whether a file of the coordinator includes one that stands above it."""
    def floor(name):
        found = re.fullmatch(r"coordinator/(\w+)\.[ch]", name)
        return FLOORS.index(found.group(1)) if found and found.group(1) in FLOORS else None
    above, own = floor(header), floor(path)
    return header not in FLOORS_SHARED and None not in (above, own) and above < own


def judge(root, path, quoted, angled):
    header, folder = quoted or angled, folder_of(path)
    for library, (looks, where) in LIBRARIES.items():
        if re.search(looks, header):
            return None if re.search(where, path) else f"{library} may not be seen here"
    if angled:
        if any(angled.startswith(f + "/") for f in FOLDERS):
            return "the project's own headers are included in quotes"
        if folder == "coordinator/core" and angled not in CORE_LIBC:
            return "coordinator/core includes base and plain libc only"
        return None
    if not any(quoted == p or (p.endswith("/") and quoted.startswith(p)) for p in ALLOWED[folder]):
        return f"{folder} may not include it"
    if upward(path, quoted):
        return f"{path} stands below it"
    if PRIVATE.search(quoted) and folder != quoted.split("/")[0]:
        return "it is private to its folder"
    if folder == "coordinator/core" and quoted in CORE_NO_BASE:
        return "the core does no input or output and has no clock"
    if not (root / quoted).is_file():
        return "no such file from the root"
    return None


def self_test():
    good = {
        "base/err.h": "#include <stddef.h>\n",
        "base/clock.h": "",
        "base/err.c": '#include "base/err.h"\n',
        "proto/wire.h": '#include "base/err.h"\n#include <uv.h>\n',
        "proto/wire.c": '#include <zmq.h>\n#include "proto/wire.h"\n',
        "proto/codec.h": "",
        "proto/codec_private.h": "#include <protobuf-c/protobuf-c.h>\n",
        "proto/codec.c": '#include "proto/kiln.pb-c.h"\n#include <protobuf-c/protobuf-c.h>\n',
        "kernels/kiln.h": "",
        "kernels/ops.h": "",
        "kernels/cuda/op.cu": '#include <cuda_runtime.h>\n#include "kernels/ops.h"\n',
        "kernels/cpu/op.c": '#include <dnnl.h>\n#include <oneapi/dnnl/dnnl.h>\n',
        "coordinator/store/store.h": '#include "base/err.h"\n',
        "coordinator/store/redis.c": '#include <hiredis/hiredis.h>\n#include <uv.h>\n#include "coordinator/store/store.h"\n',
        "coordinator/server.h": "",
        "coordinator/clients.h": "",
        "coordinator/workers.c": '#include "coordinator/server.h"\n#include "coordinator/send.h"\n',
        "coordinator/send.h": '#include "coordinator/server.h"\n',
        "coordinator/main.c": '#include "coordinator/core/farm.h"\n#include "proto/wire.h"\n',
        "coordinator/core/farm.h": '#include <stdint.h>\n#include "base/err.h"\n',
        "worker/main.c": '#include "kernels/kiln.h"\n#include "proto/codec.h"\n',
        "worker/loop.h": "",
        "cli/main.c": '#include "base/err.h"\n#include "proto/wire.h"\n/* #include "worker/loop.h" is only a comment */\n',
        "cli/cli.h": "",
        "cli/farm/farmdir.h": '#include "cli/cli.h"\n',
        "cli/farm/farmdir.c": '#include "cli/farm/farmdir.h"\n',
        "cli/talk/batch.h": '#include "cli/farm/farmdir.h"\n#include "proto/codec.h"\n',
        "cli/folder/folder.h": '#include "cli/talk/batch.h"\n',
        "cli/folder/folder.c": '#include "cli/folder/folder.h"\n#include "cli/folder/gallery.h"\n',
        "cli/folder/gallery.h": "",
        "cli/folder/gallery.c": '#include "cli/folder/gallery.h"\n',
        "cli/print/print.h": '#include "cli/folder/folder.h"\n',
        "cli/commands/commands.h": "",
        "cli/commands/up.c": '#include "cli/commands/commands.h"\n#include "cli/farm/farmdir.h"\n#include "cli/print/print.h"\n',
    }
    bad = [  # file, its text, the line and the header that must be named
        ("base/x.c", '\n#include "proto/wire.h"\n', 2, "proto/wire.h"),
        ("base/x.c", "#include <uv.h>\n", 1, "uv.h"),
        ("proto/x.c", '#include "coordinator/store/store.h"\n', 1, "coordinator/store/store.h"),
        ("proto/x.c", "#include <zmq.h>\n", 1, "zmq.h"),
        ("proto/wire.h", "#include <zmq.h>\n", 1, "zmq.h"),
        ("proto/wire.c", "#include <protobuf-c/protobuf-c.h>\n", 1, "protobuf-c/protobuf-c.h"),
        ("proto/codec.h", "#include <protobuf-c/protobuf-c.h>\n", 1, "protobuf-c/protobuf-c.h"),
        ("worker/x.c", '#include "proto/codec_private.h"\n', 1, "proto/codec_private.h"),
        ("worker/x.c", '#include "proto/kiln.pb-c.h"\n', 1, "proto/kiln.pb-c.h"),
        ("kernels/x.c", '#include "proto/codec.h"\n', 1, "proto/codec.h"),
        ("kernels/x.cu", '#include "worker/loop.h"\n', 1, "worker/loop.h"),
        ("kernels/x.c", "#  include <uv.h>\n", 1, "uv.h"),
        ("coordinator/collect.c", '#include "kernels/kiln.h"\n', 1, "kernels/kiln.h"),
        ("coordinator/collect.c", '#include "worker/loop.h"\n', 1, "worker/loop.h"),
        ("coordinator/collect.c", "#include <hiredis/async.h>\n", 1, "hiredis/async.h"),
        ("coordinator/store/store.h", "#include <hiredis/hiredis.h>\n", 1, "hiredis/hiredis.h"),
        ("coordinator/new.c", "", 1, "new.c"),
        ("coordinator/workers.c", '#include "coordinator/clients.h"\n', 1, "coordinator/clients.h"),
        ("coordinator/collect.c", "#include <cuda_runtime.h>\n", 1, "cuda_runtime.h"),
        ("coordinator/core/x.c", '#include "proto/codec.h"\n', 1, "proto/codec.h"),
        ("coordinator/core/x.c", '#include "coordinator/store/store.h"\n', 1, "coordinator/store/store.h"),
        ("coordinator/core/x.c", "#include <uv.h>\n", 1, "uv.h"),
        ("coordinator/core/x.c", "#include <sys/socket.h>\n", 1, "sys/socket.h"),
        ("coordinator/core/x.c", "#include <time.h>\n", 1, "time.h"),
        ("coordinator/core/x.c", '#include "base/clock.h"\n', 1, "base/clock.h"),
        ("worker/x.c", '#include "kernels/ops.h"\n', 1, "kernels/ops.h"),
        ("worker/x.c", '#include "cli/main.h"\n', 1, "cli/main.h"),
        ("cli/x.c", '#include "coordinator/store/store.h"\n', 1, "coordinator/store/store.h"),
        ("cli/x.c", '#include "kernels/kiln.h"\n', 1, "kernels/kiln.h"),
        ("cli/x.c", "#include <dnnl.h>\n", 1, "dnnl.h"),
        ("cli/x.c", '#include "cli/farm/farmdir.h"\n', 1, "cli/farm/farmdir.h"),
        ("cli/farm/x.c", '#include "cli/talk/batch.h"\n', 1, "cli/talk/batch.h"),
        ("cli/farm/x.c", '#include "proto/wire.h"\n', 1, "proto/wire.h"),
        ("cli/talk/x.c", '#include "cli/folder/folder.h"\n', 1, "cli/folder/folder.h"),
        ("cli/folder/x.c", '#include "cli/print/print.h"\n', 1, "cli/print/print.h"),
        ("cli/print/x.c", '#include "cli/commands/commands.h"\n', 1, "cli/commands/commands.h"),
        ("cli/folder/gallery.h", '\n#include "cli/folder/folder.h"\n', 2, "cli/folder/folder.h"),  # whose .c includes gallery.h
        ("cli/x.c", '#include "err.h"\n', 1, "err.h"),
        ("cli/x.c", '#include "base/nothing.h"\n', 1, "base/nothing.h"),
        ("cli/x.c", "#include <base/err.h>\n", 1, "base/err.h"),
    ]
    failed = 0
    for file, text, line, header in [(None, None, 0, None)] + bad:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            tree = dict(good)
            if file:
                tree[file] = text
            for name, content in tree.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(content)
            found = breaches(root)
            right = len(found) == 1 and found[0].startswith(f"{file}:{line}: {header}: ") if file else not found
            if not right:
                failed += 1
                print(f"{file or 'the good tree'}: {text!r}: found {found}")
    print(f"{len(bad) + 1 - failed} passed, {failed} failed")
    return 1 if failed else 0


def main():
    if len(sys.argv) != 2:
        print(__doc__.split("\n\n")[1])
        return 2
    if sys.argv[1] == "--self-test":
        return self_test()
    root = pathlib.Path(sys.argv[1])
    if not (root / "base").is_dir():
        print(f"{root}: no base/ in it: not the project's root")
        return 2
    found = breaches(root)
    print("\n".join(found) if found else "every include is allowed")
    return 1 if found else 0


sys.exit(main())

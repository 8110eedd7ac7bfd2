#!/usr/bin/env python3
"""The engine's ops are found by one table, and the CUDA backend's files stand on floors.

    engine_ops.py ROOT         prints each breach, exits 1 if there is one
    engine_ops.py --self-test  builds small trees, each with one breach, and wants exactly that one found

The rules, with the reason for each:
  - a name in kernels/backend.h's lists is a function kx_NAME whose contract is in kernels/ops.h (or backend.h, for those
    that only ops.c calls), and each backend defines its own, kx_cpu_NAME and kx_gpu_NAME, once. The compiler and the linker
    say the same; this says it in words, and without a build.
  - whatever computes (KX_COMPUTING_OPS) is called by the tests of the ops and is compared between the backends.
  - a file of kernels/cuda calls only files on floors below its own: a circle of files is one file that cannot be read alone.
"""
import pathlib
import re
import sys
import tempfile

LISTS = ("KX_COMPUTING_OPS", "KX_CONTEXT_OPS")

# What must know every op that computes, and why.
USERS = {
    "tests/ops": "no test in tests/ops calls it",
    "tests/gpu/parity.c": "the backends are not compared in it",
}

# kernels/cuda, the ground floor first; files of one line do not call each other.
FLOORS = [
    ("library.c", "table.c"),
    ("cublaslt.c", "cudnn.c"),
    ("device.c",),
    ("memory.c",),
    ("ops.c", "graph.c"),
    ("quantize.c",),
    ("product.c",),
    ("layer.c",),
    ("context.c",),
]


def without_comments(text):
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)


def read(path):
    return without_comments(path.read_text(encoding="utf-8")) if path.is_file() else ""


def listed(header, name):
    m = re.search(rf"#define {name}\(X\)((?:.*\\\n)*.*)", header)
    return re.findall(r"X\((\w+)[,)]", m.group(1)) if m else []


def definitions(text):
    """Functions that a file defines: a name at the left margin's declaration, with a body behind its parameters."""
    return re.findall(r"^[A-Za-z_][\w \t*]*?\b(kx_\w+)\s*\([^;{}]*\)\s*\{", text, re.M)


def table(root):
    found = []
    header, contracts = read(root / "kernels/backend.h"), read(root / "kernels/ops.h")
    computing = listed(header, LISTS[0])
    names = computing + listed(header, LISTS[1])
    if not computing or len(names) == len(computing):
        return [f"kernels/backend.h: {' or '.join(LISTS)} has no names"]
    for name in sorted({n for n in names if names.count(n) > 1}):
        found.append(f"kernels/backend.h: {name}: listed twice")
    prototypes = contracts + header[header.find("#define KX_BACKEND_OPS"):]
    for name in names:
        if not re.search(rf"\bkx_{name}\s*\(", prototypes):
            found.append(f"kernels/ops.h: kx_{name}: no contract")
    for folder, prefix in (("cpu", "kx_cpu_"), ("cuda", "kx_gpu_")):
        made = [d for f in sorted((root / "kernels" / folder).glob("*.c")) for d in definitions(read(f))]
        for name in names:
            if made.count(prefix + name) != 1:
                found.append(f"kernels/{folder}: {prefix}{name}: defined {made.count(prefix + name)} times")
    for user, why in USERS.items():
        path = root / user
        text = "".join(read(f) for f in sorted(path.glob("*.c"))) if path.is_dir() else read(path)
        for name in computing:
            if not re.search(rf"\bkx_{name}\b", text):
                found.append(f"{user}: kx_{name}: {why}")
    return found


def floors(root):
    found, floor, owner, texts = [], {}, {}, {}
    for number, files in enumerate(FLOORS):
        for file in files:
            floor[file] = number
    for path in sorted((root / "kernels/cuda").glob("*.c")):
        if path.name not in floor:
            found.append(f"kernels/cuda/{path.name}: stands on no floor (FLOORS)")
            continue
        texts[path.name] = read(path)
        for name in definitions(texts[path.name]):
            owner[name] = path.name
    for file, text in texts.items():
        for name in sorted(set(re.findall(r"\b(kx_\w+)\s*\(", text))):
            to = owner.get(name)
            if to and to != file and floor[to] >= floor[file]:
                found.append(f"kernels/cuda/{file}: calls {name} of {to}, which does not stand below it")
    return found


def breaches(root):
    return table(root) + floors(root)


# ---- the lint itself


def small_tree(root):
    """One op that computes and one that does not, in every place where they must be."""
    def write(path, text):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    write("kernels/backend.h", "#define KX_COMPUTING_OPS(X) \\\n    X(conv, CONV, (int x), (x))\n\n#define KX_CONTEXT_OPS(X) \\\n    X(sync)\n")
    write("kernels/ops.h", "void kx_conv(int x);\nint kx_sync(void);\n")
    write("kernels/cpu/a.c", "void kx_cpu_conv(int x) {\n}\nint kx_cpu_sync(void) {\n    return 0;\n}\n")
    write("kernels/cuda/device.c", "int kx_gpu_enter(void) {\n    return 0;\n}\n")
    write("kernels/cuda/memory.c", "int kx_gpu_sync(void) {\n    return kx_gpu_enter();\n}\n")
    write("kernels/cuda/layer.c", "void kx_gpu_conv(int x) {\n    (void)kx_gpu_sync();\n}\n")
    for user in USERS:
        write(user if user.endswith(".c") else user + "/a.c", "void f(void) { kx_conv(1); }\n")


def self_test():
    breaks = [
        ("kernels/backend.h", "X(sync)", "X(sync) X(sync)", "kernels/backend.h: sync: listed twice"),
        ("kernels/ops.h", "void kx_conv(int x);", "", "kernels/ops.h: kx_conv: no contract"),
        ("kernels/cpu/a.c", "kx_cpu_sync", "kx_cpu_other", "kernels/cpu: kx_cpu_sync: defined 0 times"),
        ("kernels/cuda/layer.c", "void kx_gpu_conv(int x) {", "void kx_gpu_conv(int x);\nvoid other(void) {",
         "kernels/cuda: kx_gpu_conv: defined 0 times"),
        ("kernels/cuda/device.c", "return 0;", "return kx_gpu_sync();",
         "kernels/cuda/device.c: calls kx_gpu_sync of memory.c, which does not stand below it"),
    ]
    breaks += [(u if u.endswith(".c") else u + "/a.c", "kx_conv(1)", "/* kx_conv(1) */", f"{u}: kx_conv: {why}")
               for u, why in USERS.items()]
    wrong = 0
    for path, old, new, want in [(None, "", "", None)] + breaks:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            small_tree(root)
            if path:
                text = (root / path).read_text()
                assert old in text, (path, old)
                (root / path).write_text(text.replace(old, new))
            found = breaches(root)
            if found != ([want] if want else []):
                print(f"wanted {want}, found {found}")
                wrong += 1
    print(f"{len(breaks)} breaches tried, {wrong} wrong")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = pathlib.Path(sys.argv[1])
    found = breaches(root)
    for line in found:
        print(line)
    names = listed(read(root / "kernels/backend.h"), LISTS[0])
    print(f"{len(names)} ops looked at, {len(found)} breaches")
    return 1 if found else 0


sys.exit(main())

#!/usr/bin/env python3
"""What a reader of the sources relies on, and no compiler checks.

    house.py ROOT         prints each breach, exits 1 if there is one
    house.py --self-test  small trees, each with one breach, of which exactly that one must be found

The rules, with the reason for each:
  - a file that a comment names exists: a pointer into nothing costs more than none;
  - a function that a header declares is defined, and is called from somewhere: a dead one is read for nothing;
  - a header stands beside the source of its name, or HEADERS_ALONE says why it has none;
  - no two structs, unions or enums share a name (SAME_NAMES has the exceptions): one word for one thing. A test's own
    source is a program of its own and is not looked at;
  - a bound (NAME_MAX, NAME_MIN) that is defined is used: one that is not bounds nothing, whatever its comment says;
  - a state is compared with its name, never with a number;
  - a function of more than 100 lines stands in long_functions.txt with its reason; that list only shrinks;
  - no comment of a header begins with a bare "What" or "Whether": say what the thing is;
  - no object is deleted or renamed away but into the trash: the coordinator calls unlink, rename and their kin only in
    objects.c, and there only as REMOVALS lists;
  - words that the glossary forbids (docs/GLOSSARY.md) are in no identifier of a header.
"""
import pathlib
import re
import sys
import tempfile

FOLDERS = ["base", "proto", "coordinator", "worker", "kernels", "cli", "tests"]
SOURCES = (".c", ".cu", ".cc")
HEADERS = (".h", ".cuh")
LINES_MAX = 100

# Files that comments name and that are no files of this tree: what kiln writes and reads, and what it was learned from.
OUTSIDE = re.compile(
    r"^(DIR/)?(batch|kiln-fp8|added_tokens|adapter_config|.*\.index)\.json$|^(dnnl|cublasLt|cudnn_graph)\.h$"
    r"|^(peft|aten|ATen|models)/|^(layer|simple_tokenizer)\.py$|[*]|NAME")

HEADERS_ALONE = {
    "coordinator/store/redis_parts.h": "between redis.c, redis_load.c, redis_script.c and redis_sync.c",
    "base/limits.h": "numbers",
    "proto/messages.h": "the table of messages; codec.c reads and writes them",
    "proto/codec_private.h": "between codec.c and chunk.c",
    "kernels/kiln.h": "the engine's public face: engine.c, describe.c, render.c",
    "kernels/backend.h": "the table of ops; each backend fills it",
    "kernels/models/models.h": "the networks: text.c, unet.c, vae.c",
    "base/planted.h": "a table",
    "kernels/cpu/simd.h": "inline",
    "kernels/cuda/cuda.h": "the backend's two doors: context.c, device.c",
    "kernels/cuda/conv.h": "between the .cu files and layer.c",
    "kernels/cuda/launch.h": "the launchers of all .cu files",
    "kernels/cuda/library_abi.h": "declarations of cuBLASLt and cuDNN",
    "kernels/cuda/wgmma.cuh": "inline",
    "cli/folder/gallery_page.h": "its source is made from gallery.html",
    "cli/print/print.h": "one interface, two forms: text.c, json.c",
}

# Two things of one name. An opaque type that two backends define is one thing.
SAME_NAMES = {
    "engine_minibatch": "opaque in worker/engine.h, defined by each engine",
    "kx_table": "opaque in kernels/ops.h, defined by each backend",
    "worker": "the coordinator's record of one, and the program itself; no source sees both",
}

# Declared for programs outside of the tree, or called where this lint cannot see it.
CALLED_ELSEWHERE = {}

FORBIDDEN = None  # read from the glossary

TOKEN = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
NAMED_FILE = re.compile(r"[\w.*/{}-]*\w\.(?:cuh|cu|cc|c|h|py|sh|proto|md|cmake|txt|json)\b(?![\w(])")
STRUCT = re.compile(r"\b(?:struct|union|enum)\s+(\w+)\s*\{")
RAW_STATE = re.compile(r"\b\w*(?:state|verb)\s*[!=]?=\s*[1-9]\d*\b")
BARE = re.compile(r"(?:^/[*]+\s*|^//\s*|[.;:]\s+(?:[*]\s+)?)((?:What|Whether)\b[^.\n]{0,40})")
# A function's name in a declaration or at the head of its definition.
DECLARED = re.compile(r"^(?!\s*(?:return|typedef|static|else|case|define)\b)[A-Za-z_][\w \t*]*?[ *](\w+)\(", re.M)


def blanked(text):
    return re.sub(r"[^\n]", " ", text)


class File:
    def __init__(self, path, text):
        self.path, self.text, self.comments = path, text, []
        self.suffix = path[path.rfind("."):]

        def take(m):
            if m[0][0] == "/":
                self.comments.append((text.count("\n", 0, m.start()) + 1, m[0]))
                return blanked(m[0])
            return '""' if m[0][0] == '"' else "' '"
        self.code = TOKEN.sub(take, text)

    def line(self, at):
        return self.code.count("\n", 0, at) + 1


def read(root):
    files, names = [], set()
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        if folder.name.startswith(("build", ".")):
            continue
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            parts = path.relative_to(root).as_posix().split("/")
            names.update("/".join(parts[i:]) for i in range(len(parts)))
            if folder.name in FOLDERS and path.suffix in SOURCES + HEADERS:
                files.append(File("/".join(parts), path.read_text(encoding="utf-8")))
    names.update(p.name for p in root.iterdir() if p.is_file())
    return files, names


def is_own(path):
    """Whether it is of the programs, not of the tests."""
    return not path.startswith("tests/")


def named_files(files, names):
    for f in files:
        for line, comment in f.comments:
            for m in NAMED_FILE.finditer(comment):
                if m[0] not in names and not OUTSIDE.search(m[0]):
                    yield f"{f.path}:{line + comment.count(chr(10), 0, m.start())}: {m[0]}: there is no such file"


def without_bodies(code):
    """The text at depth 0, so that only declarations and heads of definitions are left."""
    out, depth = [], 0
    for part in re.split(r"([{}])", code):
        if part == "{":
            depth += 1
        elif part == "}":
            depth = max(0, depth - 1)
            if depth == 0:
                out.append(";")
        elif depth == 0:
            out.append(part)
        out.append(blanked(part) if depth or part == "}" else "")
    return "".join(out)


def prototypes(files):
    """Functions that headers declare: {name: (path, line)}."""
    found = {}
    for f in files:
        if f.suffix not in HEADERS or not is_own(f.path):
            continue
        code = re.sub(r"^[ \t]*#(?:.*\\\n)*.*", lambda m: blanked(m[0]), f.code, flags=re.M)
        code = code.replace('extern "" {', "           ")
        for m in re.finditer(r"^(?!\s*(?:static|typedef|return|else)\b)[A-Za-z_][\w \t*]*?[ *](\w+)\(", code, re.M):
            end = code.find(";", m.end())
            if m[1] in ("KN_PRINTF", "__attribute__") or "{" in code[m.end():end]:
                continue
            found.setdefault(m[1], (f.path, code.count("\n", 0, m.start()) + 1))
    return found


def dead_prototypes(files):
    declared = prototypes(files)
    uses, defined = {n: -1 for n in declared}, set()  # less the declaration itself
    word = re.compile(r"\b[A-Za-z_]\w*\b")
    for f in files:
        for m in word.finditer(f.code):
            if m[0] in uses:
                uses[m[0]] += 1
        if f.suffix in SOURCES or f.suffix == ".cuh":
            for m in re.finditer(r"^[A-Za-z_][\w \t*\"]*?[ *](\w+)(?:<\w+>)?\([^;{}]*\)\s*\{", f.code, re.M):
                if m[1] in declared:
                    if m[1] not in defined:
                        uses[m[1]] -= 1
                    defined.add(m[1])
    pasted = "".join(f.code for f in files)
    for name, (path, line) in sorted(declared.items(), key=lambda d: d[1]):
        if name not in defined and not made_by_macro(name, pasted):
            yield f"{path}:{line}: {name}: declared and not defined"
        elif uses[name] <= 0 and name not in CALLED_ELSEWHERE and not made_by_macro(name, pasted):
            yield f"{path}:{line}: {name}: nobody calls it"


def made_by_macro(name, code):
    """A name that the tables of kernels/backend.h and proto/messages.h paste together."""
    return re.search(rf"\bX\({re.escape(name.split('_', 1)[-1])}[,)]", code) is not None


def headers_alone(files):
    sources = {f.path.rsplit(".", 1)[0] for f in files if f.suffix in SOURCES}
    for f in files:
        if f.suffix in HEADERS and is_own(f.path) and f.path.rsplit(".", 1)[0] not in sources \
                and f.path not in HEADERS_ALONE:
            yield f"{f.path}:1: no source of its name stands beside it, and HEADERS_ALONE does not say why"


def same_names(files):
    first = {}
    for f in files:
        if not is_own(f.path):
            continue
        for m in STRUCT.finditer(f.code):
            if m[1] in SAME_NAMES:
                continue
            if first.setdefault(m[1], f.path) != f.path:
                yield f"{f.path}:{f.line(m.start())}: {m[1]}: {first[m[1]]} has another of this name"


def unused_bounds(files):
    """A macro of a header may be used anywhere, one of a source in that source alone."""
    word = re.compile(r"\b\w+_(?:MAX|MIN)\b")
    everywhere = {}
    for f in files:
        for m in word.finditer(f.code):
            everywhere[m[0]] = everywhere.get(m[0], 0) + 1
    for f in files:
        if not is_own(f.path):
            continue
        for m in re.finditer(r"^#\s*define\s+(\w+_(?:MAX|MIN))\b", f.code, re.M):
            uses = everywhere[m[1]] if f.suffix in HEADERS else len(re.findall(rf"\b{m[1]}\b", f.code))
            if uses < 2:
                yield f"{f.path}:{f.line(m.start())}: {m[1]}: bounds nothing"


def raw_states(files):
    for f in files:
        for m in RAW_STATE.finditer(f.code):
            if "uint" in f.code[f.code.rfind("\n", 0, m.start()):m.start()]:
                continue  # a generator of random numbers has a state as well
            yield f"{f.path}:{f.line(m.start())}: {m[0]}: a state has a name"


def functions(code):
    """Functions as (name, line, lines). The formatter puts the closing brace, and nothing else, at the left margin."""
    lines, head = code.split("\n"), None
    for i, text in enumerate(lines):
        if re.match(r"[A-Za-z_]", text) and not text.startswith("typedef") and not text.endswith(";"):
            names = [n for n in re.findall(r"(\w+)\(", "\n".join(lines[i:i + 3])) if not n.startswith("__")]
            head = (names[0], i) if names and "(" in text else head
        elif text == "}" and head:
            yield head[0], head[1] + 1, i - head[1] + 1
            head = None
        elif text.startswith("}"):
            head = None


def long_functions(files, listed):
    seen = set()
    for f in files:
        for name, line, count in functions(f.code):
            if count > LINES_MAX:
                key = f"{f.path} {name}"
                seen.add(key)
                if key not in listed:
                    yield f"{f.path}:{line}: {name}: {count} lines, and long_functions.txt does not say why"
    for key in sorted(set(listed) - seen):
        yield f"long_functions.txt: {key}: is not that long any more: take it out"


def bare_words(files):
    for f in files:
        if f.suffix not in HEADERS:
            continue
        for line, comment in f.comments:
            for m in BARE.finditer(comment):
                yield f"{f.path}:{line + comment.count(chr(10), 0, m.start(1))}: \"{m[1]}…\": say what the thing is"


def forbidden_words(files, glossary):
    """A line of the glossary's last table: | `word` | where: folders or everywhere | instead |"""
    rows = re.findall(r"^\| `(\w+)` \| (\S[^|]*?) \| ([^|]+?) \|$", glossary.split("## Words that are not used")[-1], re.M)
    for word, where, instead in rows:
        folders = None if where == "everywhere" else tuple(w.strip("`") for w in where.split(", "))
        look = re.compile(rf"\b\w*?(?<![a-z]){word}s?(?![a-z])\w*", re.I)
        for f in files:
            if f.suffix not in HEADERS or not is_own(f.path) or (folders and not f.path.startswith(folders)):
                continue
            for m in look.finditer(f.code):
                yield f"{f.path}:{f.line(m.start())}: {m[0]}: the word is {instead}"


REMOVING = re.compile(r"(?<![>.])\b(?:unlink|unlinkat|remove|rename|renameat|renameat2|rmdir)\([^;]*?\)(?=[\s;]|\s*[=!&|)])")
REMOVALS = {  # file: calls by which no object can be lost, however late they come
    "coordinator/objects.c": (
        r"unlinkat\(o->(?:incoming|trash)_fd, ",               # never an object
        r"renameat\(o->incoming_fd, name, o->dir_fd, to\)",    # it comes, with the digest's bytes
        r"renameat\(o->dir_fd, from, o->trash_fd, to\)",       # it goes where whoever misses it looks
        r"renameat2?\(o->trash_fd, path, o->dir_fd, to[,)]"),  # it is back, with the digest's bytes
    "coordinator/server.c": (r"unlink\(s->opt\.ready_file\)",),
    "coordinator/store/redis_tls.c": (r"(?:unlink|rmdir)\(d->(?:path|folder)\)",),  # its own socket
}


def removals(files):
    for f in files:
        if not f.path.startswith("coordinator/"):
            continue
        for m in REMOVING.finditer(f.code):
            if not any(re.match(good, m[0]) for good in REMOVALS.get(f.path, ())):
                yield f"{f.path}:{f.line(m.start())}: {m[0].split('(')[0]}: an object is only moved to the trash, by objects_trash()"


def breaches(root):
    files, names = read(root)
    reasons = (root / "tests/lint/long_functions.txt").read_text() if (root / "tests/lint/long_functions.txt").is_file() else ""
    listed = dict(re.findall(r"^(\S+ \w+): (.+)$", reasons, re.M))
    glossary = (root / "docs/GLOSSARY.md").read_text() if (root / "docs/GLOSSARY.md").is_file() else ""
    found = []
    for rule in (named_files(files, names), dead_prototypes(files), headers_alone(files), same_names(files),
                 unused_bounds(files), raw_states(files), long_functions(files, listed), bare_words(files), removals(files),
                 forbidden_words(files, glossary)):
        found += rule
    return found, len(files)


# ---- the lint itself

GOOD = {
    "base/a.h": "/* The a, see base/a.c. */\nint a_make(int x);\n",
    "base/a.c": '#include "base/a.h"\nint a_make(int x) {\n    return x;\n}\n',
    "base/b.h": "/* b. */\nstruct b {\n    int x;\n};\nint b_first(void);\n",
    "base/b.c": '#include "base/b.h"\nint b_first(void) {\n    return a_make(1);\n}\n',
    "cli/main.c": "int main(void) {\n    return b_first();\n}\n",
    "tests/unit/a.c": "struct b {\n    int y;\n};\n",
    "docs/GLOSSARY.md": "## Words that are not used\n\n| `job` | everywhere | batch |\n| `moves` | `kernels` | generation |\n",
}


def self_test():
    long = "int a_make(int x) {\n" + "    x++;\n" * 100 + "}\n"
    cases = [  # file, its text, the one breach that must be named; None: none
        (None, "", None),
        ("base/a.c", GOOD["base/a.c"] + "/* As in base/zz.c. */\n", "base/a.c:5: base/zz.c: there is no such file"),
        ("base/a.h", GOOD["base/a.h"] + "int a_other(void);\n", "base/a.h:3: a_other: declared and not defined"),
        ("base/b.c", GOOD["base/b.c"].replace("a_make(1)", "1"), "base/a.h:2: a_make: nobody calls it"),
        ("base/c.h", "", "base/c.h:1: no source of its name"),
        ("base/a.c", GOOD["base/a.c"] + "struct b {\n    int y;\n};\n", "base/b.h:2: b: base/a.c has another"),
        ("base/a.h", GOOD["base/a.h"] + "#define A_BYTES_MAX 7\n", "base/a.h:3: A_BYTES_MAX: bounds nothing"),
        ("base/b.c", GOOD["base/b.c"].replace("a_make(1)", "a_make(B_MAX)").replace("int b", "#define B_MAX 7\nint b"), None),
        ("tests/unit/a.c", "int f(int state) {\n    return state == 3;\n}\n", "tests/unit/a.c:2: state == 3: a state has a name"),
        ("base/a.c", long, "base/a.c:1: a_make: 102 lines, and long_functions.txt"),
        ("tests/lint/long_functions.txt", "base/a.c a_make: no reason\n", "long_functions.txt: base/a.c a_make: is not that long"),
        ("base/a.h", "/* Whether it is. */\nint a_make(int x);\n", 'base/a.h:1: "Whether it is'),
        ("base/a.h", "/* The a. What is in\n * it. */\nint a_make(int x);\n", 'base/a.h:1: "What is in'),
        ("base/b.h", GOOD["base/b.h"].replace("int x", "int job_count"), "base/b.h:3: job_count: the word is batch"),
        ("base/b.h", GOOD["base/b.h"].replace("int x", "int moves"), None),
        ("coordinator/lost.c", "void f(int d) {\n    unlinkat(d, name, 0);\n}\n", "coordinator/lost.c:2: unlinkat: an object is only"),
        ("coordinator/objects.c", "void f(int d) {\n    unlinkat(o->dir_fd, name, 0);\n}\n", "coordinator/objects.c:2: unlinkat: an"),
        ("coordinator/objects.c", "void f(int d) {\n    if (renameat(o->dir_fd, from, o->trash_fd, to) == 0) d++;\n}\n", None),
    ]
    wrong = 0
    for file, text, breach in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, content in {**GOOD, **({file: text} if file else {})}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(content)
            found, _ = breaches(root)
            if not (len(found) == 1 and found[0].startswith(breach) if breach else not found):
                wrong += 1
                print(f"{file}: wanted {breach}, found {found}")
    print(f"{len(cases) - wrong} passed, {wrong} failed")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        print(__doc__.split("\n\n")[1])
        return 2
    found, count = breaches(pathlib.Path(sys.argv[1]))
    print("\n".join(found) if found else f"{count} files looked at, no breach")
    return 1 if found else 0


sys.exit(main())

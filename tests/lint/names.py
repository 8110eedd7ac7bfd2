#!/usr/bin/env python3
"""Names outside of the sources: in the pages for readers, and of tests.

    names.py ROOT BUILD     prints each breach, exits 1 if there is one; BUILD has the list of tests
    names.py --self-test    a small tree with one breach at a time, of which exactly that one must be found

The rules, with the reason for each:
  - a file, function, message, test or option in `backticks` in PAGES exists: a tour must not lead into a wall. In a name,
    NAME, AREA, OP and DIR stand for whatever fits, and what has a blank in it is a command line or a text and not looked at;
  - a page that a page links to exists, and what stands in the tree cites no page that does not;
  - a ctest AREA.NAME has its source at tests/FOLDER/AREA_NAME.* or tests/FOLDER/NAME.*, so that whoever sees it fail finds
    it (FOLDERS; PARTS has those where one program makes several tests);
  - each word of the glossary is in a header, and each sampler of base/spec.h in the manual.
"""
import pathlib
import re
import sys
import tempfile

PAGES = ["README.md", "docs/ARCHITECTURE.md", "docs/DEVELOPING.md", "docs/GLOSSARY.md", "proto/PROTOCOL.md"]
GLOSSARY = "docs/GLOSSARY.md"
SOURCES = {".c", ".h", ".cu", ".cuh", ".cc", ".py", ".sh", ".proto", ".cmake", ".txt", ".json", ".html", ".service", ".conf"}
TOP = {"base", "proto", "coordinator", "worker", "kernels", "cli", "tests", "docs", "deploy", "models", "examples"}
PLACEHOLDER = re.compile(r"NAME|AREA|OP\b|DIR|FOLDER|ID\b|…|\*")

# What kiln writes or reads elsewhere, and other people's.
ELSEWHERE = re.compile(r"^(build/|kiln-out/|images/|objects/|~|\.\.?/|tcp:|ipc:|/)|^(index\.html|manifest\.jsonl|batch\.json|kiln\.json|"
                       r"model_index\.json|prompts\.\w+|redis\.pid|libcuda\w*\.so\.?\d*|LastTest\.log)$")

FOLDERS = {"base": "unit", "promise": "unit", "proto": "unit", "worker": "unit", "cli": "unit", "store": "unit", "coordinator": "unit",
           "engine": "unit", "ops": "ops", "golden": "golden", "gpu": "gpu", "model": "model", "fuzz": "fuzz", "lint": "lint",
           "deploy": "../deploy", "core": "sim", "sim": "sim", "farm": "farm"}

# Tests that share a program, and where it is.
PARTS = {"worker.whole_staged": "tests/unit/worker_whole.c", "worker.promise_versions": "tests/unit/worker_whole.c",
         "worker.promise_poison": "tests/unit/worker_whole.c", "worker.promise_poison_staged": "tests/unit/worker_whole.c",
         "base.promise_bounds": "tests/unit/base_basics.c", "base.promise_token": "tests/unit/base_token.c", "base.promise_keys": "tests/unit/base_keys.c", "proto.promise_keys": "tests/unit/proto_keys.c", "proto.promise_versions": "tests/unit/proto_codec.c", "proto.promise_bounds": "tests/unit/proto_wire.c", "coordinator.promise_versions": "tests/unit/coordinator_server.c",
         "cli.promise_versions": "tests/unit/cli_client.c",
         "coordinator.promise_bounds": "tests/unit/coordinator_server.c", "store.promise_format": "tests/unit/store_redis.c",
         "farm.promise_upgrade": "tests/farm/upgrade.py",
         "sim.digests": "tests/sim/sim_farm.c", "sim.promise_sick": "tests/sim/sim_farm.c",
         "sim.promise_hostile": "tests/sim/sim_farm.c", "promise.planted": "tests/sim/planted.sh",
         "gpu.shim": "tests/gpu/shim/shim_test.cc", "gpu.shim.memory_bench": "tests/bench/cuda/memory_bench.cc",
         "gpu.shim.conv_versions": "tests/bench/cuda/conv_bench.cc", "gpu.shim.ops": "tests/bench/gpu_ops.c",
         "gpu.shim.attention_versions": "tests/bench/cuda/attention_bench.cc", "gpu.run": "tests/gpu/run_test.sh",
         "deploy.systemd": "deploy/systemd/verify.sh", "deploy.tree": "deploy/verify_tree.sh"}
for part in ("sd1", "sd2", "sdxl", "v8", "wide", "same_bytes", "engine"):
    PARTS[f"golden.{part}"] = "tests/golden/pipelines_test.c"
for part in ("scrub", "trash", "cut_short"):
    PARTS[f"promise.objects_{part}"] = "tests/unit/coordinator_objects.c"
for part in ("judge", "pictures", "other_prompts"):
    PARTS[f"model.{part}"] = "tests/model/model_test.c"
SUFFIX = re.compile(r"(_can_fail|_libraries|_launched)$|\.(compiled|launched)$")


def read(root):
    """The files of the tree: {path: text of those that are sources, else None}."""
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.startswith(("build", ".git")) or not path.is_file():
            continue
        small = path.suffix in SOURCES | {".md"} and "golden/pipelines" not in name and "/corpus/" not in name
        files[name] = path.read_text(encoding="utf-8", errors="replace") if small else None
    return files


def tests_of(build):
    """The names that ctest knows, from the files that it reads."""
    found, folders = [], [build]
    while folders:
        file = folders.pop() / "CTestTestfile.cmake"
        if not file.is_file():
            continue
        text = file.read_text()
        found += re.findall(r'^add_test\(\[=\[(.*?)\]=\]|^add_test\((\S+) ', text, re.M)
        folders += [file.parent / name for name in re.findall(r'^subdirs\("(.*?)"\)', text, re.M)]
    return {a or b for a, b in found}


class Tree:
    def __init__(self, root, tests):
        self.files, self.tests = read(root), tests
        self.tails = {"/".join(p[i:]) for p in (f.split("/") for f in self.files) for i in range(len(p))}
        self.folders = {f.rsplit("/", i)[0] for f in self.files for i in range(1, f.count("/") + 1)}
        self.words, self.in_headers = set(), set()
        for path, text in self.files.items():
            if text is not None and not path.endswith((".md", "lint/names.py")):
                words = set(re.findall(r"[A-Za-z_]\w*", text))
                self.words |= words
                if path.endswith((".h", ".cuh")):
                    self.in_headers |= words

    def has_file(self, name):
        return name.rstrip("/") in self.folders or name in self.tails or any(f.endswith("/" + name.rstrip("/")) for f in self.folders)


def wrong_name(tree, name):
    """Why this name in backticks is wrong, or None."""
    if not name or re.search(r"\s", name) or PLACEHOLDER.search(name) or ELSEWHERE.search(name):
        return None
    if re.fullmatch(r"[\w.@-]+(/[\w.@-]*)+", name) and (name.split("/")[0] in TOP or re.search(r"\.\w{1,5}$", name)):
        return None if tree.has_file(name) else "there is no such file"
    if re.fullmatch(r"[\w-]+\.(c|h|cu|cuh|cc|py|sh|proto|md|cmake|html|txt|json)", name):
        return None if tree.has_file(name) else "there is no such file"
    if re.fullmatch(r"[a-z]+(\.[a-z0-9_]+)+", name) and name.split(".")[0] in FOLDERS:
        return None if name in tree.tests else "there is no such test"
    if re.fullmatch(r"--[a-z][a-z-]*", name):
        return None if any(w in tree.words for w in (name[2:], name[2:].split("-")[0])) else "there is no such option"
    if re.fullmatch(r"\w+\(\)", name) or (re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", name) and
                                          (re.search(r"_|[a-z][A-Z]", name))):
        lost = [w for w in re.findall(r"\w+", name) if w not in tree.words]
        return f"{lost[0]} is nowhere in the sources" if lost else None
    if re.fullmatch(r"(struct|enum) \w+", name):
        return None if name.split()[1] in tree.words else "there is no such type"
    return None


def pages(root, tree):
    for page in PAGES:
        if page not in tree.files:
            yield f"{page}: is not there"
            continue
        text = (root / page).read_text(encoding="utf-8")
        # blocks are blanked out, so that lines keep their numbers
        text = re.sub(r"^```.*?^```", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.M | re.S)
        if page == GLOSSARY:
            text = text.split("## Words that are not used")[0]
        for m in re.finditer(r"`([^`\n]+)`", text):
            why = wrong_name(tree, m[1])
            if why:
                yield f"{page}:{text.count(chr(10), 0, m.start()) + 1}: {m[1]}: {why}"
        for m in re.finditer(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not (root / page).parent.joinpath(m[1]).exists():
                yield f"{page}:{text.count(chr(10), 0, m.start()) + 1}: {m[1]}: the link leads nowhere"


def cited_pages(tree):
    """Pages in capitals, as docs/MANUAL.md, wherever they are named with or without their ending."""
    known = {f.rsplit("/", 1)[-1][:-3] for f in tree.files if f.endswith(".md")}
    for path, text in tree.files.items():
        if text is None or path == "tests/lint/names.py":
            continue
        for m in re.finditer(r"\b([A-Z]{4,}(?:-[A-Z]+)*)\.md\b|\b(DESIGN|STYLE)\b(?= (?:§|section|says)|[ :,.;]*$|:)", text, re.M):
            name = m[1] or m[2]
            if name not in known:
                yield f"{path}:{text.count(chr(10), 0, m.start()) + 1}: {name}: no page of this tree"


def homes(tree):
    for test in sorted(tree.tests):
        area, name = test.split(".", 1) if "." in test else (test, "")
        bare = SUFFIX.sub("", test)
        if test in PARTS or bare in PARTS:
            if PARTS.get(test, PARTS.get(bare)) not in tree.files:
                yield f"{test}: {PARTS.get(test, PARTS.get(bare))} is not there"
            continue
        if area not in FOLDERS:
            yield f"{test}: FOLDERS does not know where the tests of {area} are"
            continue
        name = SUFFIX.sub("", name.removeprefix("shim."))
        folder = pathlib.PurePosixPath("tests", FOLDERS[area]).as_posix().replace("tests/../", "")
        if not any(f"{folder}/{stem}.{end}" in tree.files for stem in (f"{area}_{name}", name, f"{name}_test")
                   for end in ("c", "cc", "py", "sh")):
            yield f"{test}: neither {folder}/{area}_{name}.c nor {folder}/{name}.… is there: a test is found by its name"


def glossary(root, tree):
    text = (root / GLOSSARY).read_text(encoding="utf-8") if (root / GLOSSARY).is_file() else ""
    parts = set()
    for word in tree.in_headers:
        parts.update(re.split(r"_", word.lower()))
        parts.add(word.lower())
    for m in re.finditer(r"^\| `(\w+)` \|", text.split("## Words that are not used")[0], re.M):
        word = m[1]
        if word not in parts and word + "s" not in parts and not any(word in w for w in parts if "_" in word):
            yield f"{GLOSSARY}:{text.count(chr(10), 0, m.start()) + 1}: {word}: is in no header"


def breaches(root, tests):
    tree = Tree(root, tests)
    return [*pages(root, tree), *cited_pages(tree), *homes(tree), *glossary(root, tree), *samplers(tree)]


def samplers(tree):
    manual = tree.files.get("docs/MANUAL.md") or ""
    for name in re.findall(r'\bX\(\w+, \d+, "([^"]+)"', tree.files.get("base/spec.h") or ""):
        if f"`{name}`" not in manual:
            yield f"docs/MANUAL.md: {name}: the sampler of base/spec.h is not there"


# ---- the lint itself

GOOD = {
    "README.md": "[how](docs/ARCHITECTURE.md), `base/`, `kiln up`, `~/.kiln`\n",
    "docs/ARCHITECTURE.md": "`base/a.c` has `a_make()`, `a.h` and `base.a`; `op_NAME.c`\n",
    "docs/DEVELOPING.md": "```\n`gone.c`\n```\n",
    "docs/GLOSSARY.md": "| `make` | to make |\n",
    "proto/PROTOCOL.md": "`Welcome.data_ipc`, `--out`\n",
    "proto/k.proto": "message Welcome { string data_ipc = 1; }\n",
    "base/a.c": "/* --out, as docs/ARCHITECTURE.md says */\n",
    "base/a.h": "int a_make(int x);\n",
    "base/spec.h": 'X(A, 1, "Euler a", "euler_a")\n',
    "docs/MANUAL.md": "`Euler a`\n",
    "tests/unit/base_a.c": "",
}


def self_test():
    cases = [  # file, its text, tests, the one breach
        ("base/a.c", GOOD["base/a.c"], {"base.a"}, None),
        ("README.md", "[how](docs/gone.md)\n", {"base.a"}, "README.md:1: docs/gone.md: the link"),
        ("README.md", "\n`base/b.c`\n", {"base.a"}, "README.md:2: base/b.c: there is no such file"),
        ("README.md", "`b_make()`\n", {"base.a"}, "README.md:1: b_make(): b_make is nowhere"),
        ("README.md", "`base.b`\n", {"base.a"}, "README.md:1: base.b: there is no such test"),
        ("README.md", "`--gone`\n", {"base.a"}, "README.md:1: --gone: there is no such option"),
        ("proto/PROTOCOL.md", "`Welcome.data_tcp`\n", {"base.a"}, "proto/PROTOCOL.md:1: Welcome.data_tcp: data_tcp is"),
        ("base/a.c", "/* as in DESIGN: out */\n", {"base.a"}, "base/a.c:1: DESIGN: no page"),
        ("docs/MANUAL.md", "`Euler`\n", {"base.a"}, "docs/MANUAL.md: Euler a: the sampler"),
        ("base/a.c", "/* --out, see NOTES.md */\n", {"base.a"}, "base/a.c:1: NOTES: no page"),
        ("docs/GLOSSARY.md", "| `lantern` | a light |\n", {"base.a"}, "docs/GLOSSARY.md:1: lantern: is in no header"),
        ("base/a.c", GOOD["base/a.c"], {"base.a", "base.b"}, "base.b: neither tests/unit/base_b.c"),
        ("base/a.c", GOOD["base/a.c"], {"base.a", "odd.b"}, "odd.b: FOLDERS does not know"),
    ]
    wrong = 0
    for file, text, tests, breach in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, content in {**GOOD, file: text}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(content)
            found = breaches(root, tests)
            if not (len(found) == 1 and found[0].startswith(breach) if breach else not found):
                wrong += 1
                print(f"{file}: wanted {breach}, found {found}")
    print(f"{len(cases) - wrong} passed, {wrong} failed")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 3:
        print(__doc__.split("\n\n")[1])
        return 2
    tests = tests_of(pathlib.Path(sys.argv[2]))
    found = breaches(pathlib.Path(sys.argv[1]), tests)
    print("\n".join(found) if found else f"{len(PAGES)} pages and {len(tests)} tests looked at, no breach")
    return 1 if found else 0


sys.exit(main())

#!/usr/bin/env python3
"""Two builds of kiln beside one another, turn about: is the newer one slower?

    beside.py OLD NEW [--rounds 3] [--images 40] [--path 10000] [--only WORD]

OLD and NEW are build folders (their bin/ is used). Three measurements, each the median of the rounds:

  engine  kiln-render with models/tiny, seconds without loading
  render  the whole command `kiln render` with models/tiny and a private farm, from its start to its end
  path    images a second with the simulated engine at 0 ms, with one and with two workers, on a farm that is up

Run it on a quiet machine. Python's standard library only.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "tiny"


def run(build, home, *words):
    env = {k: v for k, v in os.environ.items() if not k.startswith("KILN_")}
    env.update(KILN_HOME=str(home / "kiln"), HOME=str(home))
    return subprocess.run([str(build / "bin" / words[0]), *map(str, words[1:])], env=env, cwd=home, check=True,
                          capture_output=True, text=True).stdout


def engine(build, home, images):
    out = home / "engine"
    figures = run(build, home, "kiln-render", "--model", MODEL, "-p", "a red circle", "--images", images, "--seed", 7, "-o", out, "--json")
    return json.loads(figures.strip().splitlines()[-1])["seconds"]


def render(build, home, images):
    begun = time.monotonic()
    run(build, home, "kiln", "render", "-p", "a red circle", "--images", images, "--seed", 7, "--model", MODEL, "-o", "render")
    return time.monotonic() - begun


def path(build, home, workers, images):
    run(build, home, "kiln", "up", "--engine", "sim:ms=0", "--workers", workers)
    try:
        begun = time.monotonic()
        batch = run(build, home, "kiln", "submit", "-p", "x", "--images", images).strip()
        run(build, home, "kiln", "wait", batch)
        return images / (time.monotonic() - begun)
    finally:
        run(build, home, "kiln", "down")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("old", type=pathlib.Path)
    p.add_argument("new", type=pathlib.Path)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--images", type=int, default=40)
    p.add_argument("--path", type=int, default=10000)
    p.add_argument("--only", default="", help="only measurements whose name holds this")
    o = p.parse_args()
    builds = {"old": o.old.resolve(), "new": o.new.resolve()}
    rows = {
        "engine, s": lambda b, h: engine(b, h, o.images),
        "render, s": lambda b, h: render(b, h, o.images),
        "path, 1 worker, images/s": lambda b, h: path(b, h, 1, o.path),
        "path, 2 workers, images/s": lambda b, h: path(b, h, 2, o.path),
    }
    for name, measure in rows.items():
        if o.only not in name:
            continue
        got = {"old": [], "new": []}
        for _ in range(o.rounds):
            for which, build in builds.items():
                with tempfile.TemporaryDirectory(prefix="kiln-beside-") as home:
                    got[which].append(measure(build, pathlib.Path(home)))
        old, new = (statistics.median(got[w]) for w in ("old", "new"))
        print(f"{name:28} old {old:10.2f}   new {new:10.2f}   new/old {new / old:.3f}   "
              f"({', '.join(f'{v:.2f}' for v in got['old'])} | {', '.join(f'{v:.2f}' for v in got['new'])})", flush=True)


if __name__ == "__main__":
    main()

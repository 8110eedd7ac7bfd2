#!/usr/bin/env python3
"""What the farm costs beside the engine alone.

    farm_cost.py [--build build] [--model models/tiny] [--images 200] [--rounds 3] [--threads N] [--skip WHAT …]

Three measurements, each on a private farm of its own that is up and warm:

  cost    the same images through `kiln render` and in one kiln-render process, on the same threads, turn about. Of kiln-render its
          own figure, without loading the model; of `kiln render` the whole command, from its start to its end.
  path    images a second with the simulated engine at 0 ms: what the path itself can carry, the command's start and end included.
  memory  resident memory of each process when 200 and when 2,000 images of a batch have been rendered.

It says whether the bounds hold (cost at most 10 %, memory within 5 %; the coordinator may have 200 bytes a task beside) and exits with 1 if
one does not. Run it on a quiet machine. Python's standard library only.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
COST_MAX, MEMORY_MAX, TASK_BYTES = 0.10, 0.05, 200


def farm_class(build):
    os.environ["KILN_BIN"] = str(pathlib.Path(build).resolve() / "bin")
    sys.path.insert(0, str(ROOT / "tests/farm"))
    import farm
    return farm


def rss_kib(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))


def verdict(ok, text):
    print(f"{'  ok ' if ok else '  NOT OK '} {text}", flush=True)
    return ok


def seconds_of(command, **more):
    begun = time.monotonic()
    p = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, **more)
    if p.returncode:
        sys.exit(f"{' '.join(map(str, command))}: status {p.returncode}\n{p.stderr}")
    return time.monotonic() - begun, p.stdout


def render_command(f, prompts, out, *more):
    return [str(f.BIN / "kiln"), "render", str(prompts), "-o", str(out), "--seed", "7", *more]


def model_options(a):
    return [x for name in ("steps", "size") if getattr(a, name) for x in (f"--{name}", str(getattr(a, name)))]


def measure_cost(a, f):
    name = pathlib.Path(a.model).resolve().name
    print(f"cost: {a.images} images of {name}, {a.threads} threads, {a.rounds} rounds")
    ok = True
    for workers in sorted({1, a.threads}):
        farm = f.Farm()
        try:
            farm.up("cpu", workers, "--threads", a.threads // workers, "--model", str(pathlib.Path(a.model).resolve()))
            warm, prompts = farm.prompts(4 * workers, "warm.txt"), farm.prompts(a.images)
            seconds_of(render_command(f, warm, farm.tmp / "warm", "--model", name, *model_options(a)), env=farm.env, cwd=farm.tmp)
            alone, through = [], []
            for i in range(a.rounds):
                s, out = seconds_of([str(f.BIN / "kiln-render"), "--model", a.model, "--prompts", str(prompts), "--seed", "7",
                                     "--threads", str(a.threads), "-q", "--json", "-o", str(farm.tmp / f"alone{i}"), *model_options(a)])
                alone.append(json.loads(out.splitlines()[-1])["seconds"])
                s, out = seconds_of(render_command(f, prompts, farm.tmp / f"farm{i}", "--model", name, *model_options(a)),
                                    env=farm.env, cwd=farm.tmp)
                through.append(s)
            m, n = statistics.median(alone), statistics.median(through)
            same = all((farm.tmp / "alone0" / f"{k:06}.png").read_bytes() == (farm.tmp / "farm0/images" / f"{k:06}.png").read_bytes()
                       for k in range(a.images))
            print(f"  alone  {m:7.3f} s  {a.images / m:7.1f} images/s   ({', '.join(f'{x:.2f}' for x in alone)})")
            print(f"  farm   {n:7.3f} s  {a.images / n:7.1f} images/s   ({', '.join(f'{x:.2f}' for x in through)})   "
                  f"{workers} worker{'s' if workers > 1 else ''} with {a.threads // workers} thread{'s' if a.threads > workers else ''}")
            ok &= verdict(n <= m * (1 + COST_MAX), f"the farm takes {100 * (n / m - 1):+.1f} % of the time beside ({100 * COST_MAX:.0f} % allowed)")
            ok &= verdict(same, "the files are the same bytes")
        finally:
            farm.close()
    return ok


def measure_path(a, f):
    count = 20000
    print(f"path: {count} images of the simulated engine at 0 ms")
    for workers in (1, 2):
        farm = f.Farm()
        try:
            farm.up("sim:ms=0", workers)
            prompts = farm.prompts(count)
            s, out = seconds_of(render_command(f, prompts, farm.tmp / "out"), env=farm.env, cwd=farm.tmp)
            report = farm.json("status")
            print(f"  {workers} worker{'s' if workers > 1 else ' '}  {s:6.2f} s  {count / s:8.0f} images/s, the whole command;"
                  f"  {report[0].get('images_per_s_mean', 0):8.0f} images/s by the farm's own clock")
        finally:
            farm.close()
    return True


def measure_memory(a, f):
    count, first = 2000, 200
    simulated = a.memory_engine.startswith("sim")
    print(f"memory: {count} images, {a.memory_engine if simulated else pathlib.Path(a.model).resolve().name}")
    farm, ok = f.Farm(), True
    try:
        if simulated:
            farm.up(a.memory_engine, 1)
        else:
            farm.up("cpu", 1, "--threads", a.threads, "--model", str(pathlib.Path(a.model).resolve()))
        p = farm.start("render", farm.prompts(count), "-o", farm.tmp / "out", "--seed", "7")
        names = ["coordinator", "worker-0", "redis", "supervisor"]
        before = None
        while p.poll() is None:
            batches = farm.json("status")
            done = batches[0]["done"] if batches else 0
            if before is None and done >= first:
                before, at = {n: rss_kib(farm.pid(n)) for n in names} | {"kiln render": rss_kib(p.pid)}, done
            if done >= count * 0.95 and p.poll() is None:
                try:
                    command = rss_kib(p.pid)
                except (OSError, StopIteration):
                    break
            time.sleep(0.05)
        p.communicate()
        after = {n: rss_kib(farm.pid(n)) for n in names} | {"kiln render": command}
        print(f"  {'':12} {f'at {at}':>10} {f'at {count}':>10}")
        for n in before:
            allowed = before[n] * MEMORY_MAX + (count * TASK_BYTES / 1024 if n == "coordinator" else 0)
            ours = n != "redis"
            text = f"{n:12} {before[n]:6} KiB {after[n]:6} KiB  {100 * (after[n] / before[n] - 1):+5.1f} %"
            if ours:
                ok &= verdict(after[n] - before[n] <= allowed, text)
            else:
                print(f"       {text}  (it holds the batch)")
    finally:
        farm.close()
    return ok


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=str(ROOT / "build"))
    p.add_argument("--model", default=str(ROOT / "models/tiny"))
    p.add_argument("--images", type=int, default=200)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--steps", type=int)
    p.add_argument("--size")
    p.add_argument("--memory-engine", default="sim:ms=2", help="cpu, or a simulated one")
    p.add_argument("--skip", nargs="*", default=[], choices=["cost", "path", "memory"])
    a = p.parse_args()
    subprocess.run(["cmake", "--build", a.build, "--target", "programs"], check=True, stdout=subprocess.DEVNULL)
    f = farm_class(a.build)
    measures = {"cost": measure_cost, "path": measure_path, "memory": measure_memory}
    results = [measure(a, f) for name, measure in measures.items() if name not in a.skip]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

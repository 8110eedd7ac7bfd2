#!/usr/bin/env python3
"""How much poison costs: images that kill the engine, hang it or come out as not-a-number, beside a clean run of the same.

    poison.py [--build build] [--images 2000] [--ms 50] [--workers 4,1] [--crash 0.01] [--hang 0.002] [--nan 0.002] [--seed 5]

For each number of workers, on a farm of its own with the simulated engine: the same images without poison, then with it.
Three times are told: of the clean run; until the last innocent image was done; until the last guilty one had failed. Which
images are guilty is known beforehand, since a simulated task's fate follows from the task: exactly they must have failed,
else the status is 1. With one worker a fifth of the images is taken. Python's standard library only.
"""
import argparse
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEEDS = "--seed=11"


def run(farm, engine, workers, images, innocents, seconds):
    """Seconds until so many were done, and until all had ended; the numbers of those that failed."""
    f = farm.Farm()
    try:
        f.up(engine, workers)
        prompts = f.prompts(images)
        begun = time.monotonic()
        batch = f.ok("submit", prompts, SEEDS).strip()
        innocent = None
        while True:
            status, now = f.json("status", batch), time.monotonic() - begun
            if innocent is None and status["done"] >= innocents:
                innocent = now
            if status["state"] == "done":
                break
            if now > seconds:
                raise AssertionError(f"not within {seconds} s: {status}\n{f.logs()}")
            time.sleep(0.05)
        f.ok("fetch", batch, "-o", f.tmp / "out", status=0 if status["failed"] == 0 else 2, timeout=120)
        return innocent, now, {l["index"] for l in farm.manifest(f.tmp / "out") if l["status"] == "failed"}
    finally:
        f.close()


def main():
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("--build", default=ROOT / "build")
    o.add_argument("--images", type=int, default=2000)
    o.add_argument("--ms", type=float, default=50)
    o.add_argument("--workers", default="4,1")
    o.add_argument("--crash", type=float, default=0.01)
    o.add_argument("--hang", type=float, default=0.002)
    o.add_argument("--nan", type=float, default=0.002)
    o.add_argument("--seed", type=int, default=5)
    o.add_argument("--seconds", type=int, default=600, help="a run that has not ended by then is a failure")
    a = o.parse_args()
    os.environ["KILN_BIN"] = str(pathlib.Path(a.build).resolve() / "bin")
    sys.path.insert(0, str(ROOT / "tests/farm"))
    import farm
    wrong = False
    for workers in (int(n) for n in a.workers.split(",")):
        images = a.images if workers > 1 else a.images // 5
        # A task's fate is drawn from its key: those that are poisoned in any way are those that give NaN with the sum.
        share = a.crash + a.hang + a.nan
        guilty = run(farm, f"sim:ms=0,nan={share},seed={a.seed}", 2, images, 0, a.seconds)[2]
        _, clean, _ = run(farm, f"sim:ms={a.ms}", workers, images, images, a.seconds)
        poison = f"sim:ms={a.ms},crash={a.crash},hang={a.hang},nan={a.nan},seed={a.seed}"
        innocent, end, failed = run(farm, poison, workers, images, images - len(guilty), a.seconds)
        wrong = wrong or failed != guilty
        print(f"workers {workers}, images {images}, guilty {len(guilty)}: clean {clean:.1f} s, the innocent {innocent:.1f} s "
              f"({innocent / clean:.2f} times), all {end:.1f} s; {'only the guilty failed' if failed == guilty else 'WRONG'}"
              + ("" if failed == guilty else f": {sorted(failed ^ guilty)}"), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

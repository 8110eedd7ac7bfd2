#!/usr/bin/env python3
"""A long run, not part of ctest: a list of a thousand prompts or more, end to end with the real engine and few steps. A worker joins
in the middle, another is killed with -9, and it ends with kiln verify.

    tests/farm/long_list.py PROMPTS [--model DIR] [--steps N] [--workers N]

PROMPTS is any file that kiln render reads, for one PartiPrompts' PartiPrompts.tsv (github.com/google-research/parti): its 1,632
prompts, the column Prompt, the others in the manifest as `extra`. Needs $KILN_BIN, build/bin by default."""
import argparse
import pathlib
import signal
import sys
import time

from farm import BIN, Farm, manifest, pictures, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(farm, prompts, args):
    out = farm.tmp / "out"
    begun = time.monotonic()
    farm.ok("up", "--model", args.model, "--workers", args.workers)
    batch = farm.ok("submit", prompts, "--model", args.model.name, "--steps", args.steps, "--seed", 1).strip()
    total = farm.json("status", batch)["total"]
    print(f"{total} images asked for, {args.workers} workers", flush=True)

    def done():
        return farm.json("status", batch)["done"]

    wait_for("a tenth is done", lambda: done() >= total // 10, args.timeout)
    late = farm.start(BIN / "kiln-worker", "--join", farm.dir, "--name", "late", "--model", args.model, "--threads", 1)
    print(f"{done()} done: a worker joins", flush=True)
    wait_for("the newcomer renders", lambda: any(w["id"] == "late" and w["done"] for w in farm.json("workers")), args.timeout)
    wait_for("a third is done", lambda: done() >= total // 3, args.timeout)
    farm.kill_and_await("worker-0")
    print(f"{done()} done: worker-0 was killed and started again", flush=True)
    wait_for("the half is done", lambda: done() >= total // 2, args.timeout)
    late.send_signal(signal.SIGKILL)
    print(f"{done()} done: the newcomer was killed", flush=True)
    farm.ok("wait", batch, timeout=args.timeout)
    farm.ok("fetch", batch, "-o", out, timeout=600)
    seconds = time.monotonic() - begun
    print(farm.ok("verify", out, timeout=600).strip())
    lines = manifest(out)
    assert len(lines) == total == len(pictures(out)), "an image each"
    assert all(l["status"] == "done" for l in lines)
    workers = sorted({l["worker"] for l in lines})
    print(f"{total} images in {seconds:.0f} s, by {', '.join(workers)}; {sum(l['attempt'] > 1 for l in lines)} needed another attempt")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("prompts", type=pathlib.Path)
    p.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "tiny")
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--timeout", type=int, default=7200, help="seconds a stage may take")
    args = p.parse_args()
    args.model = args.model.resolve()
    farm = Farm()
    try:
        run(farm, args.prompts.resolve(), args)
    except AssertionError as e:
        print(f"failed: {e}\n{farm.logs()}", file=sys.stderr)
        return 1
    finally:
        farm.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The same bytes: an image depends on what was asked alone. The same 24 tasks with the real engine, rendered each alone, in batches,
in another order, by one worker, by three, and with a worker killed in the middle, give the same SHA-256 for every image.

The model is the one that ships; KILN_TEST_MODEL names another."""
import hashlib
import json
import os
import pathlib
import subprocess
import sys

from farm import BIN, FarmTest, main, manifest, wait_for

MODEL = pathlib.Path(os.environ.get("KILN_TEST_MODEL", pathlib.Path(__file__).parents[2] / "models" / "tiny"))
COUNT = 24
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]
SHAPES = ["circle", "square", "triangle", "star"]


def tasks():
    """Different prompts, negative prompts, seeds and guidance; two samplers, so that two groups share the farm."""
    for i in range(COUNT):
        task = {"prompt": f"a {COLOURS[i % 6]} {SHAPES[i % 4]}" + (" on the left" if i % 3 else ""), "seed": 1000 + 7 * i,
                "cfg": 1.5 + i % 4, "steps": 5, "sampler": "Euler a" if i % 8 == 7 else "DDIM"}
        if i % 5 == 2:
            task["negative"] = "a blue square"
        yield task


class SameBytes(FarmTest):
    def setUp(self):
        super().setUp()
        if not (MODEL / "model_index.json").exists():
            self.skipTest(f"no model in {MODEL}")

    def write(self, name, some):
        path = self.farm.tmp / name
        path.write_text("".join(json.dumps(t) + "\n" for t in some))
        return path

    def digests(self, folder, count=COUNT):
        lines = manifest(folder)
        self.assertEqual([l["status"] for l in lines], ["done"] * count, self.farm.logs())
        for l in lines:
            self.assertEqual(hashlib.sha256((folder / l["file"]).read_bytes()).hexdigest(), l["sha256"])
        return {l["seed"]: (l["sha256"], l["pixels_sha256"]) for l in lines}, lines

    def render(self, name, some, workers, disturb=None):
        out = self.farm.tmp / name
        p = self.farm.start("render", self.write(f"{name}.jsonl", some), "-o", out, "--model", MODEL, "--workers", workers)
        if disturb:
            disturb(out)
        self.finish(p, timeout=240)
        self.farm.ok("verify", out)
        return self.digests(out)

    def test_same_bytes_however_they_are_rendered(self):
        all = list(tasks())
        want, _ = self.render("one-worker", all, 1)
        self.assertEqual(len({sha for sha, _ in want.values()}), COUNT, "pictures of different tasks differ")

        for t in all[:: COUNT // 6 - 1]:  # each of these in a process and a batch of its own
            file = self.farm.tmp / "alone.png"
            words = [BIN / "kiln-render", "--model", MODEL, "--prompt", t["prompt"], "--negative", t.get("negative", ""), "--seed",
                     t["seed"], "--steps", t["steps"], "--sampler", t["sampler"], "--cfg", t["cfg"], "-o", file]
            subprocess.run([str(w) for w in words], check=True, capture_output=True, timeout=120)
            self.assertEqual(hashlib.sha256(file.read_bytes()).hexdigest(), want[t["seed"]][0], f"alone: {t}")

        batches = self.farm.tmp / "batches"  # no farm: as large as the engine makes its batches, on one thread
        words = [BIN / "kiln-render", "--model", MODEL, "--prompts", self.write("batches.jsonl", all), "-o", batches, "--threads", "1"]
        subprocess.run([str(w) for w in words], check=True, capture_output=True, timeout=240)
        got = {hashlib.sha256(f.read_bytes()).hexdigest() for f in batches.rglob("*.png")}
        self.assertEqual(got, {sha for sha, _ in want.values()}, "in batches")

        order = sorted(all, key=lambda t: hashlib.sha256(str(t["seed"]).encode()).digest())
        got, lines = self.render("three-workers", order, 3)
        self.assertEqual(got, want, "in another order, by three workers")
        self.assertGreater(len({l["worker"] for l in lines}), 1, "more than one worker took part")

        def kill_one(out):
            self.await_pictures(out, 2)
            for w in ("worker-0", "worker-1", "worker-2"):
                if self.farm.pid(w):
                    self.farm.kill(w)
                    break
        got, _ = self.render("killed", order[::-1], 3, kill_one)
        self.assertEqual(got, want, "with a worker killed in the middle")


if __name__ == "__main__":
    sys.exit(main())

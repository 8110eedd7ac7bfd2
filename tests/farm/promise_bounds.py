#!/usr/bin/env python3
"""What is large and legal is taken: prompts of the longest kind, in chunks over a frame."""
import base64
import json
import pathlib
import random
import subprocess
import sys

from farm import BIN, FarmTest, main, wait_for

LONGEST = 8192 # bytes of a prompt, and of a negative prompt


class Bounds(FarmTest):
    def longest_prompts(self, count):
        draw = random.Random(7)
        text = lambda: base64.b64encode(draw.randbytes(LONGEST // 4 * 3)).decode()  # it hardly compresses
        path = self.farm.tmp / "long.jsonl"
        path.write_text("".join(json.dumps({"prompt": text(), "negative": text()}) + "\n" for _ in range(count)))
        return path

    def test_two_thousand_prompts_of_16_kb_are_rendered_and_read_back(self):
        self.farm.up("sim:ms=0", 2)
        batch = self.farm.ok("submit", self.longest_prompts(2000), "--model", "sim", "--size", "64x64", "--steps", "1").strip()
        out = self.farm.tmp / "out"
        self.farm.kill_and_await("coordinator")  # what is read back is whole
        self.farm.ok("wait", batch)
        self.farm.ok("fetch", batch, "-o", out)
        lines = self.check_folder(out, 2000)
        self.assertEqual({len(l["prompt"]) for l in lines}, {LONGEST})
        self.farm.ok("verify", out)
        self.assertNotIn("grant_failed", self.farm.logs(10000))
        self.assertNotIn("worker_unreachable", self.farm.logs(10000).split("coordinator.log")[-1].split("ready term=2")[-1])

    def test_a_coordinator_killed_between_the_parts_of_a_chunk_loses_nothing(self):
        self.farm.up("sim:ms=0", 1)
        p = self.farm.start("submit", self.longest_prompts(1500), "--model", "sim", "--size", "64x64", "--steps", "1")
        wait_for("the submission has begun", lambda: "kiln:staged" in self.redis("KEYS", "*"))
        self.farm.kill_and_await("coordinator")
        batch, _ = self.finish(p, timeout=120)
        self.assertEqual(self.farm.json("status", batch.strip())["total"], 1500)
        self.farm.ok("wait", batch.strip(), timeout=120)

    def peak(self, *args):
        """Runs it; how many MiB it took at the most. A small process starts it: what its parent takes is counted too."""
        words = "import resource, subprocess, sys\nif subprocess.call(sys.argv[1:], stdout=2): sys.exit(1)\n" \
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        out, _ = self.finish(self.farm.start(sys.executable, "-c", words, BIN / "kiln", *args), timeout=240)
        return int(out) / 1024

    def test_long_lists_take_disk_and_not_memory(self):
        count = 200000
        path = self.farm.tmp / "many.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{i} {'a red circle ' * 5}"}) + "\n" for i in range(count)))
        self.farm.up("sim:ms=10000", 1)
        submit = self.peak("submit", path, "--model", "sim", "--size", "16x16", "--quiet")
        batch = self.farm.json("status")[0]["id"]
        self.farm.ok("cancel", batch)
        fetch = self.peak("fetch", batch, "-o", self.farm.tmp / "out", "--quiet")
        print(f"{count} prompts: submit took {submit:.0f} MiB, fetch {fetch:.0f} MiB")
        self.check_folder(self.farm.tmp / "out", count, cancelled=count)
        self.assertLess(submit, 30)
        self.assertLess(fetch, 64)

    def redis(self, *words):
        sock = pathlib.Path(self.farm.endpoint.removeprefix("ipc://")).parent / "redis.sock"
        return subprocess.run(["redis-cli", "-s", sock, *words], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())

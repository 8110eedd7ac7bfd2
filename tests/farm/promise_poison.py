#!/usr/bin/env python3
"""Images that kill the engine, hang it or come out as not-a-number cost themselves alone: the worker, its connection and
what it has finished live on."""
import os
import signal
import sys

from farm import FarmTest, children, main, wait_for

SEEDS = "--seed=11"
CRASH, HANG, NAN, SEED = 0.03, 0.004, 0.02, 9


class Poison(FarmTest):
    def render(self, engine, count, workers):
        self.farm.up(engine, workers)
        pids = [self.farm.pid(f"worker-{i}") for i in range(workers)]
        batch = self.farm.ok("submit", self.farm.prompts(count), SEEDS).strip()
        self.farm.ok("wait", batch, status=2, timeout=150)
        out = self.farm.tmp / "out"
        self.farm.ok("fetch", batch, "-o", out, status=2)
        self.assertEqual(pids, [self.farm.pid(f"worker-{i}") for i in range(workers)], "a worker was started again")
        for i in range(workers):
            log = (self.farm.dir / "log" / f"worker-{i}.log").read_text()
            self.assertEqual(log.count(" joined endpoint="), 1, "it joined more than once")
            self.assertNotIn("leaving", log)
        self.assertNotIn("worker_lost", (self.farm.dir / "log" / "coordinator.log").read_text())
        return out

    def check_only_the_guilty_failed(self, out, count, guilty):
        lines = self.check_folder(out, count, failed=len(guilty))
        failed = {l["index"]: l["error"] for l in lines if l["status"] == "failed"}
        self.assertEqual(set(failed), guilty)
        return lines, failed

    def guilty(self, count):
        """A task's fate is drawn from its key: those that are poisoned in any way are those that give NaN with the sum."""
        other = type(self.farm)()
        self.addCleanup(other.close)
        other.ok("render", other.prompts(count), "-o", other.tmp / "out", "--engine", f"sim:ms=0,nan={CRASH + HANG + NAN},seed={SEED}",
                 "--workers", 1, SEEDS, status=2)
        lines = (other.tmp / "out" / "manifest.jsonl").read_text().splitlines()
        return {i for i, l in enumerate(lines) if '"status":"failed"' in l.replace(" ", "")}

    def test_with_one_worker_only_the_guilty_fail_and_nothing_finished_is_lost(self):
        count = 300
        guilty = self.guilty(count)
        out = self.render(f"sim:ms=2,crash={CRASH},hang={HANG},nan={NAN},seed={SEED}", count, 1)
        lines, failed = self.check_only_the_guilty_failed(out, count, guilty)
        reasons = " ".join(failed.values())
        self.assertIn("died while it rendered this image: signal 9", reasons)
        self.assertIn("no progress for", reasons)
        self.assertIn("not a number", reasons)
        # An innocent is granted once, though its engine died before it and behind it: what was finished was not lost, and what
        # was not begun did not go back.
        self.assertEqual({l["attempt"] for l in lines if l["status"] == "done"}, {1})

    def test_with_several_workers_only_the_guilty_fail(self):
        count = 300
        guilty = self.guilty(count)
        out = self.render(f"sim:ms=2,crash={CRASH},hang={HANG},nan={NAN},seed={SEED},staged=4", count, 3)
        self.check_only_the_guilty_failed(out, count, guilty)

    def test_an_engine_that_is_killed_by_hand_costs_no_image(self):
        count = 200
        self.farm.up("sim:ms=10", 1)
        worker = self.farm.pid("worker-0")
        batch = self.farm.ok("submit", self.farm.prompts(count), SEEDS).strip()
        for k in range(3):
            before = wait_for("its engine is there", lambda: children(worker))[0]
            done = self.farm.json("status", batch)["done"]
            # The image that the engine before ended with goes first: once so many are done it is through, and not met again.
            wait_for("it renders", lambda: self.farm.json("status", batch)["done"] > done + 25)
            os.kill(before, signal.SIGKILL)
            wait_for("another one is there", lambda: children(worker) and before not in children(worker))
        self.farm.ok("wait", batch)
        out = self.farm.tmp / "out"
        self.farm.ok("fetch", batch, "-o", out)
        self.check_folder(out, count)
        self.assertEqual(self.farm.pid("worker-0"), worker)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A task that kills its worker, hangs it or gives not-a-number fails with its reason; the rest is done."""
import sys

from farm import FarmTest, main, manifest

SEEDS = "--seed=11"


class Failures(FarmTest):
    def render(self, engine, count, workers=2, name="out"):
        out = self.farm.tmp / name
        p = self.farm.run("render", self.farm.prompts(count), "-o", out, "--engine", engine, "--workers", workers, SEEDS, timeout=200)
        self.assertEqual(p.returncode, 2, p.stderr + self.farm.logs())
        return out, p.stderr

    def failed(self, out, count):
        """Index and reason of what failed; all else is done."""
        bad = sum(l["status"] == "failed" for l in manifest(out))
        self.assertTrue(bad)
        return {l["index"]: l["error"] for l in self.check_folder(out, count, failed=bad) if l["status"] == "failed"}

    def victims(self, share, count):
        """Which tasks have the fate that strikes this share of them: it depends on the task and the seed alone."""
        out, _ = self.render(f"sim:ms=0,nan={share},seed=5", count, name=f"victims{count}")
        return set(self.failed(out, count))

    def test_nan_fails_its_task_alone_and_the_person_reads_why(self):
        out, said = self.render("sim:ms=1,nan=0.05,seed=3", 120)
        failed = self.failed(out, 120)
        self.assertTrue(1 <= len(failed) <= 20)
        for index, error in failed.items():
            self.assertIn("not a number", error)
            self.assertIn(f"{index:06}", said)
        # the same tasks fail wherever they run
        again, _ = self.render("sim:ms=0,nan=0.05,seed=3", 120, workers=1, name="again")
        self.assertEqual(set(self.failed(again, 120)), set(failed))

    def test_a_task_that_kills_its_worker_is_found_and_failed(self):
        out, said = self.render("sim:ms=2,crash=0.02,seed=5", 60)
        failed = self.failed(out, 60)
        self.assertEqual(set(failed), self.victims(0.02, 60))
        for error in failed.values():
            self.assertIn("died while it rendered this image", error)
        self.assertIn("signal 9", said)

    def test_a_task_that_hangs_is_taken_away_and_failed(self):
        out, _ = self.render("sim:ms=10,hang=0.01,seed=5", 40)
        failed = self.failed(out, 40)
        self.assertEqual(set(failed), self.victims(0.01, 40))
        for error in failed.values():
            self.assertIn("no progress", error)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A sick worker's fault is the worker's: no image fails for it, and a person is told which worker is held and why."""
import os
import signal
import sys

from farm import BIN, FarmTest, main, manifest, wait_for

SEED = "--seed=11"


class Sick(FarmTest):
    def fleet(self, engine, well, sickness, sick):
        """A farm that stays, with so many workers that are well, and others beside them that are not."""
        self.farm.up(engine, well)
        self.workers = [self.farm.start(str(BIN / "kiln-worker"), "--join", self.farm.dir, "--name", f"sick-{i}",
                                        "--engine", f"{engine},{sickness}") for i in range(sick)]
        wait_for("all workers are there", lambda: len(self.farm.json("workers")) == well + sick)

    def render(self, count, status=0, timeout=120, **more):
        out = self.farm.tmp / "out"
        p = self.farm.run("render", self.farm.prompts(count), "-o", out, SEED, timeout=timeout, **more)
        self.assertEqual(p.returncode, status, p.stdout + p.stderr + self.farm.logs())
        return out, p.stderr

    def held(self):
        return {w["id"]: w["hold_reason"] for w in self.farm.json("workers") if w["held"]}

    def test_one_that_gives_nan_beside_three_that_are_well(self):
        self.fleet("sim:ms=20", 3, "sick=nan", 1)
        out, _ = self.render(300)
        self.check_folder(out, 300)
        self.assertIn("not a number", self.held()["sick-0"])
        self.assertIn("sick-0 is held: its probe picture failed", self.farm.ok("workers"))

    def test_three_of_five_whose_model_files_vanished(self):
        self.fleet("sim:ms=20", 2, "sick=model", 3)
        out, _ = self.render(60)
        self.check_folder(out, 60)
        for worker, reason in self.held().items():
            self.assertTrue(worker.startswith("sick-"))
            self.assertIn("its files are gone", reason)

    def test_three_of_six_that_fail_at_once(self):
        self.fleet("sim:ms=5", 3, "sick=error", 3)
        out, _ = self.render(600)
        self.check_folder(out, 600)
        self.assertEqual(set(self.held()), {"sick-0", "sick-1", "sick-2"})

    def test_guilty_images_fail_all_the_same(self):
        self.fleet("sim:ms=5,nan=0.02,seed=3", 3, "sick=error", 3)
        out, _ = self.render(200, status=2)
        failed = [line["index"] for line in manifest(out) if line["status"] == "failed"]
        for line in self.check_folder(out, 200, failed=len(failed)):
            if line["status"] == "failed":
                self.assertIn("not a number", line["error"])
        self.farm.ok("down")
        # the same images fail on a worker that is alone and well
        again = self.farm.tmp / "again"
        self.farm.run("render", self.farm.prompts(200), "-o", again, "--engine", "sim:ms=0,nan=0.02,seed=3", "--workers", 1, SEED)
        self.assertEqual([line["index"] for line in manifest(again) if line["status"] == "failed"], failed)
        self.assertTrue(failed)

    def test_all_sick_render_ends_with_the_reason_and_its_farm_is_taken_down(self):
        for sickness in ("nan", "model", "error", "crash"):
            with self.subTest(sickness):
                out = self.farm.tmp / f"all-{sickness}"
                p = self.farm.run("render", self.farm.prompts(40), "-o", out, "--engine", f"sim:ms=5,sick={sickness}", "--workers", 2,
                                  timeout=120)
                self.assertEqual(p.returncode, 2, p.stderr + self.farm.logs())
                self.assertIn("held", p.stderr)
                self.assertIn("40 of 40 images are still to be rendered", p.stderr)
                for run in self.farm.runs():
                    self.assertFalse(self.farm.pid("coordinator", run) and os.path.exists(f"/proc/{self.farm.pid('coordinator', run)}"))

    def test_wait_does_not_wait_for_a_batch_that_is_held_and_it_goes_on_with_a_worker_that_is_well(self):
        self.farm.up("sim:ms=5,sick=nan", 1)
        batch = self.farm.ok("submit", self.farm.prompts(20)).strip()
        p = self.farm.run("wait", batch)
        self.assertEqual(p.returncode, 2, p.stderr)
        self.assertIn("cannot be trusted", p.stderr)
        status = self.farm.json("status", batch)
        self.assertEqual((status["state"], status["failed"], status["held"], status["reason"]), ("active", 0, True, "held"))
        well = self.farm.start(str(BIN / "kiln-worker"), "--join", self.farm.dir, "--name", "well", "--engine", "sim:ms=5")
        wait_for("the rest is rendered", lambda: self.farm.json("status", batch)["done"] == 20)
        self.farm.ok("wait", batch)
        well.send_signal(signal.SIGTERM)

    def test_a_frozen_worker_does_not_hold_the_batch(self):
        self.fleet("sim:ms=20", 3, "seed=1", 1)
        self.workers[0].send_signal(signal.SIGSTOP)
        try:
            out, said = self.render(120)
        finally:
            self.workers[0].send_signal(signal.SIGCONT)
        self.check_folder(out, 120)
        print("frozen:", said.strip().splitlines()[-2], file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

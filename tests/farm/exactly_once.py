#!/usr/bin/env python3
"""Whatever is killed in the middle of a batch, every image ends once: worker, coordinator, Redis, all of them."""
import os
import signal
import sys

from farm import FarmTest, main, wait_for

COUNT = 120


class ExactlyOnce(FarmTest):
    def render_through(self, disturb):
        out = self.farm.tmp / "out"
        p = self.farm.start("render", self.farm.prompts(COUNT), "-o", out, "--engine", "sim:ms=25", "--workers", "2",
                            "--seed", "7")
        self.await_pictures(out, 10)
        disturb(out)
        self.finish(p)
        lines = self.check_folder(out, COUNT)
        self.farm.ok("verify", out)
        return lines

    def test_a_worker_killed_in_the_middle_loses_nothing(self):
        self.render_through(lambda out: self.farm.kill("worker-0"))

    def test_the_coordinator_killed_in_the_middle_goes_on_where_it_was(self):
        self.render_through(lambda out: self.farm.kill_and_await("coordinator"))

    def test_redis_killed_in_the_middle_loses_nothing(self):
        self.render_through(lambda out: self.farm.kill_and_await("redis"))

    def test_everything_killed_in_turn(self):
        def disturb(out):
            for k, process in enumerate(["worker-1", "redis", "coordinator", "worker-0"]):
                self.farm.kill(process)
                self.await_pictures(out, 10 + 15 * (k + 1))
        self.render_through(disturb)

    def test_two_workers_and_the_coordinator_at_once(self):
        def disturb(out):
            for process in ["worker-0", "worker-1", "coordinator"]:
                self.farm.kill(process)
        self.render_through(disturb)

    def test_all_of_a_farm_killed_at_once_and_the_next_run_goes_on(self):
        out = self.farm.tmp / "out"
        args = ("render", self.farm.prompts(COUNT), "-o", out, "--engine", "sim:ms=25", "--workers", "2")
        p = self.farm.start(*args)
        self.await_pictures(out, 10)
        self.farm.kill_all(self.farm.run_of(out))
        self.finish(p, status=3)
        self.farm.ok(*args)
        self.check_folder(out, COUNT)

    def test_a_farm_that_stays_keeps_its_batches_over_a_restart(self):
        self.farm.up("sim:ms=25")
        id = self.farm.ok("submit", self.farm.prompts(COUNT)).strip()
        wait_for("some are done", lambda: self.farm.json("status", id)["done"] > 10)
        self.farm.ok("down")
        self.farm.up("sim:ms=5")
        self.farm.ok("wait", id)
        out = self.farm.tmp / "out"
        self.farm.ok("fetch", id, "-o", out)
        self.check_folder(out, COUNT)

    def test_a_stopped_worker_is_given_up_and_its_late_images_do_no_harm(self):
        def disturb(out):
            pid = self.farm.kill("worker-0", signal.SIGSTOP)
            self.await_pictures(out, COUNT - 5)
            os.kill(pid, signal.SIGCONT)
        self.render_through(disturb)


if __name__ == "__main__":
    sys.exit(main())

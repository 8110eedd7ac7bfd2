#!/usr/bin/env python3
"""What watches over a farm is killed: the farm's processes go on, and another watches over them at once. What it watches
over comes back quickly the first time, and more slowly only where it dies again and again."""
import os
import pathlib
import re
import signal
import sys
import time

from farm import FarmTest, alive, main, wait_for

NAMES = ("redis", "coordinator", "worker-0", "worker-1")


class Supervisor(FarmTest):
    def comm(self, pid):
        try:
            return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            return ""

    def guard(self, run=None):
        """The supervisor's parent, once both are what they are called."""
        def found():
            pid = self.farm.pid("supervisor", run)
            if not alive(pid):
                return 0
            try:
                parent = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                return 0
            return parent if (self.comm(parent), self.comm(pid)) == ("kiln-guard", "kiln-supervisor") else 0
        return wait_for("a guard and a supervisor", found)

    def kill_one(self, which, run=None):
        guard, supervisor = self.guard(run), self.farm.pid("supervisor", run)
        os.kill(guard if which == "guard" else supervisor, signal.SIGKILL)
        wait_for("another takes its place", lambda: (self.guard(run), self.farm.pid("supervisor", run)) != (guard, supervisor)
                 and self.farm.pid("supervisor", run) != supervisor)

    def pids(self, run=None):
        return {n: self.farm.pid(n, run) for n in NAMES}

    def check_watched(self, run=None):
        """Whatever dies is started again, whoever's child it is."""
        for name in NAMES:
            self.farm.kill_and_await(name, run)

    def test_a_killed_supervisor_is_replaced_and_the_farm_goes_on(self):
        self.farm.up("sim:ms=20")
        batch = self.farm.ok("submit", self.farm.prompts(200)).strip()
        before = self.pids()
        for which in ("supervisor", "guard", "guard", "supervisor", "supervisor", "guard"):
            self.kill_one(which)
        self.assertEqual(self.pids(), before)
        self.farm.ok("wait", batch)
        self.check_watched()
        self.farm.ok("wait", self.farm.ok("submit", self.farm.prompts(5)).strip())
        pids = [*self.pids().values(), self.guard(), self.farm.pid("supervisor")]
        self.farm.ok("down")
        for pid in pids:
            wait_for(f"{pid} ends", lambda p=pid: not alive(p))

    def test_how_a_process_ended_is_known_though_its_parent_was_killed(self):
        self.farm.up("sim:ms=5")
        self.kill_one("supervisor")
        self.farm.ok("drain", "worker-1", "--exit") # ends with status 0: it is not started again
        log = self.farm.dir / "log" / "supervisor.log"
        ended = wait_for("its end is known", lambda: re.search(r"process=worker-1 .*how=\"([^\"]*)\"", log.read_text()))
        self.assertEqual(ended[1], "ended with status 0")
        self.farm.kill_and_await("worker-0")
        self.assertEqual(self.farm.pid("worker-1"), 0)

    def test_a_render_does_not_notice_that_its_supervisor_was_killed(self):
        out = self.farm.tmp / "out"
        p = self.farm.start("render", self.farm.prompts(120), "-o", out, "--engine", "sim:ms=25", "--workers", "2")
        self.await_pictures(out, 10)
        run = self.farm.run_of(out)
        self.kill_one("supervisor", run)
        self.kill_one("guard", run)
        self.farm.kill_and_await("coordinator", run)
        self.finish(p)
        self.check_folder(out, 120)
        self.assertEqual(self.farm.runs(), [])

    def test_both_killed_at_once_leave_a_farm_that_works_and_is_ended_or_started_anew(self):
        self.farm.up("sim:ms=5")
        for command in ("down", "up"):
            guard, before = self.guard(), self.pids()
            supervisor = self.farm.pid("supervisor")
            os.kill(guard, signal.SIGSTOP) # it does not notice
            os.kill(supervisor, signal.SIGKILL)
            os.kill(guard, signal.SIGKILL)
            wait_for("the farm's lock is free", lambda: not alive(supervisor) and not alive(guard))
            self.farm.ok("wait", self.farm.ok("submit", self.farm.prompts(5)).strip())
            self.assertEqual(self.pids(), before)
            self.assertIn("nobody watches over them", self.farm.ok("doctor", status=2))
            if command == "down":
                self.assertIn("4 processes", self.farm.run("down").stderr)
                self.assertFalse(any(alive(pid) for pid in before.values()))
            self.farm.up("sim:ms=5")
            self.assertFalse(any(alive(pid) for pid in before.values()))
        self.check_watched()

    def test_the_pause_before_a_start_grows_only_with_deaths_in_a_row(self):
        self.farm.up("sim:ms=5", 1)
        log = self.farm.dir / "log" / "supervisor.log"
        pauses = lambda name: [(int(d), int(p)) for d, p in re.findall(
            rf"process_ended process={name} .* deaths=(\d+) pause_ms=(\d+)", log.read_text())]
        for name, there in (("coordinator", lambda: self.farm.run("status").returncode == 0), ("redis", None)):
            # young_ms is 4 s: a first death is one after a longer life, or of a process that has not died before
            begun = time.monotonic()
            self.farm.kill_and_await(name)
            batch = self.farm.ok("submit", self.farm.prompts(1)).strip()
            took = time.monotonic() - begun
            print(f"  {name} killed: a submission is accepted {took:.2f} s later", file=sys.stderr)
            self.assertEqual(pauses(name)[0], (1, 200))
            self.farm.kill_and_await(name)
            self.farm.kill_and_await(name)
            for k, (deaths, pause) in enumerate(pauses(name)):
                self.assertEqual(pause, min(200 << (deaths - 1), 5000))
                self.assertLessEqual(deaths, k + 1)
            self.farm.ok("wait", batch)


if __name__ == "__main__":
    sys.exit(main())

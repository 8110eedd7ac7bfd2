#!/usr/bin/env python3
"""Farms under a limit of memory: a control group of their own. Without the right to make one, skipped."""
import os
import pathlib
import sys

from farm import BIN, FarmTest, alive, children, main, wait_for

MODEL = pathlib.Path(os.environ.get("KILN_TEST_MODEL", pathlib.Path(__file__).parents[2] / "models" / "tiny"))
MB = 1000 * 1000
COUNT = 24

# Takes memory, step by step, until the process whose number it is given is gone, and then ends: the kernel has to
# kill somebody, and is told that it be that one.
HOG = """
import pathlib, sys
pathlib.Path(f"/proc/{sys.argv[1]}/oom_score_adj").write_text("1000")
kept, stat = [], pathlib.Path(f"/proc/{sys.argv[1]}/stat")
def alive():
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
while alive():
    kept.append(bytearray(b"x") * (1 << 20))
"""


def own_group():
    """The folder of this process's group that counts memory, and whether it is of the second generation."""
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if "memory" in names.split(","):
            return pathlib.Path("/sys/fs/cgroup/memory") / path.lstrip("/"), False
    return pathlib.Path("/sys/fs/cgroup"), True


class Memory(FarmTest):
    def setUp(self):
        base, self.second = own_group()
        self.group = base / f"kiln-test-{os.getpid()}-{self._testMethodName[:20]}-{id(self)}"
        try:
            if self.second:
                (base / "cgroup.subtree_control").write_text("+memory")
            self.group.mkdir()
            self.limit(1 << 40)
        except OSError as e:
            self.skipTest(f"no control group of its own is to be had here: {e}")
        self.addCleanup(lambda: wait_for("the group is empty", self.remove))
        super().setUp()

    def remove(self):
        try:
            self.group.rmdir()
        except OSError:
            return False
        return True

    def limit(self, size):
        (self.group / ("memory.max" if self.second else "memory.limit_in_bytes")).write_text(str(size))

    def kills(self):
        text = (self.group / ("memory.events" if self.second else "memory.oom_control")).read_text()
        return int(text.split("oom_kill ")[1].split()[0])

    def inside(self, *words):
        """A command in the group. Started by a shell, since the group is left to no thread of the tests'."""
        return self.farm.start("/bin/sh", "-c", f'echo $$ > {self.group}/cgroup.procs && exec "$@"', "sh", *words)

    def kiln(self, *args, status=0):
        return self.finish(self.inside(BIN / "kiln", *args), status)

    def test_what_does_not_fit_is_refused_in_words_before_anything_starts(self):
        self.limit(120 * MB)
        out = self.farm.tmp / "out"
        _, err = self.kiln("render", "-p", "a red circle", "-o", out, "--model", MODEL, status=1)
        self.assertRegex(err, r"tiny at 128x128 needs \d+ MB of memory a worker")
        self.assertIn("within this control group's limit", err)
        self.assertFalse((self.farm.dir / "log").exists(), "a farm was started")
        _, err = self.kiln("up", "--model", MODEL, status=1)
        self.assertRegex(err, r"tiny at 128x128 needs \d+ MB")
        self.assertFalse((self.farm.dir / "log").exists(), "a farm was started")

    def test_workers_are_held_against_memory_and_what_fits_is_said(self):
        self.limit(450 * MB)
        out = self.farm.tmp / "out"
        words = ("render", "-p", "a red circle", "-o", out, "--model", MODEL)
        _, err = self.kiln(*words, "--workers", 8, status=1)
        self.assertIn("--workers 8: tiny", err)
        self.assertIn("--workers 2 fits", err)
        self.kiln(*words, "--workers", 2)

    def test_a_render_keeps_to_its_limit(self):
        self.limit(260 * MB)
        out = self.farm.tmp / "out"
        self.kiln("render", self.farm.prompts(COUNT), "-o", out, "--model", MODEL, "--steps", 2, "--threads", 4)
        self.check_folder(out, COUNT)
        self.assertEqual(self.kills(), 0)

    def test_a_worker_that_the_kernel_killed_for_memory_says_so_and_no_image_is_charged(self):
        farm = self.farm
        self.limit(400 * MB)
        self.kiln("up", "--model", MODEL, "--workers", 1)
        old = farm.pid("worker-0")
        batch = farm.ok("submit", farm.prompts(COUNT), "--steps", 20).strip()
        wait_for("it renders", lambda: farm.json("status", batch)["running"] > 0)
        self.inside(sys.executable, "-c", HOG, old)
        wait_for("the kernel kills the worker", lambda: not alive(old))
        farm.ok("wait", batch)
        self.assertEqual(farm.json("status", batch)["failed"], 0)
        supervisor = (farm.dir / "log" / "supervisor.log").read_text()
        self.assertIn("worker-0 was ended by signal 9: the kernel killed it for want of memory", supervisor)
        coordinator = (farm.dir / "log" / "coordinator.log").read_text()
        self.assertIn("out_of_memory worker=worker-0: killed by the kernel", coordinator)
        self.assertNotIn("charge", coordinator)

    def test_an_engine_that_the_kernel_killed_for_memory_costs_neither_its_worker_nor_an_image(self):
        farm = self.farm
        self.limit(400 * MB)
        self.kiln("up", "--model", MODEL, "--workers", 1)
        worker = farm.pid("worker-0")
        batch = farm.ok("submit", farm.prompts(COUNT), "--steps", 20).strip()
        wait_for("it renders", lambda: farm.json("status", batch)["done"] > 0)
        engine = children(worker)[0]
        self.inside(sys.executable, "-c", HOG, engine)
        wait_for("the kernel kills the engine", lambda: not alive(engine))
        farm.ok("wait", batch)
        self.assertEqual(farm.json("status", batch)["failed"], 0)
        self.assertEqual(farm.pid("worker-0"), worker)
        self.assertIn("the kernel killed it for want of memory", (farm.dir / "log" / "worker-0.log").read_text())
        self.assertNotIn("charge", (farm.dir / "log" / "coordinator.log").read_text())


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Who is who on a farm: two workers of one name, restarted ones, and names that nobody chose."""
import re
import signal
import sys

from farm import BIN, FarmTest, main, manifest, wait_for

COUNT = 12


class Names(FarmTest):
    def setUp(self):
        super().setUp()
        self.farm.ok("up", "--workers", "0", "--model", "sim")
        self.endpoint = (self.farm.dir / "endpoint").read_text().strip()

    def worker(self, *args, engine="sim:ms=20", **more):
        return self.farm.start(BIN / "kiln-worker", "--join", self.endpoint, "--engine", engine, *args, **more)

    def there(self):
        return sorted(w["id"] for w in self.farm.json("workers") if w["state"] != "lost")

    def log(self):
        return (self.farm.dir / "log" / "coordinator.log").read_text()

    def render(self, ms=20):
        out = self.farm.tmp / "out"
        self.finish(self.farm.start("render", self.farm.prompts(COUNT), "-o", out))
        return self.check_folder(out, COUNT)

    def test_of_two_live_workers_of_one_name_one_is_refused_and_no_image_fails(self):
        first = self.worker("--name", "twin")
        wait_for("the first has joined", lambda: self.there() == ["twin"])
        second = self.worker("--name", "twin")
        lines = self.render()
        _, err = self.finish(second, status=4)
        self.assertIn("the name twin is taken", err)
        self.assertIn(f"process {first.pid}", err)
        self.assertIn(f"process {second.pid}", err)
        self.assertIn("worker_refused worker=twin", self.log())
        self.assertNotIn("task_charged", self.log())
        self.assertEqual({(l["worker"], l["attempt"]) for l in lines}, {("twin", 1)})
        self.assertIsNone(first.poll())

    def test_a_restarted_worker_has_its_name_at_once(self):
        first = self.worker("--name", "phoenix")
        wait_for("it has joined", lambda: self.there() == ["phoenix"])
        first.kill()
        first.wait()
        second = self.worker("--name", "phoenix")
        self.render()
        self.assertIsNone(second.poll())
        self.assertNotIn("worker_replaced", self.log())  # the question found the old connection closed

    def test_a_frozen_worker_is_replaced_within_3_s_and_nobody_is_charged(self):
        first = self.worker("--name", "statue")
        wait_for("it has joined", lambda: self.there() == ["statue"])
        first.send_signal(signal.SIGSTOP)
        second = self.worker("--name", "statue")
        self.render()
        waited = re.search(r"worker_replaced worker=statue: it gave no answer for (\d+) ms", self.log())
        self.assertTrue(waited, self.farm.logs())
        self.assertLess(int(waited.group(1)), 3000)
        self.assertNotIn("task_charged", self.log())
        # it wakes up: the name is another's now
        first.send_signal(signal.SIGCONT)
        _, err = self.finish(first, status=4)
        self.assertIn("the name statue is taken", err)
        self.assertIsNone(second.poll())

    def clone(self, n):
        """A worker that nobody named, on a machine that is a copy: the same machine's number, the same place."""
        place = self.farm.tmp / f"machine-{n}"
        place.mkdir(exist_ok=True)
        return self.worker("--name-base", "box", env={**self.farm.env, "XDG_RUNTIME_DIR": str(place)})

    def test_clones_that_nobody_named_get_numbers_and_keep_them(self):
        first = self.clone(1)
        wait_for("the first has its name", lambda: self.there() == ["box"])
        second = self.clone(2)
        wait_for("the second has its name", lambda: self.there() == ["box", "box-2"])
        lines = self.render()
        self.assertLessEqual({l["worker"] for l in lines}, {"box", "box-2"})
        first.kill()
        first.wait()
        again = self.clone(1)
        wait_for("the first is back under its name", lambda: [w for w in self.farm.json("workers")
                                                              if w["id"] == "box" and w["pid"] == again.pid])
        self.farm.kill_and_await("coordinator")
        wait_for("a new coordinator leaves the names", lambda: self.there() == ["box", "box-2"])
        self.assertEqual({w["pid"] for w in self.farm.json("workers")}, {again.pid, second.pid})


if __name__ == "__main__":
    sys.exit(main())

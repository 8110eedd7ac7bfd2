#!/usr/bin/env python3
"""A farm that stays, and every command that looks at it or steers it."""
import json
import sys

from farm import BIN, FarmTest, alive, main, manifest, wait_for

STATUS = {"id", "state", "total", "done", "failed", "cancelled", "queued", "running", "images_per_s", "eta_s"}
WORKER = {"id", "host", "device", "backend", "state", "model", "batch", "step", "steps", "images_per_s", "done", "failed", "last_seen_s"}


class Commands(FarmTest):
    def submit(self, count, *more):
        out = self.farm.ok("submit", self.farm.prompts(count), *more)
        self.assertRegex(out, r"^[0-9a-f-]{36}\n$")
        return out.strip()

    def status(self, id):
        return self.farm.json("status", id)

    def test_up_submit_wait_fetch_rm_down(self):
        farm = self.farm
        self.assertTrue(farm.up().startswith("ipc://"))
        self.assertEqual((farm.dir / "endpoint").read_text().strip(), farm.endpoint)
        pids = [farm.pid(n) for n in ("supervisor", "redis", "coordinator", "worker-0", "worker-1")]
        self.assertTrue(all(pids))
        id = self.submit(30, "--seed", "7", "--name", "thirty")
        farm.ok("wait", id)
        s = self.status(id[:6])
        self.assertLessEqual(STATUS, set(s))
        self.assertEqual((s["id"], s["name"], s["state"], s["total"], s["done"]), (id, "thirty", "done", 30, 30))
        self.assertEqual([b["id"] for b in farm.json("status")], [id])
        out = farm.tmp / "out"
        farm.ok("fetch", id, "-o", out)
        lines = self.check_folder(out, 30)
        self.assertEqual({l["seed"] for l in lines}, {7})
        farm.ok("verify", out)
        self.assertEqual(farm.json("fetch", id, "-o", out)["kept"], 30)
        farm.ok("rm", id)
        self.assertEqual(farm.json("status"), [])
        farm.ok("status", id, status=3)
        wait_for("its objects are gone", lambda: not list(farm.dir.glob("objects/*/*.png")))
        self.check_folder(out, 30)
        farm.ok("down")
        for pid in pids:
            self.assertFalse(alive(pid))
        self.assertFalse((farm.dir / "endpoint").exists())
        farm.ok("down", status=3)

    def test_up_twice_is_one_farm(self):
        endpoint = self.farm.up()
        pid = self.farm.pid("supervisor")
        self.assertEqual(self.farm.ok("up", "--engine", "sim").strip(), endpoint)
        self.assertEqual(self.farm.pid("supervisor"), pid)

    def test_render_uses_the_farm_that_is_up(self):
        self.farm.up()
        out = self.farm.tmp / "out"
        self.farm.ok("render", self.farm.prompts(20), "-o", out)
        self.check_folder(out, 20)
        self.assertEqual([b["total"] for b in self.farm.json("status")], [20])

    def test_pause_resume_cancel(self):
        farm = self.farm
        farm.up("sim:ms=20")
        id = self.submit(2000)
        wait_for("it runs", lambda: self.status(id)["done"] > 5)
        farm.ok("pause", id)
        wait_for("what was handed out has ended", lambda: self.status(id)["running"] == 0)
        s = self.status(id)
        self.assertEqual(s["state"], "paused")
        self.assertEqual(self.status(id)["done"], s["done"])
        farm.ok("resume", id)
        wait_for("it goes on", lambda: self.status(id)["done"] > s["done"])
        farm.ok("cancel", id)
        farm.ok("wait", id, status=2)
        s = self.status(id)
        self.assertEqual(s["state"], "cancelled")
        self.assertEqual(s["done"] + s["cancelled"], 2000)
        out = farm.tmp / "out"
        farm.ok("fetch", id, "-o", out)
        self.check_folder(out, 2000, cancelled=s["cancelled"])

    def test_retry_renders_what_failed(self):
        farm = self.farm
        farm.up("sim:ms=1,nan=0.2,seed=3")
        id = self.submit(50, "--seed", "1")
        farm.ok("wait", id, status=2)
        failed = self.status(id)["failed"]
        self.assertTrue(0 < failed < 50)
        farm.ok("down")
        farm.up("sim:ms=1")
        farm.ok("retry", id)
        farm.ok("wait", id)
        s = self.status(id)
        self.assertEqual((s["done"], s["failed"]), (50, 0))

    def test_workers_and_drain(self):
        farm = self.farm
        farm.up("sim:ms=5")
        workers = farm.json("workers")
        self.assertEqual(sorted(w["id"] for w in workers), ["worker-0", "worker-1"])
        for w in workers:
            self.assertLessEqual(WORKER, set(w))
            self.assertEqual(w["state"], "idle")
        farm.ok("drain", "worker-0")
        wait_for("it drains", lambda: {w["id"]: w["state"] for w in farm.json("workers")}["worker-0"] == "draining")
        id = self.submit(40)
        farm.ok("wait", id)
        done = {w["id"]: w["done"] for w in farm.json("workers")}
        self.assertEqual((done["worker-0"], done["worker-1"]), (0, 40))
        pid = farm.pid("worker-1")
        farm.ok("drain", "worker-1", "--exit")
        wait_for("it ends", lambda: not alive(pid))
        farm.ok("drain", "nosuch", status=3)

    def test_a_worker_that_joins_in_the_middle_gets_work(self):
        farm = self.farm
        farm.up("sim:ms=20", 1)
        id = self.submit(400)
        wait_for("it runs", lambda: self.status(id)["done"] > 5)
        farm.start(BIN / "kiln-worker", "--join", farm.dir, "--name", "late", "--engine", "sim:ms=20")
        wait_for("the newcomer renders", lambda: any(w["id"] == "late" and w["done"] > 5 for w in farm.json("workers")))
        farm.ok("wait", id)
        out = farm.tmp / "out"
        farm.ok("fetch", id, "-o", out)
        self.check_folder(out, 400)
        self.assertEqual({l["worker"] for l in manifest(out)}, {"worker-0", "late"})

    def test_wait_gives_up_after_its_time(self):
        self.farm.up("sim:ms=50", 1)
        id = self.submit(500)
        self.farm.ok("wait", id, "--timeout", "1", status=4)
        self.farm.ok("cancel", id)

    def test_fetch_takes_what_is_there_of_a_batch_that_runs(self):
        self.farm.up("sim:ms=20", 1)
        id = self.submit(300)
        wait_for("it runs", lambda: self.status(id)["done"] > 20)
        out = self.farm.tmp / "out"
        got = json.loads(self.farm.ok("fetch", id, "-o", out, "--json"))
        self.assertTrue(20 <= got["done"] < 300)
        self.assertEqual(len(manifest(out)), got["done"])
        self.farm.ok("cancel", id)

    def test_two_batches_share_and_priority_goes_first(self):
        self.farm.up("sim:ms=10", 1)
        low = self.submit(300)
        high = self.submit(60, "--priority", "5")
        self.farm.ok("wait", high)
        self.assertLess(self.status(low)["done"], 150)
        self.farm.ok("cancel", low)

    def test_closed_standard_streams_do_no_harm(self):
        sh = f"exec '{BIN / 'kiln'}' up --engine sim:ms=1 --workers 1 0<&- 1>&- 2>&-"
        self.finish(self.farm.start("/bin/sh", "-c", sh), status=4)  # it is up, and nobody received its endpoint
        self.farm.ok("status")
        out = self.farm.tmp / "out"
        sh = f"exec '{BIN / 'kiln'}' render '{self.farm.prompts(5)}' -o '{out}' 0<&- 2>&-"
        self.finish(self.farm.start("/bin/sh", "-c", sh))
        self.check_folder(out, 5)

    def test_top_shows_the_farm_as_json(self):
        self.farm.up()
        id = self.submit(10)
        self.farm.ok("wait", id)
        top = self.farm.json("top")
        self.assertEqual([b["id"] for b in top["batches"]], [id])
        self.assertEqual(len(top["workers"]), 2)

    def test_ids_may_be_shortened_and_unknown_ones_are_3(self):
        self.farm.up()
        id = self.submit(1)
        self.farm.ok("wait", id[:4])
        for command in ("status", "wait", "fetch", "cancel", "pause", "resume", "retry", "rm"):
            with self.subTest(command):
                self.farm.ok(command, "00000000-0000-4000-8000-000000000000", status=3)
                self.farm.ok(command, "zz", status=3)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What is there already is not rendered again: after Ctrl-C, after kill -9, after a picture was lost."""
import json
import signal
import sys

from farm import FarmTest, alive, main, manifest, pictures, wait_for

COUNT = 80


class Resume(FarmTest):
    def setUp(self):
        super().setUp()
        self.out = self.farm.tmp / "out"
        self.args = ("render", self.farm.prompts(COUNT), "-o", self.out, "--engine", "sim:ms=30", "--workers", "2", "--json")

    def times(self):
        return {p.name: p.stat().st_mtime_ns for p in (self.out / "images").glob("*.png")}

    def summary(self):
        return json.loads(self.farm.ok(*self.args))

    def test_ctrl_c_and_the_same_command_goes_on(self):
        p = self.farm.start(*self.args)
        self.await_pictures(self.out, 15)
        p.send_signal(signal.SIGINT)
        out, err = self.finish(p, status=130)
        self.assertIn("the same command goes on", err)
        before, seeds = self.times(), {l["index"]: l["seed"] for l in manifest(self.out)}
        self.assertTrue(15 <= len(before) < COUNT)
        self.assertEqual(len(seeds), len(before))
        self.assertEqual(self.farm.pid("supervisor"), 0)
        s = self.summary()
        self.assertEqual((s["total"], s["done"], s["kept"]), (COUNT, COUNT, len(before)))
        lines = self.check_folder(self.out, COUNT)
        self.assertEqual({i: lines[i]["seed"] for i in seeds}, seeds)
        after = self.times()
        self.assertEqual({n: after[n] for n in before}, before)

    def test_a_seed_drawn_for_each_prompt_stays_its_own(self):
        file = self.farm.tmp / "each.txt"
        file.write_text("a cat\na dog\na cat\na bird --seed 5\n")
        args = ["render", file, "--seed", "each", "--images", "2", "--engine", "sim:ms=0", "--workers", "1", "--json", "-o"]
        self.farm.ok(*args, self.out)
        seeds = [l["seed"] for l in self.check_folder(self.out, 8)]
        self.assertEqual(seeds[1::2], [s + 1 for s in seeds[::2]])
        self.assertEqual(seeds[6:], [5, 6])
        self.assertEqual(len({*seeds[::2]}), 4)
        request = json.loads((self.out / "batch.json").read_text())["request"]
        self.assertEqual((request["seed_drawn"], request["seed_each"]), (True, True))

        file.write_text("a fish\n" + file.read_text())
        s = json.loads(self.farm.ok(*args, self.out))
        self.assertEqual((s["total"], s["kept"], s["rendered"]), (10, 8, 2))
        self.assertEqual([l["seed"] for l in self.check_folder(self.out, 10)][2:], seeds)

        other = self.farm.tmp / "other"
        self.farm.ok(*args, other)
        self.assertNotEqual([l["seed"] for l in self.check_folder(other, 10)][2:8], seeds[:6])

    def test_a_second_ctrl_c_ends_at_once_and_leaves_no_process(self):
        p = self.farm.start(*self.args)
        self.await_pictures(self.out, 5)
        pids = [self.farm.pid(n) for n in ("supervisor", "redis", "coordinator", "worker-0", "worker-1")]
        p.send_signal(signal.SIGINT)
        p.send_signal(signal.SIGINT)
        self.finish(p, status=130, timeout=5)
        for pid in pids:
            wait_for(f"process {pid} ends", lambda q=pid: not alive(q))
        self.summary()
        self.check_folder(self.out, COUNT)

    def test_kill_9_and_the_same_command_goes_on(self):
        p = self.farm.start(*self.args)
        self.await_pictures(self.out, 15)
        pids = [self.farm.pid(n) for n in ("supervisor", "redis", "coordinator", "worker-0", "worker-1")]
        p.kill()
        for pid in pids[:3]:
            self.assertTrue(alive(pid)) # it goes on for a minute
        s = self.summary()
        self.assertEqual((s["total"], s["done"]), (COUNT, COUNT))
        self.check_folder(self.out, COUNT)
        for pid in pids:
            wait_for(f"process {pid} ends", lambda q=pid: not alive(q))

    def test_nothing_is_rendered_twice(self):
        self.summary()
        self.assertFalse((self.out / ".kiln-farm").exists())  # a private farm keeps no pictures
        self.assertEqual(self.farm.runs(), [])
        before = self.times()
        s = self.summary()
        self.assertEqual((s["kept"], s["rendered"]), (COUNT, 0))
        self.assertEqual(self.times(), before)
        self.assertEqual(self.farm.runs(), [])

    def test_lost_and_spoilt_pictures_are_rendered_again(self):
        self.summary()
        names = pictures(self.out)
        (self.out / "images" / names[3]).unlink()
        spoilt = self.out / "images" / names[5]
        data = spoilt.read_bytes()
        spoilt.unlink()
        spoilt.write_bytes(data[:-1] + b"x")
        s = self.summary()
        self.assertEqual((s["kept"], s["rendered"]), (COUNT - 2, 2))
        self.check_folder(self.out, COUNT)
        self.assertEqual(spoilt.read_bytes(), data)

    def test_a_file_that_has_grown_renders_what_is_new(self):
        self.summary()
        path = self.farm.tmp / "prompts.txt"
        path.write_text("a line before the others\n" + path.read_text())
        s = self.summary()
        self.assertEqual((s["total"], s["kept"], s["rendered"]), (COUNT + 1, COUNT, 1))
        self.check_folder(self.out, COUNT + 1)

    def test_on_a_farm_that_stays_ctrl_c_cancels_the_batch(self):
        self.farm.up("sim:ms=30")
        p = self.farm.start(*self.args)
        self.await_pictures(self.out, 15)
        p.send_signal(signal.SIGINT)
        self.finish(p, status=130)
        (batch,) = self.farm.json("status")
        self.assertEqual(batch["state"], "cancelled")
        self.assertEqual(len(pictures(self.out)), batch["done"])  # what it had done is not wasted
        self.summary()
        self.check_folder(self.out, COUNT)

    def test_a_batch_that_the_farm_is_at_still_is_followed(self):
        self.farm.up("sim:ms=30")
        p = self.farm.start(*self.args)
        self.await_pictures(self.out, 15)
        p.kill()
        p.wait()
        self.summary()
        self.check_folder(self.out, COUNT)
        (batch,) = self.farm.json("status")
        self.assertEqual((batch["total"], batch["done"]), (COUNT, COUNT))

    def test_a_farm_that_ends_under_a_render_says_so_and_nothing_is_lost(self):
        self.farm.up("sim:ms=30")
        p = self.farm.start(*self.args)
        self.await_pictures(self.out, 15)
        self.farm.ok("down")
        _, err = self.finish(p, status=3)
        self.assertIn("has ended", err)
        self.farm.up("sim:ms=1")
        self.summary()
        self.check_folder(self.out, COUNT)
        self.assertEqual(len(self.farm.json("status")), 1)

    def test_a_folder_has_one_render_at_a_time(self):
        p = self.farm.start(*self.args)
        self.await_pictures(self.out, 5)
        second = self.farm.run(*self.args)
        self.assertEqual(second.returncode, 1)
        self.assertIn("another kiln is at work in it", second.stderr)
        self.finish(p)


if __name__ == "__main__":
    sys.exit(main())

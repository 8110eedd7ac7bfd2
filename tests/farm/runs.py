#!/usr/bin/env python3
"""A private farm belongs to one run: it has a folder of its own, nobody else uses it, and only its own command finds it again."""
import fcntl
import json
import os
import shutil
import signal
import sys

from farm import BIN, FarmTest, alive, main, manifest, pictures, wait_for

COUNT = 80
PROCESSES = ("supervisor", "redis", "coordinator", "worker-0")
TINY = BIN.parent.parent / "models" / "tiny"


class Runs(FarmTest):
    def setUp(self):
        super().setUp()
        self.out = self.farm.tmp / "out"
        self.args = ("render", self.farm.prompts(COUNT), "-o", self.out, "--engine", "sim:ms=30", "--workers", "1", "--json")

    def begin(self, *args, pictures=5, out=None):
        """A render that has got so far; its process, and the folder of its farm."""
        p = self.farm.start(*(args or self.args))
        self.await_pictures(out or self.out, pictures)
        return p, self.farm.run_of(out or self.out)

    def kill_all(self, p, run):
        """As when the machine goes down."""
        p.kill()
        self.farm.kill_all(run)
        p.wait()

    def batch_id(self):
        return json.loads((self.out / "batch.json").read_text())["id"]

    def test_two_renders_with_two_models_run_side_by_side(self):
        self.farm.prompts(4 * COUNT)
        first, run = self.begin()
        other = self.farm.tmp / "other"
        stopped = self.farm.kill("worker-0", signal.SIGSTOP, of=run)  # it is at work all the while, however slow the other is
        text, _ = self.finish(self.farm.start("render", "-p", "a red circle", "--images", "2", "-o", other, "--workers", "1", "--json"))
        os.kill(stopped, signal.SIGCONT)
        self.assertIsNone(first.poll())
        self.assertEqual(self.farm.runs(), [run])  # the second has cleaned up after itself alone
        self.assertEqual({l["model"] for l in self.check_folder(other, 2)}, {"tiny"})
        self.finish(first)
        self.assertEqual({l["model"] for l in self.check_folder(self.out, 4 * COUNT)}, {"sim"})
        self.assertEqual(self.farm.runs(), [])

    def test_a_runs_files_are_where_they_belong(self):
        p, run = self.begin()
        self.assertEqual(run.parent, self.farm.dir / "runs")
        self.assertTrue(list(run.glob("redis/*")))
        self.assertEqual(sorted(f.stem for f in run.glob("run/*.pid")), sorted(PROCESSES))
        self.assertEqual((run / "output").read_text().strip(), str(self.out))
        self.assertTrue((self.out / ".kiln-farm" / "objects").is_dir())
        self.assertEqual([f for f in (self.out / ".kiln-farm").rglob("*") if f.is_socket()], [])
        self.assertFalse((self.farm.dir / "endpoint").exists())
        self.farm.ok("status", status=3)  # nobody else's farm
        self.finish(p)
        self.assertEqual(self.farm.runs(), [])
        self.assertFalse((self.out / ".kiln-farm").exists())

    def test_a_private_farm_of_an_earlier_kiln_is_not_used(self):
        """It kept them in the place of the farm that stays, with a pid file `private`."""
        (self.farm.dir / "run").mkdir(parents=True)
        (self.farm.dir / "run" / "private.pid").write_text(f"{os.getpid()}\n")
        (self.farm.dir / "endpoint").write_text(f"ipc://{self.farm.tmp}/nobody\n")
        with open(self.farm.dir / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.farm.ok("render", "-p", "x", "-o", self.out, "--engine", "sim:ms=0", "--workers", "1")
        (self.farm.dir / "run" / "private.pid").unlink()
        self.check_folder(self.out, 1)

    def test_a_farm_that_is_named_must_be_there(self):
        p = self.farm.run("render", "-p", "x", "-o", self.out, "--engine", "sim:ms=0", "--farm", self.farm.tmp / "nofarm")
        self.assertEqual(p.returncode, 3)
        self.assertIn("no farm is up at", p.stderr)
        self.assertEqual(self.farm.runs(), [])
        self.assertFalse(self.out.exists())

    def test_a_private_farm_is_nobody_elses_even_by_name(self):
        p, run = self.begin()
        other = self.farm.run("render", "-p", "x", "-o", self.farm.tmp / "other", "--farm", run)
        self.assertNotEqual(other.returncode, 0)
        self.assertIn("is the private farm of another run", other.stderr)
        self.assertEqual(len(self.farm.json("status", "--farm", run)), 1)  # but whoever wants to may look at it
        self.finish(p)

    def test_a_farm_may_declare_its_default_model_and_the_first_line_says_so(self):
        self.farm.up("sim:ms=1", 1)
        p = self.farm.start("render", "-p", "x", "-o", self.out)
        _, err = self.finish(p)
        self.assertEqual(err.splitlines()[0], "kiln: model: sim (the farm's default)")
        submit = self.farm.run("submit", "-p", "x")
        self.assertEqual(submit.returncode, 0)
        self.assertIn("model: sim (the farm's default)", submit.stderr)

    def test_without_model_it_is_the_one_that_ships_also_on_a_farm_with_others(self):
        other = self.farm.tmp / "models" / "other"
        shutil.copytree(TINY, other)
        os.chmod(other, 0o755)
        (other / "kiln.json").write_text('{"steps": 3}')
        self.farm.ok("up", "--workers", "1", "--models", other.parent)
        p = self.farm.run("render", "-p", "x", "-o", self.out)
        self.assertEqual(p.returncode, 1)
        self.assertIn("model: not given, and the one that ships, tiny, is not there; this farm has other", p.stderr)
        self.farm.ok("down")
        self.farm.ok("up", "--workers", "1", "--model", other)
        self.farm.ok("render", "-p", "x", "-o", self.out)
        self.assertEqual([l["model"] for l in manifest(self.out)], ["other"])

    def test_the_same_command_finds_its_farm_going_on(self):
        p, run = self.begin()
        before, pid = self.batch_id(), self.farm.pid("supervisor", run)
        p.kill()
        again = self.farm.start(*self.args)
        _, err = self.finish(again)
        self.assertIn("the farm of the run before is up still", err)
        self.assertEqual(self.batch_id(), before)
        self.check_folder(self.out, COUNT)
        wait_for("it has ended", lambda: not alive(pid))
        self.assertEqual(self.farm.runs(), [])

    def test_another_plan_begins_another_farm_and_goes_on_all_the_same(self):
        p, run = self.begin()
        before = self.batch_id()
        p.kill()
        self.farm.ok(*["2" if a == "1" else a for a in self.args])
        self.assertEqual(self.batch_id(), before)
        self.check_folder(self.out, COUNT)

    def test_what_a_farm_had_committed_is_not_lost_when_everything_is_killed(self):
        p, run = self.begin()
        before = self.batch_id()
        self.kill_all(p, run)
        self.farm.ok(*self.args)
        self.assertEqual(self.batch_id(), before)  # the batch went on
        self.check_folder(self.out, COUNT)
        self.farm.ok("verify", self.out)
        self.assertEqual(self.farm.runs(), [])

    def test_a_farm_goes_on_with_its_run_though_one_that_stays_has_come_up(self):
        p, run = self.begin()
        before = self.batch_id()
        self.kill_all(p, run)
        self.farm.up("sim:ms=1", 1)
        self.farm.ok(*self.args)
        self.assertEqual(self.batch_id(), before)
        self.assertEqual(self.farm.json("status"), [])

    def test_a_farm_whose_command_is_gone_ends(self):
        self.farm.env["KILN_ABANDONED_MS"] = "0"
        p, run = self.begin()
        pids = [self.farm.pid(n, run) for n in PROCESSES]
        self.assertTrue(all(map(alive, pids)))
        p.kill()
        for pid in pids:
            wait_for(f"process {pid} ends", lambda q=pid: not alive(q))
        self.farm.ok(*self.args)
        self.check_folder(self.out, COUNT)

    def test_doctor_lists_what_killed_ones_left_and_removes_it(self):
        p, run = self.begin()
        self.assertRegex(self.farm.ok("doctor"), rf"run +{run}, for {self.out}, .* old, [0-9.]+ MiB: alive")
        self.farm.ok("doctor", "--repair")
        self.assertIsNone(p.poll())
        self.kill_all(p, run)
        text = self.farm.ok("doctor")
        self.assertRegex(text, rf"run +{run}, for {self.out}, .* old, [0-9.]+ MiB: left by a killed one")
        self.assertIn("kiln doctor --repair removes them", text)
        self.assertTrue(run.is_dir())
        there = pictures(self.out)
        self.assertIn("removed", self.farm.ok("doctor", "--repair"))
        self.assertEqual(self.farm.runs(), [])
        self.assertFalse((self.out / ".kiln-farm").exists())
        self.assertEqual(pictures(self.out), there)
        self.farm.ok(*self.args)
        self.check_folder(self.out, COUNT)

    def test_a_folder_that_was_moved_takes_its_run_along_and_a_copy_does_not(self):
        p, run = self.begin()
        before = self.batch_id()
        self.kill_all(p, run)
        copy, moved = self.farm.tmp / "copy", self.farm.tmp / "moved"
        shutil.copytree(self.out, copy)
        self.farm.ok(*[copy if a == self.out else a for a in self.args])
        self.check_folder(copy, COUNT)
        self.assertEqual(self.farm.runs(), [run])
        self.out.rename(moved)
        self.farm.ok(*[moved if a == self.out else a for a in self.args])
        self.assertEqual(json.loads((moved / "batch.json").read_text())["id"], before)
        self.check_folder(moved, COUNT)
        self.assertEqual(self.farm.runs(), [])

    def test_a_drawn_seed_is_found_again_by_another_spelling_of_the_same_input(self):
        self.farm.ok("render", "prompts.txt", *self.args[2:])
        seeds = [l["seed"] for l in manifest(self.out)]
        for spelling in ("./prompts.txt", self.farm.tmp / "prompts.txt"):
            s = json.loads(self.farm.ok("render", spelling, *self.args[2:]))
            self.assertEqual((s["kept"], s["rendered"]), (COUNT, 0))
        self.assertEqual([l["seed"] for l in manifest(self.out)], seeds)


if __name__ == "__main__":
    sys.exit(main())

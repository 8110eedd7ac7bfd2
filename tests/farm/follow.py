#!/usr/bin/env python3
"""What does not move says why; and each command says what is, and what to do, with a status of its own."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import unittest

from farm import BIN, FarmTest, alive, main, wait_for


class Follow(FarmTest):
    def submit(self, count, *more):
        return self.farm.ok("submit", self.farm.prompts(count), *more).strip()

    def status(self, id):
        return self.farm.json("status", id)

    def await_reason(self, id, reason):
        return wait_for(f"it says {reason}", lambda: (s := self.status(id))["reason"] == reason and s)

    def fails(self, *args, status, says=(), **more):
        """Runs, wants that status and these words on standard error."""
        p = self.farm.run(*args, **more)
        self.assertEqual(p.returncode, status, f"{args}\n{p.stdout}{p.stderr}{self.farm.logs()}")
        for words in says:
            self.assertIn(words, p.stderr)
        return p

    def stopped(self, process):
        """That process, stopped until the test is over."""
        pid = wait_for(process, lambda: self.farm.pid(process))
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(lambda: alive(pid) and os.kill(pid, signal.SIGCONT))
        return pid

    # ---- why it does not move

    def test_a_batch_whose_model_no_worker_has_any_more_says_so(self):
        farm = self.farm
        farm.up("sim:ms=5", 0)
        worker = farm.start(BIN / "kiln-worker", "--join", farm.dir, "--name", "only", "--engine", "sim:ms=100000")
        wait_for("it has joined", lambda: farm.json("workers"))
        id = self.submit(3)
        wait_for("it renders", lambda: self.status(id)["running"])
        worker.kill()
        s = self.await_reason(id, "silent")  # before it is given up
        self.assertIn("only", s["reason_text"])
        s = self.await_reason(id, "no_worker")
        self.assertIn("kiln-worker --join", s["reason_text"])
        self.assertEqual((s["eta_s"], s["images_per_s"]), (None, 0))
        self.assertIn("no worker has the model sim", farm.ok("status"))
        self.assertIn("no worker has the model sim", farm.ok("top"))
        self.assertIn("no worker has the model sim", farm.ok("explain", id))
        self.assertIn("no worker has the model sim", farm.run("doctor").stdout)
        waiting = farm.start("wait", id)
        line = ""
        while "no worker has the model" not in line:
            line = waiting.stderr.readline()
            self.assertTrue(line, "wait ended without saying why nothing moves")
        self.assertNotIn(" left", line)
        # Whoever brings the model back brings the batch back.
        farm.start(BIN / "kiln-worker", "--join", farm.dir, "--name", "other", "--engine", "sim:ms=1")
        self.finish(waiting)

    def test_a_stopped_coordinator_is_named_with_what_to_do(self):
        farm = self.farm
        farm.up("sim:ms=5", 1)
        id = self.submit(2)
        farm.ok("wait", id)
        pid = self.stopped("coordinator")
        for command in (("status",), ("submit", farm.prompts(1)), ("top",), ("explain", id)):
            with self.subTest(command[0]):
                self.fails(*command, status=5, says=[f"kill -CONT {pid}", "has not answered"])
        os.kill(pid, signal.SIGCONT)
        farm.ok("status")

    def test_wait_says_that_the_coordinator_is_stopped_and_goes_on_after_it(self):
        farm = self.farm
        farm.up("sim:ms=100", 1)
        id = self.submit(40)
        waiting = farm.start("wait", id)
        wait_for("it runs", lambda: self.status(id)["done"])
        pid = self.stopped("coordinator")
        line = ""
        while "no answer from the farm" not in line:
            line = waiting.stderr.readline()
            self.assertTrue(line)
        self.assertIn(f"kill -CONT {pid}", line)
        os.kill(pid, signal.SIGCONT)
        self.finish(waiting)

    def test_a_redis_that_hangs_is_named(self):
        farm = self.farm
        farm.up("sim:ms=50", 1)
        id = self.submit(400)
        wait_for("it runs", lambda: self.status(id)["done"])
        pid = self.stopped("redis")
        s = self.await_reason(id, "store")
        self.assertIn("Redis", s["reason_text"])
        self.assertEqual((s["eta_s"], s["images_per_s"]), (None, 0))
        self.assertIn("has not taken anything", farm.run("doctor").stdout)
        handing_in = farm.start("submit", farm.prompts(1, "more.txt"))
        line = ""
        while "the store (Redis) has not taken anything" not in line:
            line = handing_in.stderr.readline()
            self.assertTrue(line)
        os.kill(pid, signal.SIGCONT)
        self.finish(handing_in)
        wait_for("it moves again", lambda: self.status(id)["reason"] is None)
        farm.ok("cancel", "--all")

    def test_a_full_disk_is_named(self):
        farm = self.farm
        objects = farm.dir / "objects"
        objects.mkdir(parents=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", objects], capture_output=True).returncode:
            self.skipTest("no right to mount a small file system")
        self.addCleanup(lambda: subprocess.run(["umount", "-l", objects], check=True))
        farm.up("sim:ms=1,size=256", 1)
        id = self.submit(100)
        s = self.await_reason(id, "disk")
        self.assertIn("No space left on device", s["reason_text"])
        self.assertIn("No space left on device", farm.ok("status"))
        self.assertIsNone(s["eta_s"])

    def test_one_behind_another_and_a_paused_one_say_so(self):
        farm = self.farm
        farm.up("sim:ms=100000", 1)
        first = self.submit(40, "--priority", "5")
        wait_for("it runs", lambda: self.status(first)["running"])
        second = self.submit(2)
        self.assertIn(first[:8], self.await_reason(second, "priority")["reason_text"])
        farm.ok("pause", second)
        self.await_reason(second, "paused")
        self.assertEqual([b["id"] for b in farm.json("status", "--state", "waiting")], [second])
        farm.ok("cancel", "--all")

    def test_attempts_are_told_one_by_one_and_survive_a_restart_and_a_retry(self):
        farm = self.farm
        farm.up("sim:ms=1,nan=0.2,seed=3", 1)
        id = self.submit(30, "--seed", "1")
        farm.ok("wait", id, status=2)
        batch = farm.json("explain", id)
        self.assertTrue(batch["attempts"])
        task = batch["attempts"][0]["task"]

        def check(charges):
            one = farm.json("explain", f"{id}/{task}")
            self.assertEqual(one["attempts"][0]["worker"], "worker-0")
            self.assertEqual(one["attempts"][0]["backend"], "sim-1")
            self.assertIn("not a number", one["attempts"][0]["reason"])
            self.assertTrue(one["attempts"][0]["charged"])
            return one
        self.assertEqual(check(1)["state"], "failed")
        self.assertIn("worker-0 (sim-1)  charged: not a number", farm.ok("explain", f"{id}/{task}"))
        farm.kill_and_await("coordinator")
        check(1)
        farm.ok("down")
        farm.up("sim:ms=1", 1)
        farm.ok("retry", id)
        farm.ok("wait", id)
        farm.kill_and_await("coordinator")
        self.assertEqual(check(0)["state"], "done")
        self.fails("explain", f"{id}/99", status=3, says=["0 to 29"])
        self.fails("explain", f"{id}/x", status=1)

    # ---- progress

    def test_progress_counts_steps_before_the_first_picture(self):
        farm = self.farm
        farm.up("sim:ms=60000", 1)
        id = self.submit(1)
        s = wait_for("steps are counted", lambda: (s := self.status(id))["progress"] > 0 and s["steps_per_s"] > 0 and s)
        self.assertEqual(s["done"], 0)
        self.assertTrue(0 < s["progress"] < 1)
        self.assertIsNotNone(s["eta_s"])
        farm.ok("cancel", id)

    def test_loading_a_model_is_a_phase_with_a_name_and_a_size(self):
        farm = self.farm
        farm.up("sim:ms=1,load=600000", 1)
        id = self.submit(1)
        w = wait_for("it loads", lambda: (w := farm.json("workers")[0])["phase"] == "loading" and w)
        self.assertEqual((w["loading"], w["loading_bytes"]), ("sim", 1500000000))
        self.assertEqual(self.status(id)["loading"], "sim")
        self.assertIn("loading sim, 1.5 GB", farm.ok("status"))
        self.assertIn("loading 1.5 GB", farm.ok("top"))
        waiting = farm.start("wait", id)
        line = ""
        while "loading sim, 1.5 GB" not in line:
            line = waiting.stderr.readline()
            self.assertTrue(line)
        farm.ok("cancel", id)
        self.finish(waiting, status=2)

    # ---- endings

    def test_an_id_that_nobody_received_is_told_on_standard_error(self):
        farm = self.farm
        farm.up("sim:ms=1", 1)
        for where in (">/dev/full", ">&-"):
            with self.subTest(where):
                p = farm.start("/bin/sh", "-c", f"exec '{BIN / 'kiln'}' submit '{farm.prompts(1)}' {where}")
                _, err = self.finish(p, status=4)
                id = farm.json("status")[0]["id"]
                self.assertIn(f"the farm has accepted the batch {id}", err)
                p = farm.start("/bin/sh", "-c", f"exec '{BIN / 'kiln'}' status {where}")
                _, err = self.finish(p, status=1)
                self.assertIn("standard output cannot be written", err)

    def test_a_wait_that_is_given_up_is_accepted_work(self):
        self.farm.up("sim:ms=100000", 1)
        id = self.submit(1)
        self.fails("wait", id, "--timeout", "1", status=4, says=["not waiting any longer"])
        self.farm.ok("cancel", id)

    def test_a_cancelled_batch_is_retried_and_not_resumed(self):
        farm = self.farm
        farm.up("sim:ms=100000", 1)
        id = self.submit(5)
        farm.ok("cancel", id)
        self.fails("resume", id, status=1, says=["it was cancelled: kiln retry"])
        farm.ok("down", "--now")
        farm.up("sim:ms=1", 1)
        farm.ok("retry", id)
        farm.ok("wait", id)
        self.assertEqual((self.status(id)["done"], self.status(id)["state"]), (5, "done"))

    def test_what_is_no_model_folder_is_told_what_is_read(self):
        weights = self.farm.tmp / "x.safetensors"
        weights.write_bytes(b"\0" * 64)
        for command in (("render", "-p", "x", "--model", weights), ("up", "--model", weights)):
            with self.subTest(command[0]):
                self.fails(*command, status=1, says=["x.safetensors", "is a file", "folder", "model_index.json"])

    def test_an_output_folder_that_is_none_is_refused_before_anything_starts(self):
        farm = self.farm
        link, file = farm.tmp / "link", farm.tmp / "file"
        link.symlink_to("nowhere")
        file.write_text("")
        self.fails("render", "-p", "x", "-o", link, "--engine", "sim", status=1, says=["symbolic link to something that is not there"])
        self.fails("render", "-p", "x", "-o", file, "--engine", "sim", status=1, says=["is a file"])
        self.fails("render", "-p", "x", "-o", status=1, says=["needs a value"])
        self.assertFalse(farm.dir.exists())

    @unittest.skipUnless(os.geteuid() == 0, "needs another user")
    def test_another_users_farm_is_not_allowed(self):
        farm = self.farm
        endpoint = farm.up("sim:ms=1", 1)
        farm.tmp.chmod(0o755)
        prompts = farm.prompts(1)

        def other(*args):
            return subprocess.run([str(BIN / "kiln"), *map(str, args)], env=farm.env, cwd=farm.tmp, capture_output=True, text=True,
                                  stdin=subprocess.DEVNULL, user=65534, group=65534, extra_groups=[], timeout=60)
        if subprocess.run(["test", "-x", str(BIN / "kiln")], user=65534, group=65534, extra_groups=[]).returncode:
            self.skipTest("the programs are not where another user can run them")
        for args in (("status",), ("status", "--farm", endpoint), ("submit", prompts, "--farm", endpoint)):
            p = other(*args)
            self.assertEqual(p.returncode, 6, (args, p.stderr))
            self.assertIn("another user's", p.stderr)
        locked = farm.tmp / "locked"
        locked.mkdir(mode=0o755)
        p = other("up", "--farm", locked / "farm", "--engine", "sim")
        self.assertEqual(p.returncode, 6, p.stderr)
        self.assertIn("Permission denied", p.stderr)

    def test_a_redis_that_wants_a_password_is_named(self):
        farm = self.farm
        socket = farm.tmp / "r.sock"
        farm.start("/usr/bin/env", "redis-server", "--port", "0", "--unixsocket", socket, "--requirepass", "x", "--save", "", "--dir", farm.tmp)
        # The socket is a file before anybody answers behind it.
        wait_for("it answers", lambda: subprocess.run(["redis-cli", "-s", socket, "ping"], capture_output=True, text=True).stdout)
        self.fails("up", "--engine", "sim", "--redis", f"unix:{socket}", status=1, says=["NOAUTH", "password"])

    def test_a_farm_that_has_no_address_is_named(self):
        p = self.farm.start(BIN / "kiln-worker", "--join", "tcp://no-such-host.invalid:5600", "--engine", "sim")
        line = ""
        while "cannot be found" not in line:
            line = p.stderr.readline()
            self.assertTrue(line, "it ended without a word")
        self.assertIn("no-such-host.invalid", line)
        self.assertIn("look at its spelling", line)

    # ---- every day

    def test_status_is_newest_first_and_can_be_narrowed(self):
        farm = self.farm
        farm.up("sim:ms=1", 1)
        ids = [self.submit(1) for _ in range(3)]
        for id in ids:
            farm.ok("wait", id)
        self.assertEqual([b["id"] for b in farm.json("status")], ids[::-1])
        self.assertEqual([b["id"] for b in farm.json("status", "--limit", "2")], ids[:0:-1])
        self.assertEqual(farm.json("status", "--state", "active"), [])
        self.assertEqual(len(farm.json("status", "--state", "done")), 3)
        farm.ok("rm", "--done")
        self.assertEqual(farm.json("status"), [])
        self.fails("rm", status=1, says=["no id"])
        self.fails("cancel", "x", "--all", status=1)

    def test_priority_changes_after_the_submit(self):
        farm = self.farm
        farm.up("sim:ms=100000", 1)
        id = self.submit(2)
        farm.ok("priority", id, "7")
        self.assertEqual(self.status(id)["priority"], 7)
        farm.ok("priority", "--", id, "-7")
        self.assertEqual(self.status(id)["priority"], -7)
        self.fails("priority", id, "high", status=1, says=["whole number from -1000 to 1000"])
        farm.ok("cancel", "--all")
        self.assertEqual(self.status(id)["state"], "cancelled")

    def test_a_batch_may_be_handed_in_before_any_worker_has_joined(self):
        farm = self.farm
        farm.up("sim:ms=1", 1)
        self.submit(1)
        farm.ok("down")
        farm.up("sim:ms=1", 0)  # the farm knows the model, though nobody who has it is there
        id = self.submit(3, "--model", "sim")
        self.await_reason(id, "no_worker")
        self.fails("submit", farm.prompts(1), "--model", "nosuch", status=1, says=["nosuch"])
        tiny = BIN.parent.parent / "models" / "tiny"
        if not tiny.exists():
            tiny = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny"
        if tiny.exists():  # one that nobody ever announced, from a folder that the client reads itself
            self.await_reason(self.submit(1, "--model", tiny), "no_worker")
        farm.start(BIN / "kiln-worker", "--join", farm.dir, "--name", "late", "--engine", "sim:ms=1")
        farm.ok("wait", id)

    def test_a_quiet_submit_says_nothing_but_the_id(self):
        farm = self.farm
        farm.up("sim:ms=1", 1)
        p = farm.run("submit", farm.prompts(2), "--quiet")
        self.assertEqual((p.returncode, p.stderr, len(p.stdout.split())), (0, "", 1))
        farm.ok("wait", p.stdout.strip())

    def test_the_command_for_the_end_is_run_by_the_waiting_kiln_without_secrets(self):
        farm = self.farm
        script = farm.tmp / "told.sh"
        script.write_text(f"#!/bin/sh\nenv > '{farm.tmp}/env'\necho \"$@\"\n")
        script.chmod(0o755)
        farm.env.update(KILN_TOKEN="t0ken", REDISCLI_AUTH="pass", MY_API_KEY="k", STORE_URL="redis://u:p@host", PLAIN="yes")
        out = farm.tmp / "out"
        p = farm.run("render", farm.prompts(2), "-o", out, "--engine", "sim:ms=1", "--workers", "1", "--quiet", "--json",
                     "--on-done", f"{script} 'two words' $HOME")
        self.assertEqual(p.returncode, 0, p.stderr)
        json.loads(p.stdout)  # standard output holds results alone
        self.assertIn("two words $HOME", p.stderr)
        env = dict(l.split("=", 1) for l in (farm.tmp / "env").read_text().splitlines() if "=" in l)
        self.assertEqual((env["KILN_STATE"], env["KILN_DIR"], env["PLAIN"]), ("done", str(out), "yes"))
        self.assertEqual(env["KILN_BATCH_ID"], json.loads(p.stdout)["id"])
        for name in ("KILN_TOKEN", "REDISCLI_AUTH", "MY_API_KEY", "STORE_URL"):
            self.assertNotIn(name, env)

    def test_nothing_that_a_prompt_or_a_name_says_reaches_the_terminal_as_a_command(self):
        farm = self.farm
        farm.up("sim:ms=1,nan=1", 1)
        evil = "\x1b[31mred\x1b]0;title\x07\u202e"
        id = farm.ok("submit", "-p", evil, "--name", evil).strip()
        farm.run("wait", id)
        out = farm.tmp / evil.replace("/", "")
        runs = [farm.run("status"), farm.run("workers"), farm.run("top"), farm.run("explain", id), farm.run("explain", f"{id}/0"),
                farm.run("fetch", id, "-o", out), farm.run("verify", out), farm.run("status", evil), farm.run(evil),
                farm.run("drain", evil + "x"), farm.run("render", "-p", evil, "--farm", farm.endpoint, "-o", farm.tmp / "r")]
        for p in runs:
            shown = p.stdout + p.stderr
            for c in "\x1b\x07\u202e":
                self.assertNotIn(c, shown, p.args)
        self.assertIn("\\x1b[31m", runs[0].stdout)

    def test_files_have_the_modes_that_the_umask_says(self):
        farm = self.farm
        for mask, mode in ((0o077, 0o600), (0o002, 0o664)):
            with self.subTest(oct(mask)):
                target = farm.tmp / f"out{mask:o}"
                sh = f"umask {mask:03o}; exec '{BIN / 'kiln'}' render '{farm.prompts(1)}' -o '{target}' --engine sim:ms=1 --workers 1 --quiet"
                self.finish(farm.start("/bin/sh", "-c", sh))
                for name in ("manifest.jsonl", "batch.json", "index.html"):
                    self.assertEqual((target / name).stat().st_mode & 0o777, mode, name)


if __name__ == "__main__":
    sys.exit(main())

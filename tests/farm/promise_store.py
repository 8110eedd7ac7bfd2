#!/usr/bin/env python3
"""Redis damaged, stopped, emptied: one batch does not keep the farm, an answer means durable, nothing is silently empty."""
import os
import signal
import subprocess
import sys

from farm import FarmTest, main, wait_for


class PromiseStore(FarmTest):
    def redis(self, *words):
        socket = self.farm.endpoint.removeprefix("ipc://").replace("farm.sock", "redis.sock")
        return subprocess.run(["redis-cli", "-s", socket, *words], capture_output=True, text=True, timeout=30).stdout.strip()

    def submit(self, count, *more):
        return self.farm.ok("submit", self.farm.prompts(count), *more).strip()

    def state(self, batch):
        (one,) = [b for b in self.farm.json("status") if b["id"] == batch]
        return one["state"], one["done"], one["reason_text"]

    def test_a_batch_whose_key_was_deleted_is_set_aside_and_the_rest_goes_on(self):
        self.farm.up("sim:ms=2")
        bad, good = self.submit(4), self.submit(6)
        self.farm.ok("wait", good)
        self.redis("del", f"kiln:b:{bad}:c")
        self.farm.kill_and_await("coordinator")
        state, _, reason = self.state(bad)
        self.assertEqual(state, "aside")
        self.assertIn("chunks are missing", reason)
        self.assertEqual(self.state(good)[:2], ("done", 6))
        self.assertIn("chunks are missing", self.farm.ok("wait", bad, status=2) + self.farm.run("wait", bad).stderr)
        said = self.farm.ok("doctor", status=2)
        self.assertIn("set aside", said)
        self.assertIn(f"kiln rm {bad[:8]}", said)
        self.farm.ok("wait", self.submit(5))
        self.farm.ok("rm", bad)
        self.farm.ok("doctor")
        self.farm.kill_and_await("coordinator")
        self.assertNotIn(bad, [b["id"] for b in self.farm.json("status")])

    def test_a_stopped_redis_is_waited_for_and_then_nobody_knows(self):
        self.farm.up("sim:ms=50")
        batch, ended = self.submit(2000), self.submit(1, "--priority", "9")
        self.farm.ok("wait", ended)
        redis = self.farm.kill("redis", signal.SIGSTOP)
        commands = [["cancel", batch], ["cancel", batch], ["pause", batch], ["priority", batch, "3"], ["rm", ended], ["rm", ended]]
        for p in [self.farm.start(*c, "--timeout", "4") for c in commands]:  # a client asks again after 3 s
            _, said = self.finish(p, status=5)
            self.assertIn("does not answer", said)
            self.assertIn("the store (Redis)", said)
        self.assertEqual(self.state(batch)[0], "active")
        self.assertEqual(self.state(ended)[0], "done")
        os.kill(redis, signal.SIGKILL)  # it never read them
        self.farm.kill_and_await("coordinator")
        self.assertIn(self.state(batch)[0], ("active", "paused", "cancelled"))
        self.farm.ok("cancel", batch)
        self.farm.ok("rm", ended)
        self.assertEqual([b["state"] for b in self.farm.json("status")], ["cancelled"])

    def test_a_flushed_store_under_a_running_farm_loses_nothing(self):
        self.farm.up("sim:ms=20")
        batch, before = self.submit(300), self.submit(3, "--priority", "9")
        self.farm.ok("wait", before)
        self.redis("flushall")
        self.farm.ok("wait", batch)
        self.assertIn("had gone back", self.farm.ok("doctor"))
        self.farm.kill_and_await("coordinator")
        self.farm.kill_and_await("redis")
        self.assertEqual(self.state(before)[:2], ("done", 3))
        out = self.farm.tmp / "out"
        self.farm.ok("fetch", batch, "-o", out)
        self.check_folder(out, 300)
        self.farm.ok("verify", out)

    def test_an_emptied_store_is_not_begun_with_until_a_person_says_so(self):
        self.farm.up("sim:ms=2")
        self.farm.ok("wait", self.submit(3))
        old = self.farm.kill("coordinator", signal.SIGSTOP)
        self.redis("flushall")
        os.kill(old, signal.SIGKILL)
        log = self.farm.dir / "log" / "coordinator.log"
        wait_for("it says why it does not begin", lambda: "has gone back" in log.read_text(errors="replace"))
        self.assertEqual(self.redis("dbsize"), "0")
        (self.farm.dir / "store.mark").unlink()
        wait_for("it begins", lambda: self.redis("get", "kiln:term") == "1")
        self.farm.ok("wait", self.submit(2))


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A farm of programs that a person (or systemd) starts: Redis, kiln-coordinator, kiln-worker, without kiln up."""
import signal
import subprocess
import sys

from farm import BIN, FarmTest, main, manifest, wait_for

COUNT = 100


class ByHand(FarmTest):
    def setUp(self):
        super().setUp()
        tmp = self.farm.tmp
        self.redis = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(tmp / "redis.sock"), "--dir", str(tmp), "--appendonly", "yes",
             "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no", "--maxmemory-policy", "noeviction", "--save", ""],
            stdout=subprocess.DEVNULL)
        self.addCleanup(self.end, self.redis)
        self.url = f"ipc://{tmp}/c"

    def end(self, process):
        process.kill()
        process.wait()

    def coordinator(self):
        ready = self.farm.tmp / "ready"
        ready.unlink(missing_ok=True)
        p = self.farm.start(BIN / "kiln-coordinator", "--dir", self.farm.dir, "--redis", f"unix:{self.farm.tmp}/redis.sock",
                            "--listen", self.url, "--listen", "tcp://127.0.0.1:0", "--ready-file", ready, "--default-model", "sim")
        wait_for("the coordinator is ready", lambda: ready.exists() and ready.read_text())
        return p, ready.read_text().split()

    def worker(self, name, where, engine="sim:ms=20", *more):
        return self.farm.start(BIN / "kiln-worker", "--join", where, "--name", name, "--engine", engine, *more)

    def kiln(self, *args, **more):
        return self.farm.ok(*args, "--farm", self.url, **more)

    def test_a_coordinator_killed_and_started_again_finds_its_workers(self):
        first, listeners = self.coordinator()
        tcp = next(l for l in listeners if l.startswith("tcp://127.0.0.1:"))
        workers = [self.worker("one", self.url), self.worker("two", tcp, "sim:ms=20", "--token", self.farm.token("--farm", self.url))]
        out = self.farm.tmp / "out"
        render = self.farm.start("render", self.farm.prompts(COUNT), "-o", out, "--farm", self.url)
        self.await_pictures(out, 10)
        first.kill()
        first.wait()
        second, _ = self.coordinator()
        self.finish(render)
        self.check_folder(out, COUNT)
        self.assertTrue(all(w.poll() is None for w in workers))
        # the second worker's port is gone with the first coordinator; the first finds the second coordinator by itself
        wait_for("the worker is there again", lambda: "one" in self.kiln("workers"))
        second.send_signal(signal.SIGTERM)
        self.assertEqual(second.wait(20), 0)

    def test_a_worker_asked_to_end_hands_back_what_it_has_not_begun(self):
        self.coordinator()
        worker = self.worker("one", self.url, "sim:ms=50")
        out = self.farm.tmp / "out"
        render = self.farm.start("render", self.farm.prompts(COUNT), "-o", out, "--farm", self.url)
        self.await_pictures(out, 5)
        other = self.worker("two", self.url, "sim:ms=5")
        worker.send_signal(signal.SIGTERM)
        self.assertEqual(worker.wait(20), 0)
        self.finish(render)
        self.check_folder(out, COUNT)
        self.assertEqual({l["attempt"] for l in manifest(out)} - {1, 2}, set())
        self.assertIsNone(other.poll())

    def test_the_farms_folder_is_enough_when_it_tells_the_endpoint(self):
        self.coordinator()
        (self.farm.dir / "endpoint").write_text(self.url + "\n")
        self.worker("one", self.farm.dir)
        wait_for("the worker is there", lambda: "one" in self.farm.ok("workers"))
        out = self.farm.tmp / "out"
        self.farm.ok("render", self.farm.prompts(10), "-o", out)
        self.check_folder(out, 10)
        self.assertEqual({l["worker"] for l in manifest(out)}, {"one"})

    def test_a_second_coordinator_on_the_same_redis_is_refused(self):
        first, _ = self.coordinator()
        second = self.farm.start(BIN / "kiln-coordinator", "--dir", self.farm.dir, "--redis", f"unix:{self.farm.tmp}/redis.sock",
                                 "--listen", f"ipc://{self.farm.tmp}/c2")
        _, err = self.finish(second, status=3)
        self.assertIn("another coordinator", err)
        self.assertIsNone(first.poll())


if __name__ == "__main__":
    sys.exit(main())

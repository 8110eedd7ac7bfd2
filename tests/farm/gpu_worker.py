#!/usr/bin/env python3
"""A worker with a GPU in a farm of programs, on a machine that has none: kiln-worker built on the tests' shim (tests/gpu), which
computes on the host what the device would. The model is a golden pipeline's."""
import os
import pathlib
import signal
import subprocess
import sys

from farm import BIN, FarmTest, main, manifest, wait_for

MODEL = pathlib.Path(__file__).parents[1] / "golden" / "pipelines" / "sd1"
WORKER = BIN / "kiln-worker-shim"
COUNT = 12


class GpuWorker(FarmTest):
    def setUp(self):
        super().setUp()
        if not WORKER.exists():
            self.skipTest(f"no {WORKER.name} in {BIN}")
        tmp = self.farm.tmp
        redis = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(tmp / "redis.sock"), "--dir", str(tmp), "--appendonly", "yes",
             "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no", "--maxmemory-policy", "noeviction", "--save", ""],
            stdout=subprocess.DEVNULL)
        self.addCleanup(lambda: (redis.kill(), redis.wait()))
        self.url = f"ipc://{tmp}/c"
        ready = tmp / "ready"
        self.farm.start(BIN / "kiln-coordinator", "--dir", self.farm.dir, "--redis", f"unix:{tmp}/redis.sock", "--listen", self.url,
                        "--ready-file", ready)
        wait_for("the coordinator is ready", lambda: ready.exists() and ready.read_text())

    def worker(self, name, fail=None):
        env = dict(self.farm.env)
        if fail:
            env["KX_SHIM_FAIL"] = fail
        return self.farm.start(WORKER, "--join", self.url, "--name", name, "--device", "0", "--model", MODEL, env=env)

    def render(self, out):
        prompts = self.farm.tmp / "prompts.txt"
        prompts.write_text("".join(f"a red circle {i} --seed {i} --cfg {1 + i % 3}\n" for i in range(COUNT)))
        return self.farm.start("render", prompts, "-o", out, "--farm", self.url, "--model", MODEL, "--steps", "2", "--sampler", "Euler")

    def test_its_pictures_come_back_and_two_workers_agree_on_every_byte(self):
        one = self.worker("one")
        self.finish(self.render(self.farm.tmp / "a"), timeout=120)
        lines = self.check_folder(self.farm.tmp / "a", COUNT)
        self.farm.ok("verify", self.farm.tmp / "a")
        for line in lines:
            self.assertRegex(line["backend"], r"^cuda-sm\d+-[0-9a-f]{6}$")
        self.worker("two")
        wait_for("the second is there", lambda: "two" in self.farm.ok("workers", "--farm", self.url))
        self.finish(self.render(self.farm.tmp / "b"), timeout=120)
        again = manifest(self.farm.tmp / "b")
        self.assertEqual([l["pixels_sha256"] for l in again], [l["pixels_sha256"] for l in lines])
        one.send_signal(signal.SIGTERM)
        _, err = self.finish(one)
        self.assertRegex(err, r"gpu_idle share=0\.\d+ of_s=")

    def test_a_device_that_fails_costs_its_process_and_the_worker_is_held_for_it(self):
        broken = self.worker("one", fail="cudaGraphLaunch:2")
        render = self.render(self.farm.tmp / "out")
        held = lambda: [w for w in self.farm.json("workers", "--farm", self.url) if w["id"] == "one" and w.get("hold_reason")]
        self.assertIn("the device failed while it rendered this image", wait_for("it is held", held)[0]["hold_reason"])
        self.worker("two")
        self.finish(render, timeout=120)
        self.check_folder(self.farm.tmp / "out", COUNT)
        self.farm.ok("verify", self.farm.tmp / "out")
        self.assertIsNone(broken.poll(), "the worker itself goes on")
        broken.send_signal(signal.SIGTERM)
        _, err = self.finish(broken)
        self.assertRegex(err, r"engine_ended pid=\d+ reason=\".*an illegal memory access")
        self.assertGreater(err.count("engine_started"), 1)


if __name__ == "__main__":
    sys.exit(main())

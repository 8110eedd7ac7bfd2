#!/usr/bin/env python3
"""A machine with several GPUs, which are played by a shared object in NVML's place: kiln-worker --device all."""
import os
import signal
import sys

from farm import BIN, FarmTest, alive, main, wait_for

COUNT = 200


class Devices(FarmTest):
    def test_a_machine_shows_its_gpus_and_outlives_a_killed_one(self):
        farm = self.farm
        farm.ok("up", "--workers", 0)
        env = dict(farm.env, LD_LIBRARY_PATH=os.environ["KILN_FAKE_NVML_DIR"])
        env.pop("CUDA_VISIBLE_DEVICES", None)
        gpus = farm.start(BIN / "kiln-worker", "--join", farm.dir, "--name", "host", "--device", "all", "--engine", "sim:ms=20", env=env)
        workers = lambda: {w["id"]: w for w in farm.json("workers") if w["state"] != "lost"}
        wait_for("both GPUs have joined", lambda: set(workers()) == {"host-gpu0", "host-gpu1"})
        wait_for("their readings are known", lambda: all(w["temperature_c"] for w in workers().values()))
        for i, w in enumerate(workers()[k] for k in sorted(workers())):
            self.assertEqual(w["device_uuid"], f"GPU-{i:08x}-1111-2222-3333-444444444444")
            self.assertEqual((w["memory_used"], w["memory_total"]), (10 << 30, 80 << 30))
            self.assertEqual((w["power_w"], w["sm_mhz"], w["memory_mhz"]), (350.0 if i == 0 else 350.001, 1980, 2619))
            self.assertGreaterEqual(w["temperature_c"], 40)
        self.assertRegex(farm.ok("workers"), r"host-gpu0 .* [0-9]+ °C 350 W 10\.0/80\.0 GiB\n")
        self.assertRegex(farm.ok("top"), r"°C 350 W 10\.0/80\.0 GiB")

        out = farm.tmp / "out"
        render = farm.start("render", farm.prompts(COUNT), "-o", out, "--model", "sim")
        self.await_pictures(out, 10)
        victim = workers()["host-gpu1"]["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_for("the killed one is started again", lambda: workers().get("host-gpu1", {}).get("pid", victim) != victim)
        self.finish(render)
        self.check_folder(out, COUNT)
        pids = [w["pid"] for w in workers().values()]
        gpus.send_signal(signal.SIGTERM)
        self.assertEqual(gpus.wait(30), 0)
        self.assertFalse(any(map(alive, pids)))

    def test_a_farm_starts_a_worker_for_each_gpu(self):
        farm = self.farm
        farm.env["LD_LIBRARY_PATH"] = os.environ["KILN_FAKE_NVML_DIR"]
        farm.env["FAKE_GPUS"] = "3"
        farm.env.pop("CUDA_VISIBLE_DEVICES", None)
        farm.ok("up", "--device", "all", "--engine", "sim:ms=1")
        uuids = lambda: {w["id"]: w["device_uuid"][:12] for w in farm.json("workers")}
        self.assertEqual(uuids(), {f"worker-{i}": f"GPU-0000000{i}" for i in range(3)})
        farm.ok("down")
        farm.ok("up", "--device", "2,GPU-00000000", "--engine", "sim:ms=1")
        self.assertEqual(uuids(), {"worker-0": "GPU-00000002", "worker-1": "GPU-00000000"})
        farm.ok("down")
        out = farm.tmp / "out"
        farm.ok("render", farm.prompts(5), "-o", out, "--device", "1", "--engine", "sim:ms=1")
        self.check_folder(out, 5)

    def test_a_device_that_is_not_there_is_told_and_nothing_is_started(self):
        farm = self.farm
        farm.env["LD_LIBRARY_PATH"] = os.environ["KILN_FAKE_NVML_DIR"]
        farm.env["FAKE_GPUS"] = "0"
        for words, text in ((("--device", "all"), "there is no GPU here"), (("--device", "0,0"), "0 is named twice"),
                            (("--device", "0,"), "none of cpu, all"), (("--device", ""), "none of cpu, all"),
                            (("--device", "0", "--workers", "2"), "one worker a GPU")):
            p = farm.run("up", "--engine", "sim", *words)
            self.assertEqual(p.returncode, 1, p.stderr)
            self.assertIn(text, p.stderr)
        p = farm.run("render", "-p", "x", "--engine", "sim", "--device", "all")
        self.assertEqual(p.returncode, 1, p.stderr)

    def test_a_worker_without_a_gpu_has_no_readings(self):
        self.farm.up("sim:ms=1", 1)
        w = self.farm.json("workers")[0]
        self.assertEqual([w[k] for k in ("device_uuid", "memory_total", "temperature_c", "power_w", "sm_mhz")], [None] * 5)
        self.assertNotIn("DEVICE", self.farm.ok("workers"))


if __name__ == "__main__":
    sys.exit(main())

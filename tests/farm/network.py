#!/usr/bin/env python3
"""A worker on another host, as near as one machine comes to it: a network namespace of its own, over TCP."""
import os
import socket
import subprocess
import sys

from farm import BIN, FarmTest, main, manifest, wait_for

COUNT = 150


def free_port(host):
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


class Network(FarmTest):
    def setUp(self):
        super().setUp()
        self.host = subprocess.Popen(["unshare", "-n", "sleep", "600"], stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.stop)
        pid = self.host.pid
        try:
            wait_for("a namespace", lambda: self.host.poll() is not None or
                     os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"), 5)
        except (OSError, AssertionError):
            self.skipTest("no network namespace of its own is to be had here")
        net = f"10.{200 + pid % 50}.{pid // 50 % 250}"
        self.here, self.there = f"{net}.1", f"{net}.2"
        name = f"kn{pid}"
        inside = ["nsenter", "-t", str(pid), "-n"]
        for words in ([["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid)],
                       ["ip", "addr", "add", f"{self.here}/30", "dev", name], ["ip", "link", "set", name, "up"],
                       [*inside, "ip", "addr", "add", f"{self.there}/30", "dev", "eth0"], [*inside, "ip", "link", "set", "eth0", "up"]]):
            p = subprocess.run(words, capture_output=True, text=True)
            if p.returncode:
                self.skipTest(f"{' '.join(words)}: {p.stderr.strip()}")
        self.inside = [f"/usr/bin/{inside[0]}", *inside[1:]]

    def stop(self):
        self.host.kill()
        self.host.wait()
        self.host.stderr.close()

    def test_a_worker_over_tcp_renders_and_a_client_over_tcp_fetches(self):
        farm = self.farm
        port = free_port(self.here)
        url = f"tcp://{self.here}:{port}"
        farm.ok("up", "--workers", "0", "--listen", url, "--model", "sim")
        farm.start(*self.inside, BIN / "kiln-worker", "--join", url, "--token", farm.token("--worker"), "--name", "far",
                   "--engine", "sim:ms=10")
        wait_for("the worker has joined", lambda: [w["id"] for w in farm.json("workers")] == ["far"])
        id = farm.ok("submit", farm.prompts(COUNT)).strip()
        wait_for("it renders", lambda: farm.json("status", id)["done"] > 10)
        # a cable that is pulled for a moment loses nothing
        subprocess.run(["ip", "link", "set", f"kn{self.host.pid}", "down"], check=True)
        farm.kill("coordinator")
        subprocess.run(["ip", "link", "set", f"kn{self.host.pid}", "up"], check=True)
        farm.ok("wait", id)
        out = farm.tmp / "out"
        fetch = farm.start(*self.inside, BIN / "kiln", "fetch", id, "-o", out, "--farm", url, "--token", farm.token("--admin"))
        self.finish(fetch)
        self.check_folder(out, COUNT)
        farm.ok("verify", out)
        self.assertEqual({l["worker"] for l in manifest(out)}, {"far"})
        # over the network the pictures are copies, not links to the farm's objects
        self.assertEqual({p.stat().st_nlink for p in (out / "images").glob("*.png")}, {1})


if __name__ == "__main__":
    sys.exit(main())

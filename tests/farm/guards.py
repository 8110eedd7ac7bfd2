#!/usr/bin/env python3
"""What a farm refuses: a Redis that may lose what it was given, and --insecure."""
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys

from farm import FarmTest, main, wait_for

GOOD = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no", "maxmemory-policy": "noeviction"}


class Guards(FarmTest):
    def redis(self, **settings):
        path = self.farm.tmp / "redis.sock"
        words = ["redis-server", "--port", "0", "--unixsocket", str(path), "--dir", str(self.farm.tmp), "--save", ""]
        for name, value in {**GOOD, **{k.replace("_", "-"): v for k, v in settings.items()}}.items():
            words += [f"--{name}", value]
        p = subprocess.Popen(words, stdout=subprocess.DEVNULL)

        def end():
            p.kill()
            p.wait()
        self.addCleanup(end)

        def answers():
            with socket.socket(socket.AF_UNIX) as s:
                try:
                    s.connect(str(path))
                    s.sendall(b"PING\r\n")
                    return s.recv(5) == b"+PONG"
                except OSError:
                    return False
        wait_for("redis answers", answers)
        return f"unix:{path}", end

    def test_a_redis_of_ones_own_with_the_right_settings_is_used(self):
        url, _ = self.redis()
        self.farm.up("sim:ms=1", 1, "--redis", url)
        self.assertEqual(self.farm.pid("redis"), 0)
        id = self.farm.ok("submit", self.farm.prompts(5)).strip()
        self.farm.ok("wait", id)

    def test_each_wrong_setting_is_refused_by_name(self):
        for name, value in [("appendonly", "no"), ("appendfsync", "everysec"), ("no-appendfsync-on-rewrite", "yes"),
                            ("maxmemory-policy", "allkeys-lru")]:
            with self.subTest(name):
                url, end = self.redis(**{name.replace("-", "_"): value})
                p = self.farm.run("up", "--engine", "sim", "--redis", url)
                self.assertEqual(p.returncode, 1, p.stderr)
                self.assertIn(name, p.stderr)
                self.assertEqual(self.farm.pid("supervisor"), 0)
                self.farm.ok("up", "--engine", "sim", "--workers", "1", "--redis", url, "--allow-volatile")
                self.farm.ok("down")
                end()

    def test_no_redis_there_is_said(self):
        p = self.farm.run("up", "--engine", "sim", "--redis", f"unix:{self.farm.tmp}/none.sock", timeout=100)
        self.assertEqual(p.returncode, 1, p.stderr)
        self.assertIn("none.sock", p.stderr)

    def test_insecure_is_gone_and_says_how_to_change(self):
        p = self.farm.run("up", "--engine", "sim", "--listen", "tcp://0.0.0.0:0", "--insecure")
        self.assertEqual(p.returncode, 1, p.stderr)
        for command in ("kiln up --listen", "kiln token new --worker", "kiln-worker --join"):
            self.assertIn(command, p.stderr)
        self.assertEqual(self.farm.pid("supervisor"), 0)
        self.farm.ok("up", "--engine", "sim", "--workers", "1", "--listen", "tcp://127.0.0.1:*")

    def test_sockets_and_folder_are_this_users_alone(self):
        endpoint = self.farm.up("sim:ms=1", 1)
        socket_path = pathlib.Path(endpoint.removeprefix("ipc://"))
        self.assertEqual(stat.S_IMODE(os.stat(self.farm.dir).st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(os.stat(socket_path.parent).st_mode), 0o700)
        for path in socket_path.parent.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode) & 0o077, 0, path)

    def test_a_program_that_is_missing_is_named(self):
        self.assertTrue(shutil.which("redis-server"))
        empty = self.farm.tmp / "empty"
        empty.mkdir()
        self.farm.env["PATH"] = str(empty)
        p = self.farm.run("render", "-p", "x", "--engine", "sim")
        self.assertEqual(p.returncode, 1, p.stderr)
        self.assertIn("redis-server", p.stderr)


if __name__ == "__main__":
    sys.exit(main())

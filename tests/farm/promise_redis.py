#!/usr/bin/env python3
"""A Redis of somebody's own: with a user and a password, in a data base of its own, behind TLS."""
import pathlib
import re
import shutil
import subprocess
import sys

from farm import FarmTest, main, wait_for

PASSWORD = "pass/word@7f3a91c2"
RULES = "~kiln:* +@read +@write +@scripting +info +config|get +ping +select +auth"


class Redis(FarmTest):
    def setUp(self):
        super().setUp()
        self.server = None
        (self.farm.tmp / "redis").mkdir()

    def tearDown(self):
        if self.server:
            self.server.kill()
            self.server.wait()
        super().tearDown()

    def begin(self, *more):
        """Starts it; its port, which is any free one, is read from its log."""
        folder = self.farm.tmp / "redis"
        conf, log = folder / "redis.conf", folder / "log"
        lines = ["bind 127.0.0.1", f"dir {folder}", f"logfile {log}", "appendonly yes", "appendfsync always", "save ''",
                 f"unixsocket {folder}/sock", f"user kiln on >{PASSWORD} {RULES}", "user default off", *more]
        conf.write_text("\n".join(lines) + "\n")
        self.server = subprocess.Popen(["redis-server", conf])
        wait_for("Redis is there", lambda: log.exists() and "eady to accept" in log.read_text())

    def address(self, text, mode=0o600):
        path = self.farm.tmp / "address"
        path.write_text(text + "\n")
        path.chmod(mode)
        return f"@{path}"

    def render(self, where):
        self.farm.ok("up", "--engine", "sim:ms=1", "--workers", "1", "--redis", where)
        batch = self.farm.ok("submit", self.farm.prompts(20), "--model", "sim", "--size", "64x64").strip()
        self.farm.ok("wait", batch)
        self.farm.kill_and_await("coordinator")
        self.assertEqual(self.farm.json("status", batch)["done"], 20)
        lines = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
        environments = b"".join(self.read(p) for p in pathlib.Path("/proc").glob("[0-9]*/environ"))
        for secret in PASSWORD, PASSWORD.replace("/", "%2F").replace("@", "%40"):
            for place in lines, environments.decode(errors="replace"), self.farm.logs(100000), self.farm.ok("doctor"):
                self.assertNotIn(secret, place)

    @staticmethod
    def read(path):
        try:
            return path.read_bytes()
        except OSError:
            return b""

    def url(self, scheme, place):
        return f"{scheme}kiln:{PASSWORD.replace('/', '%2F').replace('@', '%40')}@{place}"

    def test_a_user_and_a_password_over_a_unix_socket_in_a_data_base_of_its_own(self):
        self.begin("port 0")
        sock = self.farm.tmp / "redis/sock"
        where = self.address(self.url("unix://", sock), 0o644)
        self.assertIn("chmod 600", self.farm.run("up", "--engine", "sim:ms=1", "--redis", where).stderr)
        self.assertIn("@FILE", self.farm.run("up", "--engine", "sim:ms=1", "--redis", f"unix://kiln:another@{sock}").stderr)
        self.render(self.address(self.url("unix://", sock)))

    def test_a_wrong_password_is_told(self):
        self.begin("port 0")
        p = self.farm.run("up", "--engine", "sim:ms=1", "--workers", "1", "--redis",
                          self.address(f"unix://kiln:wrong@{self.farm.tmp}/redis/sock"))
        self.assertNotEqual(p.returncode, 0)
        self.assertIn("WRONGPASS", p.stderr + self.farm.logs(50))

    def test_tls_is_spoken_and_a_strange_certificate_is_not_taken(self):
        if not shutil.which("openssl"):
            self.skipTest("no openssl here")
        folder, port = self.farm.tmp / "redis", self.free_port()
        for name in "ours", "strange":
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", folder / f"{name}.key",
                            "-out", folder / f"{name}.crt"], check=True, capture_output=True)
        self.begin("port 0", f"tls-port {port}", f"tls-cert-file {folder}/ours.crt", f"tls-key-file {folder}/ours.key",
                   "tls-auth-clients no")
        where = self.address(self.url("rediss://", f"localhost:{port}/3"))
        self.farm.env["SSL_CERT_FILE"] = str(folder / "strange.crt")
        p = self.farm.run("up", "--engine", "sim:ms=1", "--workers", "1", "--redis", where)
        self.assertNotEqual(p.returncode, 0)
        self.assertIn("its certificate is not taken", p.stderr + self.farm.logs(50))
        self.farm.env["SSL_CERT_FILE"] = str(folder / "ours.crt")
        self.render(where)
        self.assertFalse(list(pathlib.Path("/tmp").glob("kiln-tls-*")))

    @staticmethod
    def free_port():
        import socket
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())

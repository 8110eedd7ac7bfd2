#!/usr/bin/env python3
"""Keys: who comes on a farm over TCP, as whom, and how somebody is thrown out. Programs as people start them."""
import os
import pathlib
import re
import socket
import stat
import subprocess
import sys
import time

from farm import BIN, FarmTest, alive, main, manifest, wait_for


def free_port(host="127.0.0.1", family=socket.AF_INET):
    with socket.socket(family) as s:
        s.bind((host, 0))
        return s.getsockname()[1]


class Keys(FarmTest):
    def begin(self, host="127.0.0.1", port=None, *more):
        self.url = f"tcp://{host}:{port or free_port()}"
        self.farm.ok("up", "--workers", "0", "--model", "sim", "--listen", self.url, *more)

    def home(self, name):
        """The environment of another machine, as far as keys go."""
        path = self.farm.tmp / name
        path.mkdir(exist_ok=True)
        return {**self.farm.env, "HOME": str(path), "KILN_HOME": str(path / "none")}

    def worker(self, home, *more, engine="sim:ms=20", url=None, env=None):
        return self.farm.start(BIN / "kiln-worker", "--join", url or self.url, "--engine", engine, *more,
                               env={**self.home(home), **(env or {})})

    def kiln(self, home, *args, status=0, input=None):
        """A command of somebody on another machine."""
        words = [str(a) for a in (BIN / "kiln", *args, "--farm", self.url)]
        p = subprocess.run(words, env=self.home(home), cwd=self.farm.tmp, input=input, capture_output=True, text=True, timeout=60)
        self.assertEqual(p.returncode, status, f"{args}\n{p.stdout}{p.stderr}{self.farm.logs()}")
        return p

    def names(self):
        return sorted(w["id"] for w in self.farm.json("workers") if w["state"] != "lost")

    def key_file(self, home):
        return next((self.farm.tmp / home / ".kiln/keys").glob("*.key"))

    def log(self):
        return (self.farm.dir / "log" / "coordinator.log").read_text()

    # ---- coming in

    def test_a_worker_enrols_once_and_needs_no_token_afterwards(self):
        self.begin()
        token = self.farm.token("--name", "gpu3")
        first = self.worker("one", "--token", token)
        wait_for("it has joined under its key's name", lambda: self.names() == ["gpu3"])
        key = self.key_file("one")
        self.assertEqual(stat.S_IMODE(key.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(key.parent.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE((self.farm.dir / "keys").stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE((self.farm.dir / "keys/coordinator.key").stat().st_mode), 0o600)
        first.kill()
        first.wait()
        # the coordinator dies too: the list of keys is the store's
        self.farm.kill_and_await("coordinator")
        self.worker("one")
        id = self.farm.ok("submit", self.farm.prompts(20)).strip()
        self.farm.ok("wait", id)
        self.assertEqual(self.names(), ["gpu3"])
        # the same key with the same token, though it is used up: that is no second use
        again = self.worker("one", "--token", token, "--name", "gpu3-1")
        wait_for("it came in", lambda: self.names() == ["gpu3", "gpu3-1"])
        self.assertIsNone(again.poll())
        self.assertEqual([t["uses"] for t in self.farm.json("token", "ls")], [0])
        self.assertEqual([(k["name"], k["role"]) for k in self.farm.json("keys", "ls")], [("gpu3", "worker")])
        # another machine with it is one too many
        p = self.worker("two", "--token", token)
        _, err = self.finish(p, status=5)
        self.assertIn("used up", err)

    def test_a_token_comes_by_file_pipe_or_variable_and_never_as_a_word(self):
        self.begin()
        text = self.farm.ok("token", "new", "--uses", "3", "--client")
        literal = text.strip()
        for program in ([BIN / "kiln-worker", "--join", self.url, "--engine", "sim", "--token", literal],
                        [BIN / "kiln", "status", "--farm", self.url, "--token", literal]):
            p = subprocess.run(program, env=self.home("lit"), capture_output=True, text=True, timeout=30)
            self.assertEqual(p.returncode, 1)
            self.assertIn("@FILE", p.stderr)
            self.assertIn("KILN_TOKEN", p.stderr)
            self.assertNotIn(literal.split(".")[3], p.stderr)
        self.kiln("pipe", "status", "--token", "-", input=text)
        p = subprocess.run([BIN / "kiln", "status", "--farm", self.url], env={**self.home("var"), "KILN_TOKEN": literal},
                           capture_output=True, text=True, timeout=30)
        self.assertEqual(p.returncode, 0, p.stderr)
        self.kiln("var", "status")
        p = self.kiln("nobody", "status", status=1)
        self.assertIn("kiln token new", p.stderr)

    def test_each_refusal_has_words_within_3_seconds(self):
        self.begin()
        expired = self.farm.token("--ttl", "1s", "--client")
        removed = self.farm.token("--client")
        good = self.farm.token("--client")
        self.farm.ok("token", "rm", pathlib.Path(removed[1:]).read_text().split(".")[2])
        text = pathlib.Path(good[1:]).read_text().strip().split(".")
        wrong = self.farm.tmp / "wrong"
        wrong.write_text(".".join([text[0], text[1], text[2], "0" * 32]))
        time.sleep(1.1) # a token's time is counted in seconds
        for name, token, said in [("a", expired, "expired"), ("b", removed, "no such token"), ("c", f"@{wrong}", "no such token")]:
            begun = time.monotonic()
            p = self.kiln(name, "status", "--token", token, status=6)
            self.assertLess(time.monotonic() - begun, 3)
            self.assertIn(said, p.stderr)
        wait_for("the log tells of them", lambda: len(re.findall(r"enrol_refused address=127.0.0.1 key=[0-9a-f]{16}", self.log())) == 3)
        # a farm with another key at that endpoint: the token's secret is not sent to it
        other = self.farm.tmp / "other"
        other.write_text(".".join([text[0], "11" * 32, text[2], text[3]]))
        p = self.farm.start(BIN / "kiln", "status", "--farm", self.url, "--token", f"@{other}", env=self.home("d"))
        begun = time.monotonic()
        line = p.stderr.readline()
        self.assertLess(time.monotonic() - begun, 3)
        self.assertIn("does not have the key that is expected", line)

    def test_the_coordinators_key_must_be_its_users_alone(self):
        self.begin()
        self.farm.ok("down")
        key = self.farm.dir / "keys/coordinator.key"
        key.chmod(0o644)
        p = self.farm.run("up", "--workers", "0", "--model", "sim", "--listen", self.url)
        self.assertEqual(p.returncode, 1)
        self.assertIn("chmod 0600", p.stderr)
        key.chmod(0o600)
        self.farm.ok("up", "--workers", "0", "--model", "sim", "--listen", self.url)

    # ---- being thrown out

    def test_a_revoked_key_is_out_within_a_second_and_its_work_goes_back(self):
        self.begin()
        bad = self.worker("bad", "--token", self.farm.token("--name", "bad"), engine="sim:ms=300")
        wait_for("it has joined", lambda: self.names() == ["bad"])
        id = self.farm.ok("submit", self.farm.prompts(30)).strip()
        wait_for("it renders", lambda: self.farm.json("status", id)["running"] > 0)
        begun = time.monotonic()
        self.farm.ok("keys", "rm", "bad")
        wait_for("its work is queued again", lambda: self.farm.json("status", id)["running"] == 0, 1)
        self.assertLess(time.monotonic() - begun, 1)
        done = self.farm.json("status", id)["done"]
        _, err = self.finish(bad, status=5)
        self.assertIn("does not know the key", err)
        self.assertEqual(self.farm.json("status", id)["done"], done)
        self.worker("good", "--token", self.farm.token("--name", "good"))
        self.farm.ok("wait", id)
        out = self.farm.tmp / "out"
        self.farm.ok("fetch", id, "-o", out)
        self.assertNotIn("task_charged", self.log()) # nobody is to blame
        # the same machine needs another token, and then it is welcome
        self.finish(self.worker("bad"), status=5)
        self.worker("bad", "--token", self.farm.token("--name", "bad"))
        # (other workers have taken the first places on this machine, so that its name has a number)
        wait_for("it is back", lambda: [n.split("-")[0] for n in self.names()] == ["bad", "good"])

    # ---- roles

    def test_each_role_may_what_it_says(self):
        self.begin()
        self.worker("w", "--token", self.farm.token("--name", "w"), engine="sim:ms=5")
        for who, role in (("ann", "--client"), ("bob", "--client"), ("root", "--admin"), ("eye", "--read")):
            self.kiln(who, "status", "--token", self.farm.token(role, "--name", who))
        prompts = self.farm.prompts(10)
        mine = self.kiln("ann", "submit", prompts).stdout.strip()
        self.kiln("ann", "wait", mine)
        self.assertIn(mine[:8], self.kiln("ann", "status").stdout)
        out = self.farm.tmp / "ann-out"
        self.kiln("ann", "fetch", mine, "-o", out)
        self.check_folder(out, 10)
        # another client neither sees it nor fetches nor cancels it, and cannot say that it exists
        self.assertNotIn(mine[:8], self.kiln("bob", "status").stdout)
        for words in (["status", mine], ["fetch", mine, "-o", self.farm.tmp / "bob-out"], ["cancel", mine], ["rm", mine], ["explain", mine]):
            p = self.kiln("bob", *words, status=3)
            self.assertFalse((self.farm.tmp / "bob-out").exists(), p.stderr)
        # batches of nobody's key are the admin's; the reader reads all, and changes nothing
        ours = self.farm.ok("submit", prompts).strip()
        self.farm.ok("wait", ours)
        self.assertNotIn(ours[:8], self.kiln("ann", "status").stdout)
        for who in ("root", "eye"):
            self.assertIn(mine[:8], self.kiln(who, "status").stdout)
            self.assertIn(ours[:8], self.kiln(who, "status").stdout)
            self.kiln(who, "fetch", ours, "-o", self.farm.tmp / f"{who}-out")
        for who, words in (("eye", ["submit", prompts]), ("eye", ["cancel", ours]), ("ann", ["drain", "w"]), ("ann", ["token", "new"]),
                           ("ann", ["keys"]), ("eye", ["keys", "rm", "w"])):
            p = self.kiln(who, *words, status=6)
            self.assertIn("this is for: ", p.stderr)
        self.kiln("root", "keys", "rm", "bob")
        self.assertIn("does not know the key", self.kiln("bob", "status", status=6).stderr)
        self.kiln("root", "rm", mine)
        # owners outlive the coordinator
        again = self.kiln("ann", "submit", self.farm.prompts(3, "b.txt", " again")).stdout.strip()
        self.farm.kill_and_await("coordinator")
        self.kiln("ann", "wait", again)
        self.assertEqual(self.kiln("eye", "cancel", again, status=6).stdout, "")
        # a worker's key is no client's, nor the other way round
        self.assertIn("needs to be client", self.kiln("x", "status", "--token", self.farm.token("--worker"), status=6).stderr)
        _, err = self.finish(self.worker("y", "--token", self.farm.token("--client")), status=5)
        self.assertIn("needs to be worker", err)

    def test_a_name_belongs_to_its_key(self):
        self.begin()
        self.worker("one", "--token", self.farm.token("--name", "gpu"))
        wait_for("it has joined", lambda: self.names() == ["gpu"])
        for name in ("gpu", "gpu-7"): # a person chose it, and it is another key's
            _, err = self.finish(self.worker("two", "--name", name, "--token", self.farm.token()), status=4)
            self.assertIn("another key's name", err)
        _, err = self.finish(self.worker("two", "--name", "gpu", "--token", self.farm.token("--name", "fan")), status=5)
        self.assertIn("has the name fan", err)
        self.worker("two", "--name", "fan-1")
        wait_for("it has a name of its own", lambda: self.names() == ["fan-1", "gpu"])

    # ---- the network

    def test_ipv6_and_two_ports_are_enough(self):
        try:
            port, data = free_port("::1", socket.AF_INET6), free_port("::1", socket.AF_INET6)
        except OSError:
            self.skipTest("this machine has no IPv6")
        self.begin("[::1]", port, "--data-port", data)
        worker = self.worker("six", "--token", self.farm.token("--name", "six"))
        id = self.farm.ok("submit", self.farm.prompts(20)).strip()
        self.farm.ok("wait", id)
        ports = set()
        for path in ("/proc/net/tcp6",):
            inodes = {os.stat(f"/proc/{worker.pid}/fd/{fd}").st_ino for fd in os.listdir(f"/proc/{worker.pid}/fd")}
            for line in pathlib.Path(path).read_text().splitlines()[1:]:
                f = line.split()
                if int(f[9]) in inodes and f[3] == "01":
                    ports.add(int(f[2].split(":")[1], 16))
        self.assertEqual(ports, {port, data}) # outgoing, and to these alone

    def test_of_several_endpoints_the_one_that_answers_is_found(self):
        self.begin()
        dead = f"tcp://127.0.0.1:{free_port()}"
        self.worker("far", "--token", self.farm.token("--name", "far"), url=f"{dead},{self.url}")
        wait_for("it has joined", lambda: self.names() == ["far"])

    # ---- secrets

    def test_no_secret_is_anywhere_but_in_its_file(self):
        self.begin()
        tokens = [self.farm.token("--name", f"w{i}") for i in range(2)] + [self.farm.token("--client")]
        texts = [pathlib.Path(t[1:]).read_text().strip() for t in tokens]
        one = self.worker("w0", "--token", tokens[0])
        two = self.worker("w1", env={"KILN_TOKEN": texts[1]})
        wait_for("they have joined", lambda: self.names() == ["w0", "w1"])
        hook = self.farm.tmp / "hook"
        hook.write_text("#!/bin/sh\nenv\n")
        hook.chmod(0o755)
        said = [self.kiln("c", "status", "--token", tokens[2]).stderr]
        p = self.kiln("c", "submit", self.farm.prompts(5))
        w = subprocess.run([BIN / "kiln", "wait", p.stdout.strip(), "--on-done", str(hook), "--farm", self.url],
                           env={**self.home("c"), "KILN_TOKEN": texts[2]}, capture_output=True, text=True, timeout=60)
        said += [w.stdout, w.stderr, self.farm.run("doctor").stdout, self.farm.run("doctor", "--json").stdout,
                 self.farm.ok("token", "ls", "--json"), self.farm.ok("keys", "ls", "--json")]
        pids = [int(p) for p in os.listdir("/proc") if p.isdigit()]
        ours = [p for p in pids if self.is_ours(p)]
        self.assertGreaterEqual(len(ours), 4)
        for pid in ours:
            for name in ("cmdline", "environ"):
                try:
                    said.append(pathlib.Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace"))
                except OSError:
                    pass
        for p in (one, two):
            p.terminate()
        said += [t for p in (one, two) for t in p.communicate(timeout=30)]
        said += [f.read_text(errors="replace") for f in self.farm.dir.glob("log/*")]
        dump = subprocess.run(["redis-cli", "-s", next(pathlib.Path(self.farm.ok("up", "--workers", "0").strip()[6:]).parent.glob("*redis*")),
                               "hgetall", "kiln:tokens"], capture_output=True, text=True)
        self.assertIn("w0", dump.stdout)
        said.append(dump.stdout)
        secrets = [t.split(".")[3] for t in texts]
        secrets += [f.read_text().split("\n")[1] for f in self.farm.tmp.glob("**/keys/*.key")]
        self.assertGreaterEqual(len(secrets), 3 + 4)
        for s in secrets:
            self.assertGreaterEqual(len(s), 32)
            for text in said:
                self.assertNotIn(s, text)

    def is_ours(self, pid):
        try:
            return f"HOME={self.farm.tmp}".encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


if __name__ == "__main__":
    sys.exit(main())

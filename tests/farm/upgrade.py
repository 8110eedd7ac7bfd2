#!/usr/bin/env python3
"""Farms of mixed versions: today's programs with those of earlier commits, in every mix.

    upgrade.py                    uses the programs of earlier commits that are there, else says skipped
    upgrade.py --build [WORD]    builds them first, from git, below the build folder (minutes)

The programs of commit C lie in $KILN_OLD/C/build/bin; KILN_OLD is "old" in the build folder where nothing is said. The judge is the
folder that comes out: each image once, its file's digest as the manifest says, and `kiln verify` of today and of then.
"""
import os
import pathlib
import subprocess
import sys

import farm
from farm import BIN, FarmTest, main, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
OLD = pathlib.Path(os.environ.get("KILN_OLD", BIN.parent / "old"))
# The last commit before features were told, and an earlier one.
COMMITS = ["5a66408", "37a5f17"]
PROGRAMS = ("kiln", "kiln-coordinator", "kiln-worker")


def programs(commit):
    path = OLD / commit / "build" / "bin"
    return path if all((path / p).exists() for p in PROGRAMS) else None


def build(commit):
    """The programs of a commit, from git."""
    tree = OLD / commit
    if not tree.exists():
        tree.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
    cache = [f"-DCMAKE_{x}_COMPILER_LAUNCHER=ccache" for x in ("C", "CXX")] if subprocess.run(["which", "ccache"], capture_output=True).returncode == 0 else []
    subprocess.run(["cmake", "-S", tree, "-B", tree / "build", "-G", "Ninja", "-DKILN_TESTS=OFF", "-DKILN_CUDA=OFF", *cache], check=True)
    subprocess.run(["cmake", "--build", tree / "build", "--target", *PROGRAMS], check=True)


class Mixed(FarmTest):
    """A farm by hand: Redis, a coordinator, workers, each of a version of its own."""

    def bins(self, commit):
        path = programs(commit) if commit else BIN
        if not path:
            self.skipTest(f"the programs of {commit} are not in {OLD}: upgrade.py --build makes them")
        return path

    def redis(self):
        sock = self.farm.tmp / "redis.sock"
        data = self.farm.tmp / "redis"
        data.mkdir(exist_ok=True)
        self.farm.start("/usr/bin/redis-server", "--port", "0", "--unixsocket", sock, "--dir", data, "--appendonly", "yes",
                        "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction")
        wait_for("Redis listens", sock.exists)
        return sock

    def ask_redis(self, *words):
        return subprocess.run(["redis-cli", "-s", self.farm.tmp / "redis.sock", *words], capture_output=True, check=True).stdout

    def coordinator(self, bins):
        ready = self.farm.tmp / "ready"
        ready.unlink(missing_ok=True)
        self.farm.dir.mkdir(exist_ok=True)
        self.endpoint = f"ipc://{self.farm.tmp}/control"
        (self.farm.dir / "endpoint").write_text(self.endpoint + "\n")
        log = open(self.farm.tmp / "coordinator.log", "a")
        self.addCleanup(log.close)
        p = subprocess.Popen([bins / "kiln-coordinator", "--dir", self.farm.dir, "--redis", f"unix:{self.farm.tmp}/redis.sock",
                              "--listen", self.endpoint, "--ready-file", ready], stderr=log, env=self.farm.env)
        self.farm.started.append(p)
        wait_for("the coordinator is ready or ends", lambda: ready.exists() or p.poll() is not None)
        return p

    def worker(self, bins, name, engine="sim:ms=5"):
        log = open(self.farm.tmp / f"{name}.log", "a")
        self.addCleanup(log.close)
        p = subprocess.Popen([bins / "kiln-worker", "--join", self.endpoint, "--engine", engine, "--name", name], stderr=log, env=self.farm.env)
        self.farm.started.append(p)
        return p

    def kiln(self, bins, *words, status=0):
        p = subprocess.run([str(w) for w in (bins / "kiln", *words)], env=self.farm.env, cwd=self.farm.tmp, stdin=subprocess.DEVNULL,
                           capture_output=True, text=True, timeout=farm.PATIENCE)
        self.assertEqual(p.returncode, status, f"{words}: {p.stdout}{p.stderr}{self.log('coordinator')}")
        return p.stdout

    def log(self, name):
        return (self.farm.tmp / f"{name}.log").read_text()

    def end(self, p):
        p.terminate()
        p.wait(farm.PATIENCE)

    def a_batch(self, client, verifier, name="prompts.txt"):
        """From the prompts to a folder that is as it should be."""
        prompts = self.farm.prompts(40, name)
        out = self.farm.tmp / f"out-{name}"
        batch = self.kiln(client, "submit", prompts, "--model", "sim", "--sampler", "DPM++ 2M", "--schedule", "karras").strip()
        self.kiln(client, "wait", batch)
        self.kiln(client, "fetch", batch, "-o", out)
        lines = self.check_folder(out, 40)
        self.assertEqual({l["sampler"] for l in lines}, {"DPM++ 2M"})
        self.kiln(verifier, "verify", out)
        return lines

    def mix(self, coordinator, workers, client):
        bins = [self.bins(c) for c in (coordinator, *workers, client)]
        self.redis()
        self.coordinator(bins[0])
        for i, b in enumerate(bins[1:-1]):
            self.worker(b, f"w{i}")
        lines = self.a_batch(bins[-1], BIN)
        self.assertLessEqual({l["worker"] for l in lines}, {f"w{i}" for i in range(len(workers))})

    def test_one_worker_alone_of_each_version_is_enough(self):
        self.bins(COMMITS[0])
        self.redis()
        self.coordinator(BIN)
        for commit in COMMITS:
            w = self.worker(self.bins(commit), f"of-{commit}")
            self.a_batch(BIN, BIN, f"{commit}.txt")
            self.end(w)

    def test_a_farm_is_upgraded_and_goes_back_in_the_middle_of_a_batch(self):
        old = self.bins(COMMITS[0])
        self.redis()
        c = self.coordinator(old)
        self.worker(old, "w0", "sim:ms=40")
        prompts = self.farm.prompts(120)
        batch = self.kiln(old, "submit", prompts, "--model", "sim").strip()
        out = self.farm.tmp / "out"
        for bins in (BIN, old, BIN):
            self.end(c)
            c = self.coordinator(bins)
            self.assertIsNone(c.poll(), self.log("coordinator"))
            self.worker(bins, f"w{len(self.farm.started)}", "sim:ms=40")
        self.kiln(BIN, "wait", batch)
        self.kiln(BIN, "fetch", batch, "-o", out)
        self.check_folder(out, 120)
        self.kiln(BIN, "verify", out)
        self.assertEqual(self.ask_redis("GET", "kiln:format").strip(), b"1")

    def test_a_batch_that_needs_more_than_it_knows_keeps_an_earlier_coordinator_from_starting(self):
        old = self.bins(COMMITS[0])
        self.redis()
        c = self.coordinator(BIN)
        self.worker(BIN, "w0")
        self.a_batch(BIN, BIN)
        self.end(c)
        # As a later kiln stores a batch with features: Envelope version 2.
        key = next(k for k in self.ask_redis("KEYS", "kiln:b:*").split() if k.count(b":") == 2)
        begin = self.ask_redis("--raw", "HGET", key, "begin")[:-1]
        self.assertEqual(begin[:2], b"\x08\x01")
        subprocess.run(["redis-cli", "-s", self.farm.tmp / "redis.sock", "-x", "HSET", key, "begin"], input=b"\x08\x02" + begin[2:],
                       capture_output=True, check=True)
        c = self.coordinator(old)
        self.assertNotIn(c.poll(), (None, 0))
        self.assertIn("protocol version 2", self.log("coordinator"))

    def test_a_later_format_is_refused_in_words(self):
        self.redis()
        self.ask_redis("SET", "kiln:format", "9")
        c = self.coordinator(BIN)
        self.assertNotIn(c.poll(), (None, 0))
        self.assertIn("of format 9", self.log("coordinator"))


def add_mixes():
    """Coordinator, workers and client, each of today or of an earlier commit."""
    for commit in COMMITS:
        for number in range(1, 8):
            who = [commit if number & bit else None for bit in (1, 2, 4)]
            words = "_".join(f"{role}_of_{c or 'today'}" for role, c in zip(("coordinator", "worker", "client"), who))

            def test(self, who=who):
                self.mix(who[0], [who[1], None], who[2])
            setattr(Mixed, f"test_{words}", test)


add_mixes()
if __name__ == "__main__":
    if "--build" in sys.argv:
        sys.argv.remove("--build")
        for each in COMMITS:
            build(each)
    sys.exit(main())

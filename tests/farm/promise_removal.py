#!/usr/bin/env python3
"""Removed pictures: nothing that a record names is lost, and nothing that none names stays for ever.

A coordinator is stopped right before one of its system calls (kiln-coordinator-stops), deposed meanwhile by another
that commits the same pictures, and let go on; or it is killed there. What then stands is judged by the records as they
are in Redis, byte by byte, by the SHA-256 of the files, and by kiln verify.
"""
import hashlib
import os
import signal
import subprocess
import sys
import time

from farm import BIN, FarmTest, Redis, main, wait_for

COUNT = int(os.environ.get("KILN_REMOVAL_COUNT", "300"))
RECORD = 80


class Removal(FarmTest):
    def setUp(self):
        super().setUp()
        tmp = self.farm.tmp
        self.server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(tmp / "redis.sock"), "--dir", str(tmp), "--appendonly", "yes",
             "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no", "--maxmemory-policy", "noeviction", "--save", ""],
            stdout=subprocess.DEVNULL)
        self.addCleanup(self.end, self.server)
        self.redis = wait_for("Redis answers", lambda: self.connect(tmp / "redis.sock"))
        self.addCleanup(self.redis.close)
        self.count = 0
        self.asked = [self.farm.prompts(COUNT), "--seed", 1] # each time the same pictures

    def connect(self, path):
        try:
            return Redis(path)
        except OSError:
            return None

    def end(self, process):
        process.kill()
        process.wait()

    # ---- the farm's parts

    def coordinator(self, stop=None, *more):
        """Its process and its endpoint."""
        self.count += 1
        url, ready = f"ipc://{self.farm.tmp}/c{self.count}", self.farm.tmp / f"ready{self.count}"
        env = dict(self.farm.env, KILN_TEST_STOP=stop) if stop else self.farm.env
        words = [BIN / ("kiln-coordinator-stops" if stop else "kiln-coordinator"), "--dir", self.farm.dir,
                 "--redis", f"unix:{self.farm.tmp}/redis.sock", "--listen", url, "--ready-file", ready, "--default-model", "sim"]
        self.farm.dir.joinpath("log").mkdir(parents=True, exist_ok=True)
        with open(self.farm.dir / "log" / f"coordinator-{self.count}.log", "w") as log:
            p = subprocess.Popen([str(w) for w in [*words, *more]], env=env, stdin=subprocess.DEVNULL, stderr=log)
        self.farm.started.append(p)
        p.ready = ready
        if not more:
            self.await_ready(p)
        return p, url

    def await_ready(self, p):
        wait_for("the coordinator is ready", lambda: p.ready.exists() and p.ready.read_text())

    def worker(self, url):
        return self.farm.start(BIN / "kiln-worker", "--join", url, "--name", f"w{self.count}", "--engine", "sim:ms=0")

    def kiln(self, url, *args, **more):
        return self.farm.ok(*args, "--farm", url, **{"timeout": 60 + COUNT / 100, **more})

    def await_stopped(self, p):
        def stopped():
            with open(f"/proc/{p.pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] == "T"
        wait_for("the coordinator has come to the switch", stopped)

    def take_over(self, p, url):
        """Another coordinator leads, as when the first one's lead has run out."""
        self.redis.ask("DEL", "kiln:leader")
        self.await_ready(p)

    # ---- the judge

    def named(self):
        """The digests that the records in Redis name."""
        found = set()
        for key in self.redis.ask("KEYS", "kiln:b:*:r"):
            data = self.redis.ask("GET", key)
            self.assertEqual(len(data) % RECORD, 0)
            for at in range(0, len(data), RECORD):
                if data[at + RECORD - 1]:
                    found.add(data[at:at + 32].hex())
        return found

    def object(self, digest):
        return self.farm.dir / "objects" / digest[:2] / f"{digest}.png"

    def whole(self, digest):
        try:
            return hashlib.sha256(self.object(digest).read_bytes()).hexdigest() == digest
        except OSError:
            return False

    def objects(self):
        return {p.stem for p in self.farm.dir.glob("objects/[0-9a-f][0-9a-f]/*.png")}

    def trash(self):
        return sorted(self.farm.dir.glob("objects/trash/*/*"))

    def judge(self, url, batch, name):
        """Every image of the batch is there for whoever asks, and each object that a record names is in its place."""
        out = self.farm.tmp / name
        self.kiln(url, "fetch", batch, "-o", out)
        self.check_folder(out, COUNT)
        self.farm.ok("verify", out)
        named = self.named()
        self.assertEqual(len(named), COUNT)
        wait_for("all objects are in their place", lambda: all(map(self.whole, named)))
        self.assertEqual(list(self.farm.dir.glob("objects/damaged/*")), [])

    # ---- the promises

    def deposed(self, stop, *remove):
        """Coordinator a stops in a removal, b takes over and commits the same prompts, a goes on."""
        a, url_a = self.coordinator(stop)
        b, url_b = self.coordinator(None, "--standby")
        self.worker(url_a)
        first = self.kiln(url_a, "submit", *self.asked).strip()
        self.kiln(url_a, "wait", first)
        self.kiln(url_a, "rm", first, *remove)
        self.await_stopped(a)
        self.take_over(b, url_b)
        self.worker(url_b)
        second = self.kiln(url_b, "submit", *self.asked).strip()
        self.kiln(url_b, "wait", second)
        a.send_signal(signal.SIGCONT)
        self.assertEqual(a.wait(30), 4, "it noticed that it was deposed")
        self.judge(url_b, second, "out")
        wait_for("the first batch is buried", lambda: self.redis.ask("HLEN", "kiln:tombs") == 0)

    def test_a_deposed_coordinator_that_removes_takes_no_committed_picture(self):
        self.deposed("trash:1")

    def test_not_in_the_midst_of_it_either(self):
        self.deposed(f"trash:{COUNT // 2}")

    def test_a_deposed_coordinator_that_deletes_at_once_takes_none_either(self):
        self.deposed("delete:1", "--now")

    def arrival(self, stop):
        """The same, stopped while pictures come."""
        a, url_a = self.coordinator(stop)
        b, url_b = self.coordinator(None, "--standby")
        self.worker(url_a)
        submit = self.farm.start("submit", *self.asked, "--farm", url_a)
        self.await_stopped(a)
        self.take_over(b, url_b)
        self.worker(url_b)
        second = self.kiln(url_b, "submit", *self.asked).strip()
        self.kiln(url_b, "wait", second)
        a.send_signal(signal.SIGCONT)
        self.assertEqual(a.wait(30), 4)
        submit.kill()
        self.judge(url_b, second, "out")

    def test_a_deposed_coordinator_that_keeps_a_picture_spoils_none(self):
        self.arrival("arrive:5")

    def test_nor_one_that_is_about_to_write_it(self):
        self.arrival("create:5")

    def killed(self, stop, *remove):
        a, url = self.coordinator(stop)
        worker = self.worker(url)
        batch = self.kiln(url, "submit", *self.asked).strip()
        self.kiln(url, "wait", batch)
        self.assertEqual(len(self.objects()), COUNT)
        self.kiln(url, "rm", batch, *remove)
        self.await_stopped(a)
        a.kill()
        a.wait()
        worker.kill()
        self.coordinator()
        wait_for("no object is left", lambda: not self.objects())
        wait_for("the batch is buried", lambda: self.redis.ask("HLEN", "kiln:tombs") == 0)
        self.assertEqual(self.redis.ask("KEYS", "kiln:t:*"), [])

    def test_a_kill_in_the_midst_of_a_removal_leaves_nothing(self):
        self.killed(f"trash:{COUNT // 3}")

    def test_a_removal_at_once_deletes_at_once(self):
        _, url = self.coordinator()
        self.worker(url)
        batch = self.kiln(url, "submit", *self.asked).strip()
        self.kiln(url, "wait", batch)
        self.kiln(url, "rm", batch, "--now")
        wait_for("neither objects nor trash are left", lambda: not self.objects() and not self.trash())

    def test_a_picture_in_the_trash_that_is_named_is_moved_back_unasked(self):
        _, url = self.coordinator()
        self.worker(url)
        batch = self.kiln(url, "submit", *self.asked).strip()
        self.kiln(url, "wait", batch)
        named = self.named()
        for n, digest in enumerate(sorted(named)):
            folder = self.farm.dir / "objects" / "trash" / digest[:2]
            folder.mkdir(exist_ok=True)
            self.object(digest).rename(folder / f"0-{n}-{digest}")
        wait_for("all objects are in their place", lambda: all(map(self.whole, named)))
        self.assertEqual(self.trash(), [])

    def test_what_nothing_names_is_found_and_a_young_or_foreign_file_is_not_touched(self):
        _, url = self.coordinator()
        self.worker(url)
        batch = self.kiln(url, "submit", *self.asked).strip()
        self.kiln(url, "wait", batch)
        named = self.named()
        old = hashlib.sha256(b"old").hexdigest()
        young = hashlib.sha256(b"young").hexdigest()
        foreign = self.farm.dir / "objects" / "ab" / "notes.txt"
        foreign.write_text("a person's")
        self.object(old).write_bytes(b"old")
        self.object(young).write_bytes(b"young")
        hours_ago = time.time() - 3 * 3600
        for digest in [old, *named]:
            os.utime(self.object(digest), (hours_ago, hours_ago))
        out = self.farm.run("doctor", "--repair", "--farm", url).stdout
        self.assertIn("1 picture that nothing names moved to the trash", out)
        self.assertFalse(self.object(old).exists())
        self.assertEqual([p.name.split("-")[2] for p in self.trash()], [old])
        self.assertTrue(self.object(young).exists() and foreign.exists())
        self.assertTrue(all(map(self.whole, named)))


class Leftovers(FarmTest):
    def test_files_that_killed_processes_were_writing_are_removed(self):
        self.farm.up("sim:ms=0", 1)
        left = [self.farm.dir / name for name in ("redis/temp-rewriteaof-7.aof", "redis/appendonlydir/temp-rewriteaof-bg-7.aof")]
        for path in left:
            path.write_text("half")
        self.farm.kill_and_await("redis")
        wait_for("they are gone", lambda: not any(p.exists() for p in left))
        self.farm.ok("down")
        left = [self.farm.dir / name for name in ("endpoint.tmp.0123ab", "run/ready.tmp.0123ab", "run/redis.pid.tmp.0123ab")]
        mine = self.farm.dir / "notes.tmp.0123ab"
        for path in [mine, *left]:
            path.write_text("half")
        self.farm.up("sim:ms=0", 1)
        wait_for("they are gone", lambda: not any(p.exists() for p in left))
        self.assertTrue(mine.exists())

    def test_an_output_folder_keeps_none_either(self):
        out = self.farm.tmp / "out"
        self.farm.up("sim:ms=0", 1)
        self.farm.ok("render", self.farm.prompts(3), "-o", out)
        left = [out / name for name in ("batch.json.tmp.0123ab", "index.html.tmp.0123ab", "gallery/status.js.tmp.0123ab")]
        mine = out / "notes.tmp.0123ab"
        for path in [mine, *left]:
            path.write_text("half")
        self.farm.ok("render", self.farm.prompts(4), "-o", out)
        self.assertEqual([p for p in left if p.exists()], [])
        self.assertTrue(mine.exists())


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Pictures that the farm has lost, or that somebody edited in its folder: noticed, said once, rendered again."""
import hashlib
import os
import signal
import struct
import subprocess
import sys
import zlib

from farm import FarmTest, main, wait_for

COUNT = 12


class Lost(FarmTest):
    def setUp(self):
        super().setUp()
        self.farm.up("sim:ms=5")
        self.batch = self.farm.ok("submit", self.farm.prompts(COUNT)).strip()
        self.farm.ok("wait", self.batch)
        self.first = self.farm.tmp / "first"
        self.farm.ok("fetch", self.batch, "-o", self.first)
        self.lines = self.check_folder(self.first, COUNT)
        self.before = {n: (self.first / l["file"]).read_bytes() for n, l in enumerate(self.lines)}

    def object(self, index):
        digest = self.lines[index]["sha256"]
        return self.farm.dir / "objects" / digest[:2] / f"{digest}.png"

    def spoil(self, edited, deleted):
        for index in edited:  # in place, as an editor that keeps the file would; its name in the first folder may be a link
            path = self.object(index)
            os.chmod(path, 0o644)
            with path.open("r+b") as f:
                f.write(b"edited")
        for index in deleted:
            self.object(index).unlink()

    def fetch(self, name, status=0):
        p = self.farm.run("fetch", self.batch, "-o", self.farm.tmp / name)
        self.assertEqual(p.returncode, status, p.stdout + p.stderr + self.farm.logs())
        return p.stderr

    def check_healed(self):
        self.farm.ok("wait", self.batch)
        self.fetch("healed")
        lines = self.check_folder(self.farm.tmp / "healed", COUNT)
        for n, l in enumerate(lines):
            self.assertEqual((self.farm.tmp / "healed" / l["file"]).read_bytes(), self.before[n])
        self.farm.ok("verify", self.farm.tmp / "healed")
        (batch,) = self.farm.json("status")
        self.assertEqual((batch["state"], batch["done"]), ("done", COUNT))

    def replace_by_a_file_that_is_no_picture(self, index):
        """As a worker could have brought it before pictures were looked at: whole by its chunks, its name its SHA-256, its record says so."""
        def chunk(name, body):
            return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        l = self.lines[index]
        head = struct.pack(">IIBBBBB", l["width"], l["height"], 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"nothing that was deflated") + chunk(b"IEND", b"")
        digest = hashlib.sha256(data).hexdigest()
        path = self.farm.dir / "objects" / digest[:2] / f"{digest}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        key = f"kiln:b:{self.batch}:r"
        socket = self.farm.endpoint.removeprefix("ipc://").replace("farm.sock", "redis.sock")
        subprocess.run(["redis-cli", "-s", socket, "-x", "SETRANGE", key, str(80 * index)],
                       input=bytes.fromhex(digest), check=True, capture_output=True)
        self.farm.kill_and_await("coordinator")

    def test_a_picture_that_does_not_decode_is_said_and_rendered_again_by_whoever_fetches_it(self):
        self.replace_by_a_file_that_is_no_picture(5)
        stopped = [self.farm.kill(f"worker-{n}", signal.SIGSTOP) for n in range(2)]  # it is not rendered again meanwhile
        err = self.fetch("bad", status=2)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        self.assertIn("image 5 is bad on the farm", err)
        self.assertIn("1 picture is lost or damaged on the farm", err)
        self.assertEqual(len(list((self.farm.tmp / "bad" / "images").iterdir())), COUNT - 1)
        self.check_healed()  # without a retry

    def test_an_audit_of_the_farm_finds_what_is_bad_and_what_is_lost_and_has_it_rendered_again(self):
        self.farm.ok("verify", "--farm", self.farm.dir)
        self.replace_by_a_file_that_is_no_picture(5)
        self.spoil(edited=[2], deleted=[3])
        report = self.farm.json("verify", "--farm", self.farm.dir, self.batch[:8], status=2)
        self.assertEqual([report[k] for k in ("dir", "ok", "count", "done")], [self.batch, False, COUNT, COUNT])
        self.assertEqual(sorted(f["file"] for f in report["faults"]), [f"images/{i:06}.png" for i in (2, 3, 5)])
        self.farm.ok("wait", self.batch)
        self.assertIn(f"{COUNT} done, 0 failed, 0 cancelled; all as the farm says", self.farm.ok("verify", "--farm", self.farm.dir))
        self.check_healed()

    def test_lost_and_damaged_pictures_are_said_once_and_a_retry_renders_them_and_no_others(self):
        others = {i: self.object(i).stat().st_mtime_ns for i in range(COUNT) if i not in (3, 7, 8)}
        self.spoil(edited=[3], deleted=[7, 8])
        err = self.fetch("holes", status=2)
        self.assertIn(f"3 pictures are lost or damaged on the farm; kiln retry {self.batch[:8]} renders them again", err)
        self.assertEqual(err.count("lost or damaged"), 1)
        self.farm.ok("retry", self.batch)
        self.check_healed()
        self.assertEqual({i: self.object(i).stat().st_mtime_ns for i in others}, others)
        kept = list((self.farm.dir / "objects" / "damaged").iterdir())
        self.assertEqual([p.read_bytes()[:6] for p in kept], [b"edited"])
        # the folder with holes goes on, too
        self.fetch("holes")
        self.check_folder(self.farm.tmp / "holes", COUNT)

    def test_a_kill_between_the_retry_and_the_render_changes_nothing(self):
        self.farm.ok("drain", "worker-0")
        self.farm.ok("drain", "worker-1")
        self.spoil(edited=[0], deleted=[11])
        self.farm.ok("retry", self.batch)
        wait_for("both are queued", lambda: self.farm.json("status")[0]["done"] == COUNT - 2)
        self.farm.kill_and_await("redis")
        self.farm.kill_and_await("coordinator")
        self.farm.kill_and_await("worker-0")
        self.check_healed()

    def test_a_retry_that_is_killed_is_asked_again(self):
        self.spoil(edited=[1, 2], deleted=[4, 5])
        retry = self.farm.start("retry", self.batch)
        self.farm.kill_and_await("coordinator")
        self.finish(retry)
        self.farm.ok("retry", self.batch)
        self.check_healed()


if __name__ == "__main__":
    sys.exit(main())

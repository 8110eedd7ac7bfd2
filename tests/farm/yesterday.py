#!/usr/bin/env python3
"""A farm and a folder that earlier programs left are read, finished and verified (fixtures/yesterday)."""
import hashlib
import json
import pathlib
import sys
import tarfile

from farm import FarmTest, main, manifest

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures" / "yesterday"


def unpack(name, where):
    with tarfile.open(FIXTURES / f"{name}.tar.gz") as archive:
        archive.extractall(where)


class Yesterday(FarmTest):
    def test_a_farm_of_yesterday_is_finished_and_verified(self):
        unpack("farm", self.farm.tmp)
        before = {p.relative_to(self.farm.dir): hashlib.sha256(p.read_bytes()).hexdigest()
                  for p in (self.farm.dir / "objects").rglob("*") if p.is_file()}
        self.assertEqual(len(before), 73)
        self.farm.up("sim:ms=1", 2)
        batches = {b["name"]: b for b in self.farm.json("status")}
        self.assertEqual({n: (b["total"], b["failed"]) for n, b in batches.items()},
                         {"done": (20, 6), "waiting": (2, 0), "active": (1501, 4), "paused": (12, 0), "cancelled": (12, 0), "clean": (3, 0)})
        self.assertEqual((batches["paused"]["state"], batches["cancelled"]["state"], batches["clean"]["state"]), ("paused", "cancelled", "done"))
        self.assertGreaterEqual(batches["active"]["done"], 55)
        self.farm.ok("resume", batches["paused"]["id"])
        # Only what had failed is rendered again; it fails no more, since this engine is asked for no failures.
        self.farm.ok("wait", batches["active"]["id"], status=2)
        for name in ("done", "active"):
            self.farm.ok("retry", batches[name]["id"])
        for name in ("done", "waiting", "active", "paused", "clean"):
            self.farm.ok("wait", batches[name]["id"])
        for name, b in batches.items():
            out = self.farm.tmp / name
            self.farm.ok("fetch", b["id"], "-o", out)
            if name == "cancelled":
                self.assertEqual({l["status"] for l in manifest(out)}, {"cancelled"})
            else:
                self.check_folder(out, b["total"])
            self.farm.ok("verify", out)
        # What was done stays as it was, byte for byte.
        for path, digest in before.items():
            self.assertEqual(hashlib.sha256((self.farm.dir / path).read_bytes()).hexdigest(), digest, path)
        extras = [l["extra"] for l in manifest(self.farm.tmp / "waiting")]
        self.assertEqual(extras, [{"Category": "Shapes"}, {"Category": "Größe"}])
        seeds = [l["seed"] for l in manifest(self.farm.tmp / "active")[:2]]
        self.assertEqual(seeds, [18446744073709551615, 9])

    def test_a_folder_of_yesterday_goes_on_with_the_same_command(self):
        unpack("folder", self.farm.tmp)
        out = self.farm.tmp / "pictures"
        before = manifest(out)
        self.assertEqual(len(before), 8)
        p = self.farm.start("render", "prompts.txt", "-o", "pictures", "--images", "4", "--steps", "8",
                            "--workers", "1", "--json")
        text, told = self.finish(p, timeout=180)
        self.assertIn("8 of the images here are of the engine kiln 0.1.0", told)
        summary = json.loads(text)
        self.assertEqual((summary["total"], summary["done"], summary["kept"]), (12, 12, 8))
        after = self.check_folder(out, 12)
        for old in before:
            self.assertEqual(after[old["index"]], old)
        self.farm.ok("verify", out)

        # The pictures of the older engine can be had anew, under the same keys.
        p = self.farm.start("render", "prompts.txt", "-o", "pictures", "--images", "4", "--steps", "8",
                            "--workers", "1", "--json", "--rerender-old")
        text, told = self.finish(p, timeout=180)
        summary = json.loads(text)
        self.assertEqual((summary["total"], summary["done"], summary["kept"]), (12, 12, 4))
        self.assertNotIn("of the engine", told)
        again = self.check_folder(out, 12)
        self.assertEqual([l["key"] for l in again], [l["key"] for l in after])
        self.assertEqual(len({l["engine"] for l in again}), 1)
        self.farm.ok("verify", out)


if __name__ == "__main__":
    sys.exit(main())

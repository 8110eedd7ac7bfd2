#!/usr/bin/env python3
"""The output folder: kiln never removes or replaces a file that it did not make for this batch; pictures are copies, and may have names."""
import json
import stat
import sys

from farm import BIN, FarmTest, main, manifest, pictures, wait_for

SIM = ("--engine", "sim:ms=0", "--workers", "1")


class Folder(FarmTest):
    def setUp(self):
        super().setUp()
        self.out = self.farm.tmp / "out"

    def render(self, *args, status=0):
        p = self.farm.run("render", *args, *SIM)
        self.assertEqual(p.returncode, status, p.stderr)
        return p.stderr

    def all_files(self, folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def test_without_o_another_batch_gets_the_next_free_name(self):
        tmp = self.farm.tmp
        self.render("-p", "one", "--seed", "1")
        first = self.all_files(tmp / "kiln-out")
        err = self.render("-p", "two", "--seed", "1")
        self.assertIn("the pictures go to kiln-out-2", err)
        self.assertEqual(self.all_files(tmp / "kiln-out"), first)
        (tmp / "kiln-out-3").mkdir()
        (tmp / "kiln-out-3" / "index.html").write_text("my own page")
        self.assertIn("the pictures go to kiln-out-4", self.render("-p", "three", "--seed", "1"))
        self.assertEqual(self.all_files(tmp / "kiln-out-3"), {(tmp / "kiln-out-3" / "index.html").relative_to(tmp / "kiln-out-3"): b"my own page"})
        # A continuation goes on where it was, whichever that is.
        self.assertIn("1 image was here already", self.render("-p", "two", "--seed", "1"))
        self.assertIn("1 image was here already", self.render("-p", "one", "--seed", "1"))
        self.assertEqual(sorted(p.name for p in tmp.glob("kiln-out*")), ["kiln-out", "kiln-out-2", "kiln-out-3", "kiln-out-4"])

    def test_two_batches_without_o_at_once_get_a_folder_each(self):
        args = ("--seed", "1", "--images", "40", "--engine", "sim:ms=30", "--workers", "1")
        first = self.farm.start("render", "-p", "one", *args)
        self.await_pictures(self.farm.tmp / "kiln-out", 2)
        again = self.farm.run("render", "-p", "one", *args)
        self.assertEqual(again.returncode, 1)
        self.assertIn("another kiln is at work in it", again.stderr)
        self.assertIn("the pictures go to kiln-out-2", self.render("-p", "two", "--seed", "1"))
        self.finish(first)

    def test_with_o_another_batch_is_refused_with_both_options(self):
        self.render("-p", "one", "-p", "two", "--seed", "1", "-o", self.out)
        before = self.all_files(self.out)
        for other in (["-p", "one", "--seed", "1"], ["-p", "three", "--seed", "1"], ["-p", "one", "-p", "two", "--seed", "2"]):
            err = self.render(*other, "-o", self.out, status=1)
            self.assertIn("holds another batch", err)
            self.assertIn("--replace", err)
            self.assertIn("-o names another folder", err)
            self.assertEqual(self.all_files(self.out), before)
        self.assertIn("2 images were here already", self.render("-p", "zero", "-p", "one", "-p", "two", "--seed", "1", "-o", self.out))

    def test_replace_removes_the_earlier_batch_and_nothing_else(self):
        self.render("-p", "one", "-p", "two", "-p", "three", "--seed", "1", "-o", self.out)
        (self.out / "notes.txt").write_text("mine")
        (self.out / "images" / "holiday.png").write_text("mine")
        self.render("-p", "two", "--seed", "1", "-o", self.out, "--replace")
        self.assertEqual(pictures(self.out), ["000000.png", "holiday.png"])
        self.assertEqual([l["prompt"] for l in manifest(self.out)], ["two"])
        self.assertEqual((self.out / "notes.txt").read_text(), "mine")

    def test_foreign_files_at_kilns_names_are_refused_also_with_replace(self):
        for name in ("index.html", "manifest.jsonl", "batch.json", "images/000001.png", "gallery/status.js"):
            for more in ([], ["--replace"]):
                with self.subTest(name, more=more):
                    folder = self.farm.tmp / name.replace("/", "-") / ("r" if more else "n")
                    (folder / name).parent.mkdir(parents=True)
                    (folder / name).write_text("mine")
                    err = self.render("-p", "one", "-p", "two", "-o", folder, *more, status=1)
                    self.assertIn(name, err)
                    self.assertIn("is not kiln's", err.replace("holds what is", "is"))
                    self.assertEqual(list(self.all_files(folder).values()), [b"mine"])
        self.assertEqual(self.farm.runs(), [])

    def test_pictures_that_a_killed_run_did_not_write_down_are_its_own(self):
        self.render("-p", "one", "-p", "größer", "--seed", "1", "-o", self.out)
        before = {p.name: p.read_bytes() for p in (self.out / "images").iterdir()}
        (self.out / "manifest.jsonl").unlink()
        self.render("-p", "one", "-p", "größer", "--seed", "1", "-o", self.out)
        self.check_folder(self.out, 2)
        self.assertEqual({p.name: p.read_bytes() for p in (self.out / "images").iterdir()}, before)
        # Another batch does not touch them: nothing says any more whose they are.
        (self.out / "manifest.jsonl").unlink()
        self.assertIn("holds another batch", self.render("-p", "three", "--seed", "1", "-o", self.out, status=1))
        self.assertIn("images/000000.png", self.render("-p", "three", "--seed", "1", "-o", self.out, "--replace", status=1))
        self.assertEqual({p.name: p.read_bytes() for p in (self.out / "images").iterdir()}, before)

    def test_an_edited_picture_is_kept_aside_and_said(self):
        self.render("-p", "one", "--seed", "1", "-o", self.out)
        picture = self.out / "images" / "000000.png"
        before = picture.read_bytes()
        picture.write_bytes(b"painted over")
        err = self.render("-p", "one", "--seed", "1", "-o", self.out)
        self.assertIn("kept as changed/000000.png", err)
        self.assertEqual((self.out / "changed" / "000000.png").read_bytes(), b"painted over")
        self.assertEqual(picture.read_bytes(), before)
        self.farm.ok("verify", self.out)

    def submit(self, *args):
        id = self.farm.ok("submit", *args).strip()
        self.farm.ok("wait", id)
        return id

    def test_fetch_follows_the_same_rules(self):
        self.farm.up("sim:ms=1", 1)
        one, two = self.submit("-p", "one"), self.submit("-p", "two")
        self.farm.ok("fetch", one, "-o", self.out)
        before = self.all_files(self.out)
        p = self.farm.run("fetch", two, "-o", self.out)
        self.assertEqual(p.returncode, 1)
        self.assertIn("holds another batch", p.stderr)
        self.assertEqual(self.all_files(self.out), before)
        self.assertEqual(self.farm.json("fetch", one, "-o", self.out)["kept"], 1)
        self.farm.ok("fetch", two, "-o", self.out, "--replace")
        self.assertEqual([l["prompt"] for l in manifest(self.out)], ["two"])
        self.farm.ok("fetch", one)
        self.farm.ok("fetch", two)
        self.assertEqual([[l["prompt"] for l in manifest(self.farm.tmp / n)] for n in ("kiln-out", "kiln-out-2")], [["one"], ["two"]])

    def objects(self):
        return list(self.farm.dir.glob("objects/*/*.png"))

    def test_editing_a_fetched_picture_does_not_touch_the_farms_object(self):
        self.farm.up("sim:ms=1", 1)
        id = self.submit("-p", "one")
        (object,) = self.objects()
        data = object.read_bytes()
        self.assertEqual(stat.S_IMODE(object.stat().st_mode) & 0o222, 0)  # read-only
        self.farm.ok("fetch", id, "-o", self.out)
        picture = self.out / "images" / "000000.png"
        self.assertTrue(picture.stat().st_mode & 0o200)
        with open(picture, "r+b") as f:
            f.write(b"painted over")
        self.assertEqual(object.read_bytes(), data)
        self.farm.ok("fetch", id, "-o", self.farm.tmp / "again")
        self.check_folder(self.farm.tmp / "again", 1)

    def test_link_is_for_whoever_wants_the_space(self):
        self.farm.up("sim:ms=1", 1)
        id = self.submit("-p", "one")
        self.farm.ok("fetch", id, "-o", self.out, "--link")
        (object,) = self.objects()
        self.assertEqual((self.out / "images" / "000000.png").stat().st_ino, object.stat().st_ino)
        self.assertIn("spoils the farm's only copy", " ".join(self.farm.ok("fetch", "--help").split()))

    def test_the_umask_is_honoured(self):
        sh = f"umask 027; exec '{BIN}/kiln' render -p one -o '{self.out}' {' '.join(SIM)}"
        self.finish(self.farm.start("/bin/sh", "-c", sh))
        for path in self.out.rglob("*"):
            want = 0o750 if path.is_dir() else 0o640
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), want, path)

    def test_two_images_that_are_the_same_have_a_file_each(self):
        self.render("-p", "one", "-p", "one", "--seed", "1", "-o", self.out)
        a, b = (self.out / "images" / n for n in ("000000.png", "000001.png"))
        self.assertEqual(a.read_bytes(), b.read_bytes())
        self.assertNotEqual(a.stat().st_ino, b.stat().st_ino)
        self.assertIn("2 images were here already", self.render("-p", "one", "-p", "one", "--seed", "1", "-o", self.out))

    def test_pictures_are_called_as_the_pattern_says(self):
        table = self.farm.tmp / "p.csv"
        table.write_text("prompt,Category\nred/blue: one?,Shapes\ntwo,Größe\n")
        pattern = ("--name-pattern", "{index:03}-{Category}-{prompt:8}")
        self.render(table, "--seed", "1", "-o", self.out, *pattern)
        names = ["000-Shapes-red_blue.png", "001-Größe-two.png"]
        self.assertEqual(pictures(self.out), names)
        self.assertEqual([l["file"] for l in manifest(self.out)], [f"images/{n}" for n in names])
        self.assertEqual(json.loads((self.out / "batch.json").read_text())["name_pattern"], pattern[1])
        self.assertIn("001-Größe-two.png", (self.out / "gallery" / "0000.js").read_text())
        self.farm.ok("verify", self.out)
        self.assertIn("2 images were here already", self.render(table, "--seed", "1", "-o", self.out, *pattern))
        # Another pattern gives the same pictures other names.
        self.assertIn("2 images were here already", self.render(table, "--seed", "1", "-o", self.out, "--name-pattern", "{seed}-{index}"))
        self.assertEqual(pictures(self.out), ["1-0.png", "1-1.png"])
        self.farm.ok("verify", self.out)
        # verify goes by the manifest's names, and finds what is there beside them.
        (self.out / "images" / "000000.png").write_bytes(b"x")
        self.assertIn("images/000000.png: no done line", self.farm.ok("verify", self.out, status=2))

    def test_a_column_file_names_the_picture(self):
        table = self.farm.tmp / "p.csv"
        table.write_text("prompt,file\none,tom\ntwo,sub/jerry.png\n")
        self.render(table, "-o", self.out)
        self.assertEqual(pictures(self.out), ["sub_jerry.png", "tom.png"])
        self.farm.ok("verify", self.out)

    def test_names_that_collide_are_refused_before_anything_starts(self):
        table = self.farm.tmp / "p.csv"
        table.write_text("prompt,file\none,tom\ntwo,TOM\n")
        err = self.render(table, "-o", self.out, status=1)
        self.assertIn("lines 2 and 3", err)
        self.assertIn("differ in case alone", err)
        self.assertIn("would have the same name", self.render("-p", "one", "-p", "two", "-o", self.out, "--name-pattern", "{model}", status=1))
        self.assertFalse(self.out.exists())
        self.assertEqual(self.farm.runs(), [])

    def test_a_picture_with_a_name_of_its_own_outlives_kill_9(self):
        args = ("-p", "one", "--images", "60", "--seed", "1", "-o", self.out, "--name-pattern", "{prompt}-{seed}")
        p = self.farm.start("render", *args, "--engine", "sim:ms=30", "--workers", "1")
        self.await_pictures(self.out, 10)
        run = self.farm.run_of(self.out)
        p.kill()
        p.wait()
        self.farm.kill_all(run)
        self.render(*args)
        self.check_folder(self.out, 60)
        self.farm.ok("verify", self.out)


if __name__ == "__main__":
    sys.exit(main())

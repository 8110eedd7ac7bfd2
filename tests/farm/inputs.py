#!/usr/bin/env python3
"""Every mistake is found before anything is started, with status 1 and words that name file, line and field."""
import os
import sys

from farm import FarmTest, main

FILES = [  # name, text, what is said
    ("p.jsonl", '{"prompt":"a"}\n{"prompt":"b","stesp":3}\n', "p.jsonl:2: stesp: unknown, did you mean steps?"),
    ("p.jsonl", '{"prompt":"a","steps":0}\n', "p.jsonl:1: steps: 0 is not between 1 and 1000"),
    ("p.jsonl", '{"prompt":"a"\n', "p.jsonl:1: "),
    ("p.jsonl", '["a"]\n', "p.jsonl:1: "),
    ("p.txt", "a\nb --stesp 3\n", "p.txt:2: stesp: unknown, did you mean steps?"),
    ("p.txt", "a --steps\n", "p.txt:1: steps: "),
    ("p.txt", "a --steps ten\n", 'p.txt:1: steps: "ten" is not a whole number'),
    ("p.txt", "a --sampler_name Eulr\n", "p.txt:1: sampler"),
    ("p.txt", "a --sd_model nosuch\n", "p.txt:1: model: nosuch is not there"),
    ("p.txt", "a --width 100 --height 128\n", "p.txt:1: width: 100 is not a multiple of 8"),
    ("p.txt", b"a\nb\xff\n", "p.txt:2: not UTF-8 (byte 2 of the line is 0xFF): this looks like Windows-1252; to convert it: iconv -f WINDOWS-1252"),
    ("p.txt", "a\nb\u2028c\n", "p.txt:2: U+2028 (line separator)"),
    ("p.txt", "a\nb\x85c\n", "p.txt:2: U+0085 (next line)"),
    ("p.txt", "a\rb --steps 0\r", "p.txt:2: steps: 0 is not between"),
    ("p.txt", "a\nb".encode("utf-16le"), "p.txt:1: a NUL byte (byte 2 of the line): this looks like UTF-16LE without its mark"),
    ("p.txt", "a".encode("utf-32"), "p.txt:1: UTF-32 is not read"),
    ("p.txt", b"\xff\xfea\0\n\0\0\xdc", "p.txt:2: half a surrogate pair in UTF-16 (character 1 of the line)"),
    ("p.txt", "a\nSteps: 20, Sampler: Euler, Denoising strength: 0.5\n", "p.txt:2: Denoising strength: not supported; take it out"),
    ("p.txt", "a\n\nb\nSteps: 20, Sampler: Euler, Seed: 1\n", "p.txt:3: an empty line stands before this one"),
    ("p.txt", "a\nSteps: 20, Sampler: Euler, Model: nosuch\n", "p.txt:2: model: nosuch is not there"),
    ("p.txt", "a\nNegative prompt: b\n", 'p.txt:2: "Negative prompt:" needs a line of settings'),
    ("p.txt", "# nothing\n\n", "p.txt: no prompt in it"),
    ("p.csv", "prompt,steps\na,1\nb,x\n", 'p.csv:3: steps: "x" is not a whole number'),
    ("p.csv", "promt\na\n", "p.csv:1: promt: unknown, did you mean prompt?"),
    ("p.csv", "steps\n1\n", "p.csv:1: no column is named prompt"),
    ("p.csv", "prompt;cfg\na;7,5\nb;7,x\n", 'p.csv:3: cfg: "7,x" is not a number'),
    ("p.csv", "prompt;note\r\ncafé;x\r\n".encode("cp1252"), "p.csv:2: not UTF-8 (byte 4 of the line is 0xE9): this looks like Windows-1252"),
    ("p.json", '[\n"a",\n{"prompt":"b",\n"steps":0}]', "p.json:4: element 2: steps: 0 is not between"),
    ("p.json", '{"prompt":"a"}\n', "p.json:1: a .json is an array"),
    ("p.tsv", "prompt\tcfg\na\tmuch\n", "p.tsv:2: cfg"),
    ("p.xyz", "a\n", "--input-format"),
    ("p.txt", "x" * 9000 + "\n", "p.txt:1: prompt: "),
]
LINES = [  # the command line behind kiln render, what is said
    (["-p", "x", "--stesp", "3"], "--stesp: unknown, did you mean --steps?"),
    (["-p", "x", "--steps=0"], "--steps: 0 is not between 1 and 1000"),
    (["-p", "x", "--size", "13x64"], "--size: width: 13 is not between 16 and 4096"),
    (["-p", "x", "--sampler", "eulr"], "--sampler: "),
    (["-p", "x", "--schedule", "karras", "--sampler", "ddim"], "--schedule: karras means nothing with the sampler DDIM"),
    (["-p", "x", "--model", "nosuch"], "model: nosuch is not there"),
    (["-p", "x", "--seed", "18446744073709551615", "--images", "2"], "seed: "),
    (["-p", "x", "--seed", "eahc"], '--seed: "eahc" is not a whole number between 0 and 18446744073709551615, nor each'),
    (["nosuch.txt"], "nosuch.txt: "),
    (["--strict", "extra.csv"], "extra.csv:1: note: unknown; known are prompt,"),
    (["-p", "x", "--workers", "0"], "--workers: 0"),
    (["-"], "--input-format"),
    ([], "no prompts"),
    (["-p", "x", "--engine", "sim:crsh=1"], "crsh: unknown, did you mean crash?"),
    (["-p", "x", "-o", "/proc/nowhere/x"], "/proc/nowhere"),
]


class Inputs(FarmTest):
    def wants(self, args, said):
        for name, value in (("--engine", "sim:ms=0"), ("-o", "out")):
            if name not in args:
                args = [*args, name, value]
        p = self.farm.run("render", *args)
        with self.subTest(said):
            self.assertEqual(p.returncode, 1, p.stderr)
            self.assertTrue(p.stderr.startswith("kiln: "), p.stderr)
            self.assertIn(said, p.stderr)
            self.assertEqual(p.stdout, "")
            self.assertEqual(p.stderr.count("\n"), 1, p.stderr)
            self.assertFalse((self.farm.tmp / "out").exists())
            self.assertFalse((self.farm.dir / "run").exists(), "something was started")

    def test_mistakes_in_files(self):
        for name, text, said in FILES:
            path = self.farm.tmp / name
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            self.wants([name], said)
            path.unlink()

    def test_prompts_that_are_no_regular_file_are_refused_at_once(self):
        fifo = self.farm.tmp / "fifo.txt"
        os.mkfifo(fifo)
        zero = self.farm.tmp / "zero.txt"
        zero.symlink_to("/dev/zero")
        for path, kind in ((fifo, "a FIFO or pipe"), (zero, "a device")):
            self.wants([str(path)], f"{path}: is {kind}, not a regular file")

    def test_mistakes_on_the_command_line(self):
        (self.farm.tmp / "extra.csv").write_text("prompt,note\na,b\n")
        for args, said in LINES:
            self.wants(args, said)

    def test_commands(self):
        for args, said in [(["rendr"], "did you mean render?"), (["up", "x"], "one too many"), (["wait"], "usage: kiln wait"),
                           (["down", "--steps=3"], "--steps does not go with kiln down")]:
            p = self.farm.run(*args)
            self.assertEqual(p.returncode, 1)
            self.assertIn(said, p.stderr)

    def test_no_farm_there_is_3(self):
        for args in (["status"], ["submit", "-p", "x"], ["wait", "ab"], ["fetch", "ab"], ["cancel", "ab"], ["workers"], ["drain", "w"],
                     ["down"], ["top", "--json"], ["status", "--farm", "ipc:///nowhere/farm"],
                     ["render", "-p", "x", "--farm", "ipc:///nowhere/farm"]):
            with self.subTest(args):
                p = self.farm.run(*args)
                self.assertEqual(p.returncode, 3, p.stderr)
                self.assertEqual(p.stdout, "")

    def test_what_is_right_is_taken_in_every_format(self):
        for name, text in [("a.txt", "one -- and a half\ntwo --steps 3 --seed 9\n"), ("a.jsonl", '{"prompt":"one"}\n{"prompt":"two","seed":9}\n'),
                           ("b.jsonl", '{"prompt":"one","tag":"x"}\n{"prompt":"two","seed":9,"who":[1]}\n'), ("a.json", '["one",\n{"prompt":"two","seed":9}]'),
                           ("b.txt", "one\rtwo --seed 9\r"), ("c.txt", "one\nSteps: 3, Sampler: Euler a, Schedule type: Karras\ntwo\nSteps: 3, Seed: 9, Version: v1\n"),
                           ("b.csv", "sep=;\r\nprompt;seed;cfg;width\r\none;;7,5;64\r\ntwo;9,0;;\r\n;;;\r\n"),
                           ("u.csv", "\ufeffprompt,seed\r\none,\r\ntwo,9\r\n".encode("utf-16le")),
                           ("a.csv", 'Prompt,seed,who\n"one, or so",,me\ntwo,9,you\n'), ("a.tsv", "prompt\tseed\none\t\ntwo\t9\n")]:
            (self.farm.tmp / name).write_bytes(text if isinstance(text, bytes) else text.encode())
            out = self.farm.tmp / (name + ".out")
            self.farm.ok("render", name, "-o", out, "--engine", "sim:ms=0", "--workers", "1")
            lines = self.check_folder(out, 2)
            self.assertEqual((lines[1]["prompt"], lines[1]["seed"]), ("two", 9))
            if name == "a.csv":
                self.assertEqual(lines[1]["extra"], {"who": "you"})
            if name == "b.jsonl":
                self.assertEqual(lines[1]["extra"], {"who": [1]})
            if name == "b.csv":
                self.assertEqual((lines[0]["cfg"], lines[0]["width"]), (7.5, 64))
        self.farm.ok("render", "-", "--input-format", "txt", "-o", "in", "--engine", "sim:ms=0", "--workers", "1", input="one\ntwo\n")
        self.check_folder(self.farm.tmp / "in", 2)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What a person meets in kiln-render: options, messages, exit statuses, files.

    render_test.py PROGRAM FOLDER    FOLDER: tests/golden; the standard library is enough
"""
import array
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM, GOLDEN = sys.argv[1], pathlib.Path(sys.argv[2])
SD1 = str(GOLDEN / "pipelines/sd1")


def run(*args, model=SD1, stdin=None, cwd=None):
    return subprocess.run([PROGRAM, "--model", model, *map(str, args)], input=stdin, capture_output=True, cwd=cwd,
                          timeout=120, env={**os.environ, "XDG_CACHE_HOME": TMP})


def tensors(path):
    """name -> (dtype, shape, values)"""
    data = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    out = {}
    for name, t in json.loads(data[8:8 + n]).items():
        if name != "__metadata__":
            begin, end = t["data_offsets"]
            values = array.array({"F32": "f", "I32": "i"}[t["dtype"]], data[8 + n + begin:8 + n + end])
            out[name] = t["dtype"], t["shape"], values
    return out


def chunks(png):
    data, at = pathlib.Path(png).read_bytes(), 8
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        yield kind.decode(), data[at + 8:at + 8 + n]
        at += 12 + n


class Render(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(dir=TMP)
        self.path = pathlib.Path(self.dir.name)

    def tearDown(self):
        self.dir.cleanup()

    def refused(self, *args, says, **kwargs):
        r = run(*args, **kwargs)
        self.assertEqual(r.returncode, 1, r.stderr)
        self.assertIn(says, r.stderr.decode())
        self.assertEqual(r.stdout, b"")

    def test_dump_holds_what_diffusers_computes(self):
        case = json.loads((GOLDEN / "pipelines/sd1.json").read_text())[0]
        r = run("-p", case["prompt"], "--negative", case["negative"], "--seed", case["seed"], "--steps", case["steps"],
                "--sampler", case["sampler"], "--schedule", case["schedule"], "--cfg", case["cfg"],
                "--size", f"{case['width']}x{case['height']}", "--dump", self.path / "d", "-o", self.path / "p.png")
        self.assertEqual(r.returncode, 0, r.stderr)
        got = tensors(self.path / "d")
        want = {k[3:]: v for k, v in tensors(GOLDEN / "pipelines/sd1.safetensors").items() if k.startswith("00.")}
        self.assertEqual(sorted(got), sorted(want))
        for name, (dtype, shape, values) in want.items():
            self.assertEqual(got[name][:2], (dtype, shape), name)
            worst = max(abs(a - b) for a, b in zip(got[name][2], values))
            self.assertLessEqual(worst, 0 if dtype == "I32" else 1e-3, name)
        self.assertEqual(got["image"][1], [case["height"], case["width"], 3])

    def test_same_bytes_with_any_threads_and_batch(self):
        (self.path / "p.txt").write_text("a cat\na dog\na river --cfg 1\na castle\na circle\n")
        seen = set()
        for threads, batch in ((1, 1), (2, 1), (2, 4), (3, 5), (4, 2)):
            out = self.path / f"{threads}-{batch}"
            r = run("--prompts", self.path / "p.txt", "-o", out, "--seed", 5, "--steps=3", "--threads", threads,
                    "--batch", batch)
            self.assertEqual(r.returncode, 0, r.stderr)
            names = sorted(os.listdir(out))
            self.assertEqual(names, [f"{i:06d}.png" for i in range(5)])
            seen.add(b"".join((out / n).read_bytes() for n in names))
        self.assertEqual(len(seen), 1)

    def test_png_says_how_it_was_made(self):
        r = run("-p", "a cat", "--negative", "dark", "--seed", 3, "--steps", 2, "--sampler", "dpmpp_2m", "--schedule",
                "karras", "-o", self.path / "p.png", "--json")
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(json.loads(r.stdout)["images"], 1)
        all_chunks = dict(chunks(self.path / "p.png"))
        self.assertEqual(list(all_chunks)[-2:], ["IDAT", "IEND"])
        text = all_chunks["tEXt"].decode()
        for words in ("parameters\0a cat\nNegative prompt: dark\nSteps: 2, Sampler: DPM++ 2M", "Schedule type: Karras",
                      "CFG scale: 7", "Seed: 3", "Size: 16x16", "Model: sd1"):
            self.assertIn(words, text)
        self.assertIn(b"trainedAlgorithmicMedia", all_chunks["iTXt"])

    def test_images_of_consecutive_seeds_make_a_folder(self):
        r = run("-p", "a cat", "--seed", 7, "--images", 3, "--steps", 1, "-o", self.path / "out")
        self.assertEqual(r.returncode, 0, r.stderr)
        seeds = [dict(chunks(self.path / "out" / f"{i:06d}.png"))["tEXt"] for i in range(3)]
        self.assertTrue(all(f"Seed: {7 + i}," in s.decode() for i, s in enumerate(seeds)))

    def test_a_drawn_seed_is_printed(self):
        r = run("-p", "a cat", "--steps", 1, "-o", self.path / "p.png")
        self.assertEqual(r.returncode, 0, r.stderr)
        seed = r.stderr.decode().split("seed ")[1].strip()
        self.assertIn(f"Seed: {seed},", dict(chunks(self.path / "p.png"))["tEXt"].decode())

    def test_prompts_come_from_standard_input(self):
        lines = b'{"prompt":"a cat","seed":3,"size":"16x24"}\n{"prompt":"b","sampler":"Euler a","schedule":"karras"}\n'
        r = run("--prompts", "-", "--input-format", "jsonl", "--steps", 1, "-o", self.path / "out", stdin=lines)
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(len(os.listdir(self.path / "out")), 2)

    def test_mistakes_are_found_before_anything_starts(self):
        out = self.path / "p.png"
        (self.path / "p.txt").write_text("a cat\nb --stesp 3\n")
        self.refused("--prompts", self.path / "p.txt", "-o", self.path / "o", says="p.txt:2: stesp: unknown, did you mean steps?")
        self.refused("--prompts", self.path / "none.txt", "-o", self.path / "o", says="none.txt")
        self.refused("-p", "a", "-o", out, "--sampler", "eulr", says="did you mean Euler?")
        self.refused("-p", "a", "-o", out, "--sampler", "DDIM", "--schedule", "karras", says="karras means nothing")
        self.refused("-p", "a", "-o", out, "--size", "17x16", says="17 is not a multiple of")
        self.refused("-p", "a", "-o", out, "--steps", 0, says="--steps: 0 is not between 1 and 1000")
        self.refused("-p", "a", "-o", out, "--cfg", "nan", says='--cfg: "nan" is not a number')
        self.refused("-p", "a", "-o", out, "--seed", "-1", says="--seed: -1 is not between")
        self.refused("-p", "a", "-o", out, "--stesp", 3, says="--stesp: unknown, did you mean --steps?")
        self.refused("-p", "a", "-o", out, "--steps", says="--steps: needs a value")
        self.refused("-p", "a", says="-o is missing")
        self.refused("-o", out, says="one of --prompt and --prompts")
        self.refused("-p", "a", "b", "-o", out, says="b: what is it?")
        self.refused("-p", "a", "-o", self.path / "none/p.png", says="its folder does not exist")
        self.refused("-p", "a", "-o", out, model=str(self.path / "none"), says="none: No such file or directory")
        self.refused("-p", "a", "-o", out, model=str(self.path), says="model_index.json")
        self.assertEqual(sorted(os.listdir(self.path)), ["p.txt"])

    def copy_of_sd1(self):
        to = self.path / "model"
        for f in (GOLDEN / "pipelines/sd1").rglob("*"):
            if f.is_file():
                t = to / f.relative_to(GOLDEN / "pipelines/sd1")
                t.parent.mkdir(parents=True, exist_ok=True)
                t.write_bytes(f.read_bytes())
        return to

    def test_broken_folders_are_named_with_their_file(self):
        model, out = self.copy_of_sd1(), self.path / "p.png"

        def refused(says):
            self.refused("-p", "a", "-o", out, model=str(model), says=says)

        config = model / "unet/config.json"
        good = config.read_text()
        config.write_text('{"a":')
        refused("unet/config.json:1: not a JSON object: it ends in the middle")
        config.write_text(good.replace('"norm_num_groups": 4', '"norm_num_groups": 3'))
        refused("unet/config.json: norm_num_groups: 3 does not divide 16 channels")
        config.write_text(good.replace('"layers_per_block": 1', '"layers_per_block": 2'))
        refused("down_blocks.0.resnets.1.norm1.weight: this tensor is missing")
        config.write_text(good.replace('"resnet_time_scale_shift": "default"', '"resnet_time_scale_shift": "scale_shift"'))
        refused("unet/config.json: resnet_time_scale_shift")
        config.write_text(good)
        weights = model / "unet/diffusion_pytorch_model.safetensors"
        data = weights.read_bytes()
        weights.write_bytes(data[:5000])
        refused("unet/diffusion_pytorch_model.safetensors")
        weights.rename(model / "unet/diffusion_pytorch_model.bin")
        refused("only a pickle (diffusion_pytorch_model.bin) is there; kiln reads safetensors alone")
        self.assertFalse(out.exists())

    def test_what_is_no_regular_file_is_refused_at_once(self):
        """Each in the place of each file that is read: none of them may block or be read for ever."""
        model, out = self.copy_of_sd1(), self.path / "p.png"
        (model / "kiln.json").write_text("{}")
        fifo = self.path / "fifo"
        os.mkfifo(fifo)
        for file in sorted(f for f in model.rglob("*") if f.is_file()):
            good = file.read_bytes()
            for target, kind in ((fifo, "a FIFO or pipe"), ("/dev/zero", "a device"), (self.path, "a folder")):
                with self.subTest(f"{file.name}: {kind}"):
                    file.unlink()
                    file.symlink_to(target)
                    self.refused("-p", "a", "-o", out, model=str(model),
                                 says=f"{file.relative_to(model)}: is {kind}, not a regular file")
            file.unlink()
            file.write_bytes(good)
        for target, kind in ((fifo, "a FIFO or pipe"), ("/dev/zero", "a device"), (self.path, "a folder")):
            with self.subTest(f"prompts and LoRAs: {kind}"):
                self.refused("--prompts", target, "--input-format", "txt", "-o", self.path / "out",
                             says=f"{target}: is {kind}, not a regular file")
                self.refused("-p", "a", "-o", out, "--lora", target,
                             says=f"{target}: is {kind}, not a regular file")

    def test_a_weight_that_is_no_number_is_found_when_the_model_is_loaded(self):
        model = self.copy_of_sd1()
        for file, name in (("unet/diffusion_pytorch_model.safetensors", "conv_in.weight"),
                           ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias"),
                           ("text_encoder/model.safetensors", "embeddings.token_embedding.weight")):
            path = model / file
            good = path.read_bytes()
            n = struct.unpack("<Q", good[:8])[0]
            header = json.loads(good[8:8 + n])
            full = next(k for k in header if k.endswith(name))
            end = 8 + n + header[full]["data_offsets"][1]
            value = {"F16": b"\0\x7e", "F32": b"\0\0\x80\x7f"}[header[full]["dtype"]]  # NaN; infinity
            path.write_bytes(good[:end - len(value)] + value + good[end:])
            self.refused("-p", "a", "-o", self.path / "p.png", model=str(model),
                         says=f"{path.parent}: {path.name}: {full}: a value is NaN or infinite")
            path.write_bytes(good)

    def test_interrupted_it_says_130(self):
        (self.path / "p.txt").write_text("a cat\n" * 2000)
        p = subprocess.Popen([PROGRAM, "--model", SD1, "--prompts", self.path / "p.txt", "-o", self.path / "out",
                              "--seed", "1"], stderr=subprocess.DEVNULL, env={**os.environ, "XDG_CACHE_HOME": TMP})
        while p.poll() is None and not (self.path / "out/000000.png").exists():
            time.sleep(0.01)
        p.send_signal(signal.SIGINT)
        self.assertEqual(p.wait(60), 130)
        names = os.listdir(self.path / "out")
        self.assertTrue(0 < len(names) < 2000)
        self.assertTrue(all(n.endswith(".png") for n in names))

    def test_describe_and_help(self):
        r = run("--describe")
        self.assertEqual(r.returncode, 0)
        d = json.loads(r.stdout)
        self.assertEqual((d["name"], len(d["sha256"]), d["size_multiple"]), ("sd1", 64, 4))
        self.assertEqual(d["defaults"], {"sampler": "PNDM", "schedule": "normal", "karras": False, "steps": 20, "cfg": 7, "size": "16x16"})
        self.assertEqual(run("--describe").stdout, r.stdout)  # the second from the cache
        # A scheduler that kiln does not have: its name, no sampler, and whether those that can will follow Karras' schedule.
        model = self.copy_of_sd1()
        for file, change in (("model_index.json", {"scheduler": ["diffusers", "DDPMScheduler"]}),
                             ("scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler", "use_karras_sigmas": True})):
            path = model / file
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        r = run("--describe", model=str(model))
        self.assertEqual(r.returncode, 0, r.stderr)
        d = json.loads(r.stdout)
        self.assertEqual((d["scheduler"], d["defaults"]["sampler"], d["defaults"]["karras"]), ("DDPMScheduler", None, True))
        self.assertIn(b"examples:", run("--help").stdout)
        self.assertTrue(run("--version").stdout.startswith(b"kiln-render "))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as TMP:
        unittest.main(argv=sys.argv[:1], verbosity=1)

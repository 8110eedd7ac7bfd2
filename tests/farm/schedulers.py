#!/usr/bin/env python3
"""A folder's scheduler is the one that renders, or the folder is refused in words before anything is started."""
import json
import pathlib
import sys

from farm import FarmTest, main, manifest

TINY = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny"
SAMPLERS = "DDIM, PNDM, Euler, Euler a, DPM++ 2M"
SMALL = ("-p", "a red circle", "--seed", "7", "--steps", "3", "--size", "64x64", "--workers", "1")


class Schedulers(FarmTest):
    def folder(self, index, config, name=None):
        """A copy of models/tiny whose two files name these classes, and that has no defaults of its own."""
        to = self.farm.tmp / (name or f"{index}-{config}")
        for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
            (to / part).mkdir(parents=True)
            for file in (TINY / part).iterdir():
                (to / part / file.name).symlink_to(file)
        text = json.loads((TINY / "model_index.json").read_text())
        text["scheduler"] = ["diffusers", index]
        (to / "model_index.json").write_text(json.dumps(text))
        text = json.loads((TINY / "scheduler/scheduler_config.json").read_text())
        text["_class_name"] = config
        (to / "scheduler/scheduler_config.json").unlink()
        (to / "scheduler/scheduler_config.json").write_text(json.dumps(text))
        return to

    def refused(self, says, *args):
        p = self.farm.run("render", "-o", "out", *args)
        self.assertEqual((p.returncode, p.stdout), (1, ""), p.stderr)
        for words in says:
            self.assertIn(words, p.stderr)
        self.assertFalse((self.farm.tmp / "out").exists())
        self.assertFalse((self.farm.dir / "run").exists() or self.farm.runs(), "something was started")

    def rendered(self, model, *args):
        """The one picture of a render that is done: its line in the manifest."""
        out = self.farm.tmp / f"pictures-{len(list(self.farm.tmp.glob('pictures-*')))}"
        self.farm.ok("render", *SMALL, "--model", model, "-o", out, *args)
        line, = self.check_folder(out, 1)
        return line

    def test_a_class_that_no_sampler_can_stand_in_for_is_refused_with_any_sampler(self):
        model = self.folder("LCMScheduler", "LCMScheduler")
        for args in ((), ("--sampler", "euler")):
            self.refused(("model_index.json: scheduler: ", "LCMScheduler", SAMPLERS), *SMALL, "--model", model, *args)

    def test_a_class_that_kiln_does_not_have_needs_a_sampler_by_name(self):
        model = self.folder("DDPMScheduler", "DDPMScheduler", "published")
        self.refused(("sampler: ", "published", "DDPMScheduler", "--sampler", SAMPLERS), *SMALL, "--model", model)
        # One prompt that names a sampler does not speak for the next.
        (self.farm.tmp / "p.txt").write_text("a --sampler_name Euler\nb\n")
        self.refused(("p.txt:2: ", "DDPMScheduler"), "p.txt", "--model", model)

        # What it renders then is that sampler's picture from the folder's other settings.
        line = self.rendered(model, "--sampler", "euler")
        self.assertEqual(line["sampler"], "Euler")
        own = self.rendered(self.folder("EulerDiscreteScheduler", "EulerDiscreteScheduler"))
        self.assertEqual((own["sampler"], own["pixels_sha256"]), ("Euler", line["pixels_sha256"]))

        # The folder's own kiln.json may name it once and for all.
        (model / "kiln.json").write_text('{"sampler": "Euler"}')
        self.assertEqual(self.rendered(model)["pixels_sha256"], line["pixels_sha256"])

    def test_a_farm_that_stays_refuses_it_in_the_same_words(self):
        model = self.folder("DDPMScheduler", "DDPMScheduler", "published")
        self.farm.ok("up", "--model", model, "--workers", 1)
        p = self.farm.run("submit", "-p", "a red circle", "--steps", 3, "--size", "64x64")
        self.assertEqual((p.returncode, p.stdout), (1, ""), p.stderr)
        for words in ("published", "DDPMScheduler", "--sampler", SAMPLERS):
            self.assertIn(words, p.stderr)
        self.assertEqual(self.farm.json("status"), [])
        batch = self.farm.ok("submit", "-p", "a red circle", "--steps", 3, "--size", "64x64", "--sampler", "ddim").strip()
        self.farm.ok("wait", batch)
        self.farm.ok("fetch", batch, "-o", self.farm.tmp / "got")
        self.assertEqual(manifest(self.farm.tmp / "got")[0]["sampler"], "DDIM")

    def test_of_two_names_that_of_model_index_json_counts(self):
        both = self.rendered(self.folder("EulerDiscreteScheduler", "EulerDiscreteScheduler"))
        other = self.rendered(self.folder("DDIMScheduler", "DDIMScheduler"))
        self.assertNotEqual(both["pixels_sha256"], other["pixels_sha256"])
        for config in ("DDIMScheduler", "LCMScheduler"):
            line = self.rendered(self.folder("EulerDiscreteScheduler", config))
            self.assertEqual((line["sampler"], line["pixels_sha256"]), ("Euler", both["pixels_sha256"]))
        self.refused(("LCMScheduler", SAMPLERS), *SMALL, "--model", self.folder("LCMScheduler", "EulerDiscreteScheduler"))


if __name__ == "__main__":
    sys.exit(main())

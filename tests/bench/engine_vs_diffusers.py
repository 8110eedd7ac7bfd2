#!/usr/bin/env python3
"""kiln's engine and diffusers on the same model folder, on the same threads, turn about, warm.

    engine_vs_diffusers.py MODEL [--size 128x128] [--steps 20] [--rounds 5]     a small model
    engine_vs_diffusers.py --sd15 [--rounds 3]                                  SD1.5's networks with random weights, 512x512

One picture with guidance. Prints the time of a step (the median of the steps but the first of each picture, then of the rounds), of a
picture, and from the start of a process to its first picture; the engine's GFLOP/s beside what oneDNN alone reaches on the model's
largest convolution; and the shares of a step by kind of op. Needs PyTorch, diffusers and transformers (tests/golden/requirements.txt); builds
what it runs in the folder that --build names, which must be configured.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

PROMPT, NEGATIVE, CFG = "a red circle", "", 7.5
FIRST_PICTURE = """
import sys, torch
torch.set_num_threads(int(sys.argv[3]))
from diffusers import StableDiffusionPipeline
p = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
p.set_progress_bar_config(disable=True)
w, h = map(int, sys.argv[4].split("x"))
p({prompt!r}, negative_prompt={negative!r}, num_inference_steps=int(sys.argv[5]), guidance_scale={cfg}, width=w, height=h,
  generator=torch.Generator().manual_seed(1)).images[0].save(sys.argv[2])
""".format(prompt=PROMPT, negative=NEGATIVE, cfg=CFG)


def make_sd15(folder):
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(os.path.join(os.path.dirname(__file__), "../golden/pipelines/sd1/tokenizer"))
    text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=512)
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
                            feature_extractor=None, requires_safety_checker=False).to(torch.float16).save_pretrained(folder)


class Kiln:
    def __init__(self, a):
        self.p = subprocess.Popen([f"{a.build}/bin/bench-step", a.model, str(a.width), str(a.height), str(a.steps), str(CFG),
                                   str(a.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def picture(self):
        self.p.stdin.write("\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        if not line:
            sys.exit("bench-step ended")
        return json.loads(line)


class Diffusers:
    def __init__(self, a):
        import torch
        import diffusers
        diffusers.logging.set_verbosity_error()
        torch.set_num_threads(a.threads)
        self.torch, self.a = torch, a
        self.pipe = diffusers.StableDiffusionPipeline.from_pretrained(a.model, torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        if a.channels_last:
            self.pipe.unet.to(memory_format=torch.channels_last)
            self.pipe.vae.to(memory_format=torch.channels_last)

    def picture(self):
        ends = []

        def step(pipe, i, t, kwargs):
            ends.append(time.perf_counter())
            return {}

        begun = time.perf_counter()
        with self.torch.inference_mode():
            self.pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=self.a.steps, guidance_scale=CFG, width=self.a.width,
                      height=self.a.height, generator=self.torch.Generator().manual_seed(1), callback_on_step_end=step)
        picture = time.perf_counter() - begun
        steps = [(b - a) * 1000 for a, b in zip(ends, ends[1:])]
        return {"step_ms": statistics.median(steps), "picture_ms": picture * 1000}


def first_picture(a, rounds):
    """Process start to picture on disk, turn about; seconds, the median."""
    kiln, other = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            t = time.perf_counter()
            subprocess.run([f"{a.build}/bin/kiln-render", "--model", a.model, "--prompt", PROMPT, "--negative", NEGATIVE, "--seed", "1",
                            "--steps", str(a.steps), "--cfg", str(CFG), "--size", f"{a.width}x{a.height}", "--threads", str(a.threads),
                            "-o", f"{folder}/a.png"], check=True, stdout=subprocess.DEVNULL)
            kiln.append(time.perf_counter() - t)
            t = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", "-c", FIRST_PICTURE, a.model, f"{folder}/b.png", str(a.threads),
                            f"{a.width}x{a.height}", str(a.steps)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            other.append(time.perf_counter() - t)
    return statistics.median(kiln), statistics.median(other)


def compare(a):
    kiln, other = Kiln(a), Diffusers(a)
    kiln.picture(), other.picture()  # warm
    ours, theirs = [], []
    for _ in range(a.rounds):
        ours.append(kiln.picture())
        theirs.append(other.picture())
    kiln.p.stdin.close()
    kiln.p.wait()

    def median(v, key):
        return statistics.median(x[key] for x in v)

    step, step_other = median(ours, "step_ms"), median(theirs, "step_ms")
    picture, picture_other = median(ours, "picture_ms"), median(theirs, "picture_ms")
    print(f"{a.model}, {a.width}x{a.height}, {a.steps} steps, guidance, {a.threads} threads, {a.rounds} rounds turn about")
    print(f"{'':24}{'kiln':>12}{'diffusers':>12}{'ratio':>8}")
    print(f"{'a step, ms':24}{step:12.2f}{step_other:12.2f}{step / step_other:8.3f}")
    print(f"{'a picture, ms':24}{picture:12.1f}{picture_other:12.1f}{picture / picture_other:8.3f}")
    if a.first:
        first, first_other = first_picture(a, min(a.rounds, 3))
        print(f"{'start to picture, s':24}{first:12.2f}{first_other:12.2f}{first / first_other:8.3f}")
    shape = ours[-1]["largest"]
    alone = subprocess.run([f"{a.build}/bin/bench-ops", "--alone", *map(str, shape), str(a.threads)], check=True, capture_output=True,
                           text=True).stdout.strip()
    print(f"the engine in a step: {median(ours, 'gflops'):.1f} GFLOP/s ({median(ours, 'step_gflop'):.1f} GFLOP); oneDNN alone, "
          f"{shape[0]} to {shape[1]} channels, {shape[3]}x{shape[2]}, kernel {shape[4]}: {alone} GFLOP/s")
    kinds = ("convolution", "matrix_product", "attention", "norm", "rest")
    print("shares of a step: " + ", ".join(f"{k.replace('_', ' ')} {100 * median(ours, k):.1f} %" for k in kinds))
    print("GFLOP/s: " + ", ".join(f"{k.replace('_', ' ')} {median(ours, k + '_gflops'):.0f}" for k in kinds[:3]))


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?")
    p.add_argument("--sd15", action="store_true", help="random weights in the shapes of SD1.5; MODEL is where to keep them, or nothing")
    p.add_argument("--size", default=None)
    p.add_argument("--steps", type=int, default=None)
    p.add_argument("--rounds", type=int, default=None)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--channels-last", action="store_true", help="diffusers with channels last, which is faster for it on some machines")
    p.add_argument("--no-first", dest="first", action="store_false", help="leave out the time from start to first picture")
    p.add_argument("--build", default=os.path.join(here, "../../build"))
    a = p.parse_args()
    # before a model is made or loaded, so that a benchmark never measures yesterday's programs
    subprocess.run(["cmake", "--build", a.build, "--target", "bench-step", "bench-ops", "kiln-render"], check=True)
    a.size = a.size or ("512x512" if a.sd15 else "128x128")
    a.steps = a.steps or (4 if a.sd15 else 20)
    a.rounds = a.rounds or (3 if a.sd15 else 5)
    a.width, a.height = map(int, a.size.split("x"))
    if not a.model and not a.sd15:
        p.error("a model folder, or --sd15")
    with tempfile.TemporaryDirectory() as folder:
        a.model = a.model or os.path.join(folder, "sd15")
        if a.sd15 and not os.path.exists(os.path.join(a.model, "model_index.json")):
            make_sd15(a.model)
        compare(a)


if __name__ == "__main__":
    main()

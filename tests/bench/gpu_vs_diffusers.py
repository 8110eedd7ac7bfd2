#!/usr/bin/env python3
"""diffusers with torch.compile on a GPU, as tests/gpu/run.sh sets it beside kiln: the same model folder, prompts, steps, guidance and size.

    gpu_vs_diffusers.py sd15|sd21|sdxl FOLDER [--batches 1,2,4,8,16,32,64] [--steps 20] [--rounds 3] [--mode max-autotune-no-cudagraphs]
    gpu_vs_diffusers.py --ceiling        TFLOP/s of large bf16 matrix products

End to end, texts to 8-bit pixels: different prompts and seeds, Euler, channels-last, UNet and VAE decoder compiled, warmed up before the
clock starts. A line of JSON a batch size; batches grow until one does not fit or is no faster. Needs PyTorch with CUDA, diffusers,
transformers (77 where they are not there).
"""
import argparse
import json
import statistics
import sys
import time

try:
    import torch
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

CFG = {"sd15": 7.5, "sd21": 7.5, "sdxl": 8.0}
SIZE = {"sd15": 512, "sd21": 768, "sdxl": 1024}


def put(**row):
    print(json.dumps(row), flush=True)


def ceiling(rounds=20):
    """The best of a few shapes: large, square and as the feed-forward layers have them."""
    best, best_shape = 0.0, None
    for m, n, k in ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 10240, 1280), (65536, 1280, 1280)):
        a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
        for _ in range(5):
            a @ b
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(rounds):
            a @ b
        end.record()
        torch.cuda.synchronize()
        tflops = 2 * m * n * k * rounds / (begin.elapsed_time(end) / 1e3) / 1e12
        print(f"{m} x {n} x {k}: {tflops:.1f} TFLOP/s", flush=True)
        if tflops > best:
            best, best_shape = tflops, [m, n, k]
    put(bench="ceiling", device=torch.cuda.get_device_name(), precision="bf16", shape=best_shape, tflops=round(best, 1))


def load(folder, precision, mode):
    import diffusers
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=precision, use_safetensors=True).to("cuda")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.unet = torch.compile(pipe.unet, mode=mode, fullgraph=True)
    pipe.vae.decode = torch.compile(pipe.vae.decode, mode=mode)
    return pipe, diffusers.__version__


def render(pipe, a, n, first):
    prompts = [f"a red circle above {first + i} blue squares" for i in range(n)]
    generators = [torch.Generator().manual_seed(1000 + first + i) for i in range(n)]
    return pipe(prompt=prompts, negative_prompt=[""] * n, num_inference_steps=a.steps, guidance_scale=CFG[a.model], width=a.size,
                height=a.size, generator=generators, output_type="pil").images


def measure(a):
    precision = {"bf16": torch.bfloat16, "f16": torch.float16}[a.precision]
    pipe, version = load(a.folder, precision, a.mode)
    about = dict(bench="diffusers", model=a.model, device=torch.cuda.get_device_name(), precision=a.precision, mode=a.mode, width=a.size,
                 height=a.size, steps=a.steps, cfg=CFG[a.model], sampler="Euler", versions=f"torch {torch.__version__}, diffusers {version}")
    best = 0.0
    for n in a.batches:
        torch._dynamo.reset()
        try:
            for _ in range(2):  # compiles, then settles
                render(pipe, a, n, 0)
            torch.cuda.synchronize()
            seconds = []
            for i in range(a.rounds):
                begun = time.perf_counter()
                images = render(pipe, a, n, (i + 1) * n)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begun)
            assert len(images) == n
        except torch.cuda.OutOfMemoryError:
            put(**about, batch=n, images_per_s=None, error="out of memory")
            return 0
        rate = n / statistics.median(seconds)
        put(**about, batch=n, images_per_s=round(rate, 4), steps_per_s=None, idle=None, seconds=round(statistics.median(seconds), 4),
            memory_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2))
        if rate < best * 1.01:  # larger ones gain nothing any more
            return 0
        best = max(best, rate)
    return 0


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("model", nargs="?", choices=sorted(CFG))
    p.add_argument("folder", nargs="?")
    p.add_argument("--ceiling", action="store_true")
    p.add_argument("--batches", default="1,2,4,8,16,32,64")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--size", type=int)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--precision", choices=["bf16", "f16"], default="bf16")
    p.add_argument("--mode", default="max-autotune-no-cudagraphs")
    a = p.parse_args()
    if not a.ceiling and not a.folder:
        p.error("a model and its folder are needed")
    if not torch.cuda.is_available():
        print("skipped: PyTorch finds no GPU")
        return 77
    if a.ceiling:
        ceiling()
        return 0
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as e:
        print(f"skipped: {e}")
        return 77
    a.batches = [int(n) for n in a.batches.split(",")]
    a.size = a.size or SIZE[a.model]
    with torch.inference_mode():
        return measure(a)


if __name__ == "__main__":
    sys.exit(main())

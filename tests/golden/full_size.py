#!/usr/bin/env python3
"""The full-size architectures against diffusers: SD1.5, SD2.1 and SDXL from their published configurations, random weights in files
of each type, two steps with guidance at a small size, each stage compared, and the memory that kiln-render took.

    full_size.py --render build/bin/kiln-render [--model sdxl --type f16 …] [--size 256] [--dir /tmp/kiln-full-size] [--keep]

Folders are made under --dir and removed again. SDXL in f32 takes 14 GB of disk and of memory; one process runs at a time.
Ends with 77 (skipped) where PyTorch, diffusers and transformers (requirements.txt) are not there.
"""
import argparse
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib

try:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    import diffusers
    import transformers
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make  # noqa: E402

transformers.utils.logging.disable_progress_bar()

TYPES = {"f16": (torch.float16, "F16", 2), "bf16": (torch.bfloat16, "BF16", 2), "f32": (torch.float32, "F32", 4)}
PART_BYTES = 2 << 30  # f16 and bf16 are written in parts of this size; f32 as one file, as SDXL is published
RELATIVE_MAX = 1e-3  # ‖ours − diffusers'‖ / ‖diffusers'‖ of every stage before the picture
MEMORY_MAX = 1.15  # peak over the f32 weights; up to 256 × 256 the activations are small beside them

PROMPT = "a red circle above a blue square, don't!"

CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu",
              projection_dim=768, vocab_size=49408, max_position_embeddings=77, bos_token_id=0, eos_token_id=2)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu",
              projection_dim=512, vocab_size=49408, max_position_embeddings=77, bos_token_id=0, eos_token_id=2)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
              projection_dim=1280, vocab_size=49408, max_position_embeddings=77, bos_token_id=0, eos_token_id=2)
VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, norm_num_groups=32,
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
FOUR_LEVELS = dict(block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, norm_num_groups=32,
                   down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                   up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
SCHEDULE = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
            "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
            "trained_betas": None}

MODELS = {
    "sd15": dict(
        text=[CLIP_L], pads=[make.EOT],
        unet=dict(sample_size=64, attention_head_dim=8, cross_attention_dim=768, **FOUR_LEVELS),
        vae=dict(sample_size=512, scaling_factor=0.18215, **VAE),
        scheduler={"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **SCHEDULE}),
    "sd21": dict(
        text=[CLIP_H], pads=["!"],
        unet=dict(sample_size=96, attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True,
                  upcast_attention=True, **FOUR_LEVELS),
        vae=dict(sample_size=768, scaling_factor=0.18215, **VAE),
        scheduler={"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "v_prediction", **SCHEDULE}),
    "sdxl": dict(
        text=[CLIP_L, CLIP_G], pads=[make.EOT, "!"],
        unet=dict(sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, norm_num_groups=32,
                  attention_head_dim=(5, 10, 20), cross_attention_dim=2048, use_linear_projection=True,
                  transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time", addition_time_embed_dim=256,
                  projection_class_embeddings_input_dim=2816,
                  down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                  up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")),
        vae=dict(sample_size=1024, scaling_factor=0.13025, force_upcast=True, **VAE),
        scheduler={"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "interpolation_type": "linear",
                   "prediction_type": "epsilon", "sample_max_value": 1.0, "timestep_spacing": "leading",
                   "use_karras_sigmas": False, **SCHEDULE}),
}


# ---- the folder ----

def random_tensor(name, shape):
    """Norms that are not the identity, biases that are not zero, weights of unit gain; the same for a name, whatever the type."""
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    t = torch.randn(shape, generator=g)
    if len(shape) == 1:
        return t.mul_(0.2).add_(1.0 if name.endswith("weight") else 0.0)
    if "embedding" in name and "time" not in name and "add_" not in name:
        return t.mul_(0.5)
    return t.mul_(1 / math.sqrt(math.prod(shape[1:])))


def write_part(path, shapes, kind):
    """A safetensors file, tensor by tensor: nothing is held but the one that is written."""
    dtype, word, size = TYPES[kind]
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes:
        n = math.prod(shape) * size
        header[name] = {"dtype": word, "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes:
            t = random_tensor(name, shape).to(dtype)
            f.write(memoryview(t.view(torch.uint8).numpy() if len(shape) else t.numpy()))


def write_weights(folder, stem, model, kind):
    """Returns the number of parameters."""
    shapes = [(k, tuple(v.shape)) for k, v in model.state_dict().items()]
    parts, used = [[]], 0
    for name, shape in shapes:
        n = math.prod(shape) * TYPES[kind][2]
        if kind != "f32" and used and used + n > PART_BYTES:
            parts.append([])
            used = 0
        parts[-1].append((name, shape))
        used += n
    if len(parts) == 1:
        write_part(f"{folder}/{stem}.safetensors", parts[0], kind)
    else:
        names, weight_map = [f"{stem}-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))], {}
        for name, part in zip(names, parts):
            write_part(f"{folder}/{name}", part, kind)
            weight_map.update({k: name for k, _ in part})
        make.write_json(f"{folder}/{stem}.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return sum(math.prod(s) for _, s in shapes)


def make_folder(folder, m, kind):
    """Returns the parameters of what kiln loads."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    xl = len(m["text"]) == 2
    vocab, merges = make.small_bpe(60)
    index = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
             "scheduler": ["diffusers", m["scheduler"]["_class_name"]], "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"]}
    count = 0
    for i, (config, pad) in enumerate(zip(m["text"], m["pads"])):
        suffix = "_2" if i else ""
        os.makedirs(f"{folder}/tokenizer{suffix}")
        make.keep_old_tokenizer(folder, vocab, merges, pad, config_pad=make.EOT, part="tokenizer" + suffix)
        cls = transformers.CLIPTextModelWithProjection if i else transformers.CLIPTextModel
        with torch.device("meta"):
            text = cls(transformers.CLIPTextConfig(**config))
        text.config.architectures = [cls.__name__]
        text.config.save_pretrained(f"{folder}/text_encoder{suffix}")
        count += write_weights(f"{folder}/text_encoder{suffix}", "model", text, kind)
        index["text_encoder" + suffix] = ["transformers", cls.__name__]
        index["tokenizer" + suffix] = ["transformers", "CLIPTokenizer"]
    for part, cls in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        with torch.device("meta"):
            model = cls(**m[part])
        model.save_config(f"{folder}/{part}")
        n = write_weights(f"{folder}/{part}", "diffusion_pytorch_model", model, kind)
        encoder = sum(math.prod(v.shape) for k, v in model.state_dict().items() if k.startswith(("encoder.", "quant_conv.")))
        print(f"  {part}: {n:,} parameters", flush=True)
        count += n - encoder
    os.makedirs(f"{folder}/scheduler")
    make.write_json(f"{folder}/scheduler/scheduler_config.json", m["scheduler"])
    make.write_json(f"{folder}/model_index.json", index)
    return count


# ---- the reference, a part at a time ----

def load_part(folder, cls):
    """In f32, without a second copy: from_pretrained initialises first and converts then."""
    with torch.device("meta"):
        model = cls.from_config(cls.load_config(folder))
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    state = {}
    for f in files:
        with safe_open(f"{folder}/{f}", "pt") as part:
            for k in part.keys():
                state[k] = part.get_tensor(k).float()
    model.load_state_dict(state, assign=True)
    return model.eval()


def relative(got, want):
    return float((got - want).norm() / want.norm())


def check(folder, dump, steps, cfg):
    """Compares the stages of kiln's dump; each begins from kiln's own input, so that a stage is to blame for itself."""
    t = load_file(dump)
    index = json.load(open(f"{folder}/model_index.json"))
    xl, worst = "text_encoder_2" in index, {}
    states, pooled = [], None
    negatives = [] if xl else [""]
    for suffix in ("", "_2") if xl else ("",):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(f"{folder}/tokenizer{suffix}")
        cls = transformers.CLIPTextModelWithProjection if suffix else transformers.CLIPTextModel
        text = cls.from_pretrained(f"{folder}/text_encoder{suffix}", dtype=torch.float32).eval()
        ids = tokenizer(negatives + [PROMPT], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        assert torch.equal(ids.to(torch.int32), t["input_ids" + suffix]), "token ids differ"
        out = text(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2] if xl else out.last_hidden_state)
        pooled = out.text_embeds if suffix else None
        del text
    states = torch.cat(states, -1)
    if xl:  # an empty negative prompt
        states = torch.cat([torch.zeros_like(states), states])
        pooled = torch.cat([torch.zeros_like(pooled), pooled])
        worst["pooled"] = relative(t["text_pooled"], pooled)
    worst["text"] = relative(t["text_states"], states)

    config = json.load(open(f"{folder}/scheduler/scheduler_config.json"))
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(steps)
    unet = load_part(f"{folder}/unet", diffusers.UNet2DConditionModel)
    height, width = t["image"].shape[:2]
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[height, width, 0, 0, height, width]] * 2).float()} if xl else None
    x = t["noise"] * scheduler.init_noise_sigma
    worst["unet"] = 0.0
    for k, timestep in enumerate(scheduler.timesteps[:steps]):
        u, c = unet(scheduler.scale_model_input(torch.cat([x, x]), timestep), timestep, states, added_cond_kwargs=added).sample.chunk(2)
        worst["unet"] = max(worst["unet"], relative(t[f"unet_{k:03d}"], u + cfg * (c - u)))
        scheduler.step(t[f"unet_{k:03d}"], timestep, x)  # keeps the scheduler's own state going
        x = t[f"latents_{k:03d}"]
    del unet
    vae = load_part(f"{folder}/vae", diffusers.AutoencoderKL)
    x = t[sorted(k for k in t if k.startswith("latents_"))[-1]]
    image = (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
    worst["picture"] = float((t["image"] - image).abs().max())
    return worst


# ---- the run ----

def peak_of_children():
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def child(args, *rest):
    """This program again, so that its memory goes back and its peak is its own."""
    return subprocess.run([sys.executable, os.path.abspath(__file__), "--render", args.render, "--dir", args.dir, "--size",
                           str(args.size), "--steps", str(args.steps), "--cfg", str(args.cfg), *rest],
                          check=True, stdout=subprocess.PIPE, text=True).stdout


def run_one(args, name, kind):
    folder, dump = f"{args.dir}/{name}-{kind}", f"{args.dir}/{name}-{kind}.dump"
    print(f"{name} {kind}", flush=True)
    out = child(args, "--model", name, "--type", kind, "--only", "make")
    print(out[:out.rindex("\n", 0, -1) + 1], end="")
    parameters = int(out.split()[-1])
    begun = time.monotonic()
    command = [args.render, "--model", folder, "-p", PROMPT, "--seed", "7", "--steps", str(args.steps), "--cfg", str(args.cfg),
               "--size", f"{args.size}x{args.size}", "--dump", dump, "-q", "--cache", args.dir]
    report = json.loads(child(args, "--model", name, "--type", kind, "--only", "render:" + json.dumps(command)))
    seconds = time.monotonic() - begun
    worst = json.loads(child(args, "--model", name, "--type", kind, "--only", "check"))
    weights = 4 * parameters
    ratio = report["peak"] / weights
    print(f"  kiln: {seconds:.0f} s with hashing and loading; weights {weights / 1e9:.3f} GB in f32, peak {report['peak'] / 1e9:.3f} GB, "
          f"{ratio:.3f} of them")
    print("  differences: " + ", ".join(f"{k} {v:.2g}" for k, v in worst.items()), flush=True)
    if not args.keep:
        shutil.rmtree(folder)
        os.remove(dump)
    bad = [k for k, v in worst.items() if k != "picture" and not v <= RELATIVE_MAX]
    if not worst["picture"] <= 1 / 255:
        bad.append("picture")
    if not ratio <= MEMORY_MAX and args.size <= 256:
        bad.append("memory")
    return bad


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--render", required=True)
    p.add_argument("--model", action="append", choices=list(MODELS))
    p.add_argument("--type", action="append", choices=list(TYPES))
    p.add_argument("--size", type=int, default=256)
    p.add_argument("--steps", type=int, default=2)
    p.add_argument("--cfg", type=float, default=3.0)
    p.add_argument("--dir", default="/tmp/kiln-full-size")
    p.add_argument("--keep", action="store_true", help="leaves the folders and dumps")
    p.add_argument("--only", help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_grad_enabled(False)
    os.makedirs(args.dir, exist_ok=True)
    if args.only:
        folder = f"{args.dir}/{args.model[0]}-{args.type[0]}"
        if args.only == "make":
            print(make_folder(folder, MODELS[args.model[0]], args.type[0]))
        elif args.only == "check":
            print(json.dumps(check(folder, folder + ".dump", args.steps, args.cfg)))
        else:
            subprocess.run(json.loads(args.only.removeprefix("render:")), check=True, stdout=subprocess.DEVNULL)
            print(json.dumps({"peak": peak_of_children()}))
        return 0
    bad = []
    for name in args.model or MODELS:
        for kind in args.type or TYPES:
            bad += [f"{name} {kind}: {b}" for b in run_one(args, name, kind)]
    for b in bad:
        print("WRONG:", b)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

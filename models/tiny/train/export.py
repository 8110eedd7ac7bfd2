"""Writes the model folder from a training run: export.py OUT MODEL (fp16, the averaged weights)"""

import json
import os
import shutil
import subprocess
import sys

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

import nets
import state
import vae as ae
import words

DEFAULTS = {"sampler": "DPM++ 2M", "schedule": "normal", "steps": 16, "cfg": 2, "size": "128x128"}


def main(out, model):
    tokenizer = words.load(f"{out}/tokenizer")
    ck = state.load(f"{out}/diffusion.pt")
    unet, text, vae = nets.make_unet(), nets.make_text(len(tokenizer)), ae.make()
    unet.load_state_dict({k[5:]: v for k, v in ck["ema"].items() if k.startswith("unet.")})
    text.load_state_dict({k[5:]: v for k, v in ck["ema"].items() if k.startswith("text.")})
    vae.load_state_dict(state.load(f"{out}/vae_final.pt")["vae"])
    vae.register_to_config(scaling_factor=1.0, force_upcast=False)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet,
        # DDIM's file states every field that the other samplers read too (clip_sample above all)
        scheduler=DDIMScheduler(**nets.SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    for part in ("unet", "vae", "text_encoder"):
        for tensor in getattr(pipe, part).state_dict().values():
            assert torch.isfinite(tensor.half()).all(), part
    pipe.to(dtype=torch.float16)
    tmp = f"{out}/export"
    shutil.rmtree(tmp, ignore_errors=True)
    pipe.save_pretrained(tmp, safe_serialization=True)
    shutil.rmtree(f"{tmp}/tokenizer")
    shutil.copytree(f"{out}/tokenizer", f"{tmp}/tokenizer")
    os.makedirs(model, exist_ok=True)
    for part in ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        to = os.path.join(model, part)
        shutil.rmtree(to, ignore_errors=True)
        # safetensors writes files that only their owner may read
        subprocess.run(["chmod", "-R", "u=rwX,go=rX", f"{tmp}/{part}"], check=True)
        (shutil.copytree if os.path.isdir(f"{tmp}/{part}") else shutil.copy)(f"{tmp}/{part}", to)
    with open(os.path.join(model, "kiln.json"), "w") as f:
        json.dump(DEFAULTS, f, indent=1)
        f.write("\n")
    shutil.rmtree(tmp)
    size = sum(os.path.getsize(os.path.join(d, n)) for part in ("scheduler", "text_encoder", "tokenizer", "unet",
                                                                "vae")
               for d, _, names in os.walk(os.path.join(model, part)) for n in names)
    print(f"{model}: {size} bytes, {size / 2**20:.2f} MiB, after {ck['seen']} pictures, {ck['seconds']:.0f} s")
    assert size < 16 << 20
    assert isinstance(words.load(os.path.join(model, "tokenizer")), CLIPTokenizer)


if __name__ == "__main__":
    main(*sys.argv[1:3])

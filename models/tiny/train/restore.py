"""Makes a training folder out of a model folder, to train the shipped weights further: restore.py MODEL OUT

Autoencoder, tokenizer, UNet and text encoder are taken over; the optimizer starts anew. Then:
  launch.sh diffusion.py --out OUT --minutes N --lr 5e-4
"""

import os
import shutil
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

import nets
import state
import vae as ae
import words


def main(model, out):
    os.makedirs(out, exist_ok=True)
    shutil.copytree(f"{model}/tokenizer", f"{out}/tokenizer", dirs_exist_ok=True)
    vae = ae.make()
    vae.load_state_dict(AutoencoderKL.from_pretrained(f"{model}/vae", torch_dtype=torch.float32).state_dict())
    state.save(f"{out}/vae_final.pt", vae=vae.state_dict())
    unet = nets.make_unet()
    unet.load_state_dict(UNet2DConditionModel.from_pretrained(f"{model}/unet", torch_dtype=torch.float32).state_dict())
    text = nets.make_text(len(words.load(f"{out}/tokenizer")))
    text.load_state_dict(CLIPTextModel.from_pretrained(f"{model}/text_encoder", dtype=torch.float32).state_dict())
    both = torch.nn.ModuleDict({"unet": unet, "text": text}).state_dict()
    state.save(f"{out}/diffusion.pt", train=both, ema=both, opt=None, step=0, seen=0, seconds=0.0)


if __name__ == "__main__":
    main(*sys.argv[1:3])

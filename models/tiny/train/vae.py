"""Trains the autoencoder: vae.py --out DIR [--minutes N] [--batch N]"""

import argparse
import math
import os

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL

import parallel
import scene
import state

LATENT_CHANNELS = 8


def make():
    # One group a norm: with few channels a group, flat pictures lose their colour in the norm.
    return AutoencoderKL(in_channels=3, out_channels=3, block_out_channels=(16, 32, 64),
                         down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                         layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=1, sample_size=128,
                         mid_block_add_attention=False)


def pictures(scenes, rng):
    return masked_pictures(scenes, rng)[0]


def masked_pictures(scenes, rng):
    x, mask = zip(*(scene.draw_masked(s, rng) for s in scenes))
    x, mask = np.stack(x), torch.from_numpy(np.stack(mask))[:, None]
    x = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last), mask


def encode(vae, x):
    """Mean and log variance of the latents."""
    return vae.quant_conv(vae.encoder(x)).float().chunk(2, 1)


def decode(vae, z):
    return vae.decoder(vae.post_quant_conv(z)).float()


def psnr(vae, x):
    with torch.no_grad():
        y = torch.cat([decode(vae, encode(vae, b)[0]).clamp(-1, 1) for b in x.split(16)])
    return float((-10 * torch.log10(((y - x) / 2).pow(2).mean((1, 2, 3)))).mean())


def widen(old, new):
    """The weights of an autoencoder with fewer latent channels, in a new one's: the channels that it has not
    stay as they were drawn. `old` and `new`: state dicts."""
    have, want = old["post_quant_conv.weight"].shape[1], new["post_quant_conv.weight"].shape[1]
    rows = torch.cat([torch.arange(have), torch.arange(have) + want])  # means, then log variances
    out = {k: v.clone() for k, v in old.items()}
    for k, both in (("encoder.conv_out", False), ("quant_conv", True)):
        w, b = new[k + ".weight"].clone(), new[k + ".bias"].clone()
        if both:
            w[:] *= 0.3
            w[rows] = 0
            w[rows[:, None], rows[None]] = old[k + ".weight"]
        else:
            w[rows] = old[k + ".weight"]
        b[rows] = old[k + ".bias"]
        out[k + ".weight"], out[k + ".bias"] = w, b
    w, b = new["post_quant_conv.weight"].clone(), new["post_quant_conv.bias"].clone()
    w[:have], b[:have] = 0, old["post_quant_conv.bias"]
    w[:have, :have] = old["post_quant_conv.weight"]
    out["post_quant_conv.weight"], out["post_quant_conv.bias"] = w, b
    w = new["decoder.conv_in.weight"] * 0.3
    w[:, :have] = old["decoder.conv_in.weight"]
    out["decoder.conv_in.weight"] = w
    return out


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    a.add_argument("--minutes", type=float, default=12)
    a.add_argument("--batch", type=int, default=4, help="a process")
    a.add_argument("--lr", type=float, default=1.5e-3)
    a.add_argument("--from", dest="start", help="a vae.pt to begin with; it may have fewer latent channels")
    a = a.parse_args()
    os.makedirs(a.out, exist_ok=True)
    path = os.path.join(a.out, "vae.pt")
    rank, world, dev = parallel.start()
    log = state.Log(os.path.join(a.out, "vae.jsonl"), rank)
    torch.manual_seed(0)
    vae = make().to(dev, memory_format=torch.channels_last)
    params = list(vae.parameters())
    opt = torch.optim.AdamW(params, a.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    step, seen, seconds = 0, 0, 0.0
    ck = state.load(path)
    if not ck and a.start:
        old = state.load(a.start)
        vae.load_state_dict(widen(old["vae"], vae.state_dict()))
        seen = old["seen"]
    if ck:
        vae.load_state_dict(ck["vae"])
        opt.load_state_dict(ck["opt"])
        step, seen, seconds = ck["step"], ck["seen"], ck["seconds"]
    check_rng = np.random.default_rng(7)
    check = pictures([scene.random_split_scene(check_rng, True) for _ in range(64)], check_rng).to(dev)
    rng = np.random.default_rng((1, rank, step))
    torch.manual_seed(1000 * step + rank)
    clock = state.Clock(a.minutes, seconds)
    saved = clock.seconds()
    while True:
        done = torch.tensor([clock.done()])
        if world > 1:
            dist.broadcast(done, 0)
        done = float(done)
        last = done >= 1
        if not last:
            lr = a.lr * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
            for g in opt.param_groups:
                g["lr"] = lr
            x, mask = masked_pictures([scene.random_split_scene(rng, False) for _ in range(a.batch)], rng)
            x, weight = x.to(dev), 0.6 + 3 * mask.to(dev)  # objects are a tenth of the picture
            with torch.autocast(dev.type, torch.bfloat16):
                mean, logvar = encode(vae, x)
                logvar = logvar.clamp(-20, 10)
                y = decode(vae, mean + torch.randn_like(mean) * (0.5 * logvar).exp())
            kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
            loss = (weight * ((y - x).abs() + 2 * (y - x).pow(2))).mean() + 1e-4 * kl
            loss.backward()
            parallel.average(params, world)
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            seen += a.batch * world
        if rank == 0 and (step % 500 == 0 or last):
            log(step=step, pictures=seen, seconds=clock.seconds(), lr=lr, loss=loss.item(), kl=kl.item(),
                psnr=psnr(vae, check))
        if rank == 0 and (last or clock.seconds() - saved > 120):
            saved = clock.seconds()
            state.save(path, vae=vae.state_dict(), opt=opt.state_dict(), step=step, seen=seen, seconds=saved)
        if last:
            break


if __name__ == "__main__":
    main()

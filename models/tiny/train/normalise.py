"""Gives each latent channel mean 0 and deviation 1 (what the encoder is unsure of counted in) by folding both
into the autoencoder's 1×1 convolutions, so that its scaling factor is 1: normalise.py OUT reads OUT/vae.pt and
writes OUT/vae_final.pt"""

import sys

import numpy as np
import torch

import scene
import state
import vae as ae

PICTURES = 1024


def main(out):
    ck = state.load(f"{out}/vae.pt")
    vae = ae.make()
    vae.load_state_dict(ck["vae"])
    vae.eval()
    rng = np.random.default_rng(11)
    n, total, square = 0, 0, 0
    with torch.no_grad():
        for _ in range(PICTURES // 32):
            z, logvar = ae.encode(vae, ae.pictures([scene.random_split_scene(rng, False) for _ in range(32)], rng))
            total = total + z.double().sum((0, 2, 3))
            square = square + (z.double().pow(2) + logvar.double().exp()).sum((0, 2, 3))
            n += z.shape[0] * z.shape[2] * z.shape[3]
        mean = (total / n).float()
        std = (square / n - (total / n) ** 2).sqrt().float()
        c = ae.LATENT_CHANNELS
        quant, post = vae.quant_conv, vae.post_quant_conv
        quant.weight[:c] /= std[:, None, None, None]
        quant.bias[:c] = (quant.bias[:c] - mean) / std
        quant.bias[c:] -= 2 * std.log()  # the log variances
        post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
        post.weight *= std[None, :, None, None]
        rng = np.random.default_rng(7)
        check = ae.pictures([scene.random_split_scene(rng, True) for _ in range(128)], rng)
        p = ae.psnr(vae, check)
        z = ae.encode(vae, check)[0]
    print(f"mean {mean.tolist()} deviation {std.tolist()} psnr {p:.2f} now {z.mean((0, 2, 3)).tolist()} "
          f"{z.std((0, 2, 3)).tolist()}")
    state.save(f"{out}/vae_final.pt", vae=vae.state_dict(), psnr=p, pictures=ck["seen"], seconds=ck["seconds"])


if __name__ == "__main__":
    main(sys.argv[1])

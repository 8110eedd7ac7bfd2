"""Trains the UNet and the text encoder together: diffusion.py --out DIR --minutes N [--batch N]

Needs DIR/vae_final.pt and DIR/tokenizer. A run that was stopped goes on from DIR/diffusion.pt; more --minutes
than it had lengthen it. Each process keeps a store of encoded pictures that grows and changes all the time, so
that no picture is seen often. Processes train each for itself and average their weights every few steps: on
cores that other programs use too, waiting for each other at every step costs more than it gains. Beside the
usual loss, linear heads read the scene off the text encoder's state at the end of the caption, which makes that
state useful long before the UNet could ask for it; the heads are not part of the model.
"""

import argparse
import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import measure
import nets
import parallel
import scene
import state
import vae as ae
import words

NOTHING = 1  # one class more where there may be no second object, relation …
COLOURS, SIZES = list(scene.COLOURS), list(scene.SIZES)
PARTS = (len(COLOURS), len(scene.SHAPES), len(SIZES), len(scene.STYLES),
         len(COLOURS) + NOTHING, len(scene.SHAPES) + NOTHING, len(SIZES) + NOTHING, len(scene.STYLES) + NOTHING,
         len(scene.PLACES), len(scene.RELATIONS) + NOTHING, len(scene.BACKGROUNDS))


def labels(s):
    def of(o):
        return [COLOURS.index(o["colour"]), scene.SHAPES.index(o["shape"]), SIZES.index(o["size"]),
                scene.STYLES.index(o["style"])]

    first = of(s["objects"][0])
    second = of(s["objects"][1]) if s["relation"] else [n - 1 for n in PARTS[4:8]]
    relation = list(scene.RELATIONS).index(s["relation"]) if s["relation"] else len(scene.RELATIONS)
    return first + second + [list(scene.PLACES).index(s["place"]), relation,
                             list(scene.BACKGROUNDS).index(s["background"])]


class Store:
    """Encoded pictures with their captions and labels."""

    def __init__(self, capacity, vae, tokenizer, rng, device):
        self.latents = torch.zeros(capacity, ae.LATENT_CHANNELS, 32, 32, dtype=torch.float16, device=device)
        self.masks = torch.zeros(capacity, 1, 32, 32, dtype=torch.float16, device=device)
        self.ids = torch.zeros(capacity, words.LENGTH, dtype=torch.int64, device=device)
        self.labels = torch.zeros(capacity, len(PARTS), dtype=torch.int64, device=device)
        self.capacity, self.made, self.device = capacity, 0, device
        self.vae, self.tokenizer, self.rng = vae, tokenizer, rng

    def add(self, n):
        s = [scene.random_split_scene(self.rng, False) for _ in range(n)]
        x, mask = ae.masked_pictures(s, self.rng)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
            z = ae.encode(self.vae, x.to(self.device))[0]
        at = (torch.arange(n) + self.made) % self.capacity
        self.latents[at] = z.half()
        self.masks[at] = F.avg_pool2d(mask, 4).half().to(self.device)
        self.ids[at] = words.ids(self.tokenizer, [words.say(x, self.rng) for x in s]).to(self.device)
        self.labels[at] = torch.tensor([labels(x) for x in s]).to(self.device)
        self.made += n

    def batch(self, n):
        i = torch.randint(0, min(self.made, self.capacity), (n,), device=self.device)
        return self.latents[i].float(), self.masks[i].float(), self.ids[i], self.labels[i]


def sample(unet, text, ids, empty, steps, cfg, generator, device):
    """DDIM with trailing steps, as diffusers' scheduler would do it."""
    a, s = (x.to(device) for x in nets.alphas())
    x = torch.randn(len(ids), ae.LATENT_CHANNELS, 32, 32, generator=generator).to(device)
    states = text(input_ids=torch.cat([empty.expand(len(ids), -1), ids])).last_hidden_state
    ts = [round(nets.STEPS - i * nets.STEPS / steps) - 1 for i in range(steps)]
    for i, t in enumerate(ts):
        with torch.autocast(device.type, torch.bfloat16):
            v = unet(torch.cat([x, x]), t, states).sample.float()
        u, c = v.chunk(2)
        v = u + cfg * (c - u)
        x0, e = a[t] * x - s[t] * v, a[t] * v + s[t] * x
        if i + 1 < len(ts):
            n = ts[i + 1]
            x = a[n] * x0 + s[n] * e
        else:
            x = x0
    return x


def evaluate(unet, text, vae, tokenizer, n, rank, world, device, out, steps=16, cfg=2.0):
    """Renders held-out captions, a share a process, and measures them. Counts, the same in all processes."""
    rng = np.random.default_rng((5, rank))
    scenes = [scene.random_split_scene(rng, True) for _ in range(n // world)]
    ids = words.ids(tokenizer, [scene.caption(s) for s in scenes]).to(device)
    empty = words.ids(tokenizer, [""]).to(device)
    with torch.no_grad():
        z = sample(unet, text, ids, empty, steps, cfg, torch.Generator().manual_seed(9 + rank), device)
        y = ae.decode(vae, z)
    y = ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    if rank == 0:
        measure.grid(y[:32], os.path.join(out, "samples.png"))
    c = torch.tensor(measure.count(scenes, y), dtype=torch.float64)
    if world > 1:
        dist.all_reduce(c)
    return c.tolist()


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    a.add_argument("--minutes", type=float, required=True)
    a.add_argument("--batch", type=int, default=12, help="a process")
    a.add_argument("--lr", type=float, default=1e-3)
    a.add_argument("--hold", type=float, default=0.5, help="share of the time before the rate falls")
    a.add_argument("--store", type=int, default=8000, help="pictures encoded before the start, a process")
    a.add_argument("--fresh", type=int, default=2, help="new pictures a step, a process")
    a.add_argument("--apart", type=int, default=8, help="steps that the processes take each for itself")
    a.add_argument("--check-minutes", type=float, default=8)
    a = a.parse_args()
    path = os.path.join(a.out, "diffusion.pt")
    rank, world, dev = parallel.start()
    log = state.Log(os.path.join(a.out, "diffusion.jsonl"), rank)
    tokenizer = words.load(os.path.join(a.out, "tokenizer"))
    vae = ae.make().eval()
    vae.load_state_dict(state.load(os.path.join(a.out, "vae_final.pt"))["vae"])
    vae = vae.to(dev, memory_format=torch.channels_last)

    torch.manual_seed(0)
    unet, text = nets.make_unet(), nets.make_text(len(tokenizer))
    heads = torch.nn.Linear(nets.WIDTH, sum(PARTS))
    unet.set_attn_processor(nets.Attention())
    train = torch.nn.ModuleDict({"unet": unet, "text": text, "heads": heads}).to(dev)
    ema_unet, ema_text = nets.make_unet(), nets.make_text(len(tokenizer))
    ema_unet.set_attn_processor(nets.Attention())
    ema = torch.nn.ModuleDict({"unet": ema_unet, "text": ema_text}).to(dev).eval().requires_grad_(False)
    ema["unet"].load_state_dict(unet.state_dict())
    ema["text"].load_state_dict(text.state_dict())
    params = list(train.parameters())
    kept = list(ema.parameters())
    live = [p for k in ("unet", "text") for p in train[k].parameters()]
    opt = torch.optim.AdamW(params, a.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step, seen, seconds = 0, 0, 0.0
    ck = state.load(path)
    if ck:
        train.load_state_dict(ck["train"], strict=ck["opt"] is not None)  # a restored model has no heads
        ema.load_state_dict(ck["ema"])
        if ck["opt"]:
            opt.load_state_dict(ck["opt"])
        step, seen, seconds = ck["step"], ck["seen"], ck["seconds"]
    ck = None
    torch.manual_seed(1000 * step + rank)
    rng = np.random.default_rng((2, rank, step))
    store = Store(max(60000, a.store), vae, tokenizer, rng, dev)
    while store.made < a.store:
        store.add(32)
    empty = words.ids(tokenizer, [""]).to(dev)
    alpha, sigma = (x.to(dev) for x in nets.alphas())
    clock = state.Clock(a.minutes, seconds)
    saved = checked = clock.seconds()
    sums, count, began = torch.zeros(3), 0, time.monotonic()
    bins = torch.zeros(2, 5)  # the loss by noise level: fifths of the steps
    now, last = seconds, False
    while True:
        if step % a.apart == 0:
            shared = torch.tensor([clock.seconds()])
            if world > 1:
                dist.broadcast(shared, 0)
            now = float(shared)
            last = now >= clock.budget
        done = min(now / clock.budget, 1)
        if not last:
            lr = a.lr * min(1, (step + 1) / 200) * min(1, (1 - done) / (1 - a.hold))
            for g in opt.param_groups:
                g["lr"] = lr
            store.add(a.fresh)
            z, mask, ids, lab = store.batch(a.batch)
            eos = (ids == tokenizer.eos_token_id).int().argmax(1)
            drop = torch.rand(len(ids), device=dev) < 0.1
            ids = torch.where(drop[:, None], empty, ids)
            eos = torch.where(drop, 1, eos)
            # little noise is easy to learn: seldom
            u = (torch.arange(a.batch) + torch.rand(1)) / a.batch
            t = (u ** 0.8 * nets.STEPS).long().clamp(0, nets.STEPS - 1)[torch.randperm(a.batch)].to(dev)
            e = torch.randn_like(z)
            al, si = alpha[t, None, None, None], sigma[t, None, None, None]
            with torch.autocast(dev.type, torch.bfloat16):
                states = text(input_ids=ids).last_hidden_state
                v = unet(al * z + si * e, t, states).sample.float()
                logits = heads(states[torch.arange(len(ids)), eos]).float()
            # objects are a tenth of the picture: they count more
            each = ((0.7 + 2 * mask) * (v - (al * e - si * z)).pow(2)).mean((1, 2, 3))
            loss = each.mean()
            aux = sum(F.cross_entropy(x[~drop], y[~drop]) for x, y in zip(logits.split(PARTS, 1), lab.unbind(1)))
            aux = aux / len(PARTS)
            (loss + 0.1 * aux).backward()
            norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            seen += a.batch * world
            if step % a.apart == 0:
                with torch.no_grad():
                    parallel.average_tensors(params, world)
                keep = min(0.999, step / (step + 20)) ** a.apart
                torch._foreach_lerp_(kept, live, 1 - keep)
            sums += torch.stack([loss.detach(), aux.detach(), norm.detach()]).cpu()
            count += 1
            fifth = (t * 5 // nets.STEPS).cpu()
            bins[0] += torch.zeros(5).index_add_(0, fifth, each.detach().cpu())
            bins[1] += torch.zeros(5).index_add_(0, fifth, torch.ones(len(fifth)))
        if not last and step % a.apart:
            continue
        if step % 200 == 0 or last:
            if rank == 0 and count:
                m = (sums / count).tolist()
                log(step=step, pictures=seen, seconds=round(now), lr=lr, loss=m[0], text=m[1], norm=m[2],
                    by_noise=[round(x, 4) for x in (bins[0] / bins[1].clamp(min=1)).tolist()],
                    rate=round(count * a.batch * world / (time.monotonic() - began), 1), store=store.made)
            sums.zero_(), bins.zero_()
            count, began = 0, time.monotonic()
        if last or now - checked > a.check_minutes * 60:
            checked = now
            c = evaluate(ema["unet"], ema["text"], vae, tokenizer, 256 if last else 64, rank, world, dev, a.out)
            log(step=step, pictures=seen, seconds=round(now), objects=c[0], colour=c[1] / c[0], shape=c[2] / c[0],
                place=c[3] / c[0], background=c[4] / c[5])
            began, count = time.monotonic(), 0
            sums.zero_(), bins.zero_()
        if rank == 0 and (last or now - saved > 150):
            saved = now
            state.save(path, train=train.state_dict(), ema=ema.state_dict(), opt=opt.state_dict(), step=step,
                       seen=seen, seconds=now)
        if last:
            break


if __name__ == "__main__":
    main()

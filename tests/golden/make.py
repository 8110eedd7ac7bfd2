#!/usr/bin/env python3
"""Makes the golden files of this folder: what PyTorch, diffusers and transformers compute, for the C engine to agree with.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make.py

noise.safetensors      torch.randn of several sizes and seeds
random.*               samplers out of random folders, as schedules.* (make.py random COUNT FOLDER makes another such set)
schedules.*            every sampler on a grid of scheduler configs: timesteps and a small tensor's way through the steps
pipelines/NAME/        a small random pipeline's folder, as diffusers saves it (some files then rewritten in older spellings)
pipelines/NAME.json    the cases, pipelines/NAME.safetensors what diffusers computes for them from that folder, loaded again

Random weights are scaled until the UNet's prediction has unit size, the prompt moves it, and the picture has contrast: otherwise any
engine would agree. Nothing here is needed to run the tests. Same versions and same machine give the same files; another machine's differ by
rounding, which the tests' bounds allow for.
"""
import argparse
import functools
import json
import math
import os
import pathlib
import random
import re
import shutil
import warnings

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import diffusers
import transformers
from diffusers import (AutoencoderKL, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, PNDMScheduler,
                       StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel)
from diffusers.configuration_utils import FrozenDict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

warnings.filterwarnings("ignore")
diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()
torch.use_deterministic_algorithms(True)
torch.set_grad_enabled(False)

HERE = os.path.dirname(os.path.abspath(__file__))
# The samplers are the rows of base/spec.h: A1111's name, diffusers' class, whether Karras means something.
ROWS = re.findall(r'\bX\(\w+, \d+, "([^"]+)", "[^"]+", "([^"]+)", (NONE|ASKED|OPTION), [\w"]+\)',
                  pathlib.Path(HERE, "..", "..", "base", "spec.h").read_text(encoding="utf-8"))
SAMPLERS = {name: getattr(diffusers, cls) for name, cls, _ in ROWS}
KARRAS = tuple(name for name, _, karras in ROWS if karras != "NONE")


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=1, ensure_ascii=True)
        f.write("\n")


# ---- schedulers ----

class EulerAncestralKarras(EulerAncestralDiscreteScheduler):
    """diffusers has no Karras for Euler a: k-diffusion's, over the whole range of the model's sigmas, as DPM++ takes it too."""

    def set_timesteps(self, n, device=None):
        super().set_timesteps(n, device)
        full = ((1 - self.alphas_cumprod) / self.alphas_cumprod).numpy() ** 0.5
        lo, hi = float(full[0]) ** (1 / 7), float(full[-1]) ** (1 / 7)
        sigmas = (hi + np.linspace(0, 1, n) * (lo - hi)) ** 7
        log_sigmas = np.log(full)
        euler = EulerDiscreteScheduler
        t = np.array([euler._sigma_to_t(None, s, log_sigmas) for s in sigmas])
        self.timesteps = torch.from_numpy(t.astype(np.float32))
        self.sigmas = torch.from_numpy(np.concatenate([sigmas, [0.0]]).astype(np.float32))


def make_scheduler(config, sampler, schedule):
    """X.from_config(the folder's config), the schedule chosen by the person."""
    cls = SAMPLERS[sampler]
    config = {k: v for k, v in config.items()}
    if sampler == "Euler a":
        return (EulerAncestralKarras if schedule == "karras" else cls).from_config(config)
    if sampler in KARRAS:
        return cls.from_config(config, use_karras_sigmas=schedule == "karras")
    return cls.from_config(config)


SD1 = {"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
       "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
       "trained_betas": None, "clip_sample": False}

CONFIGS = {
    "sd1": SD1,
    "sd1-leading": {**SD1, "timestep_spacing": "leading", "prediction_type": "epsilon"},
    "sd1-trailing": {**SD1, "timestep_spacing": "trailing"},
    "sd1-linspace": {**SD1, "timestep_spacing": "linspace"},
    "sd1-v": {**SD1, "prediction_type": "v_prediction"},
    "sd1-v-zero-snr": {**SD1, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                       "timestep_spacing": "trailing"},
    "sd1-offset-0": {**SD1, "steps_offset": 0, "timestep_spacing": "leading"},
    "sd1-prk": {**SD1, "skip_prk_steps": False},
    "sd1-alpha-one": {**SD1, "set_alpha_to_one": True},
    "linear": {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "clip_sample": True},
    "linear-bare": {"_class_name": "EulerDiscreteScheduler"},
    "linear-500": {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 500, "beta_end": 0.03},
    "cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
    "cosine-v-trailing": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False,
                          "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "sample": {**SD1, "prediction_type": "sample"},
    "sample-clip": {"_class_name": "DDIMScheduler", "prediction_type": "sample", "clip_sample_range": 0.7},
    "sigmas": {**SD1, "_class_name": "EulerDiscreteScheduler", "sigma_min": 0.05, "sigma_max": 12.0},
    "final-sigma-min": {**SD1, "final_sigmas_type": "sigma_min"},
    "dpm-order-1": {**SD1, "solver_order": 1},
    "dpm-heun": {**SD1, "solver_type": "heun", "lower_order_final": False},
    "dpm-euler-at-final": {**SD1, "euler_at_final": True},
    "dpm-unipc": {**SD1, "_class_name": "UniPCMultistepScheduler", "solver_type": "bh2"},
    "cosine-clipped": {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2",
                       "lambda_min_clipped": -5.1, "clip_sample": False},
}
STEPS = (1, 2, 5, 14, 15, 21)


def toy_model(x, t):
    """Any function of x and t that a mistake in either shows in; the C test has the same."""
    return x * 0.3 * float(t) / (float(t) + 1) + torch.arange(x.numel(), dtype=torch.float32) * 0.05 - 0.4


def run_schedule(config, sampler, schedule, steps):
    return walk(make_scheduler(config, sampler, schedule), steps, sampler == "Euler a")


def walk(s, steps, noisy):
    s.set_timesteps(steps)
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(16, generator=generator) * s.init_noise_sigma
    timesteps, way = [], []
    for t in s.timesteps:
        m = toy_model(s.scale_model_input(x, t), t)
        kwargs = {"generator": generator} if noisy else {}
        x = s.step(m, t, x, **kwargs).prev_sample
        timesteps.append(float(t))
        way.append(x[:4].clone())
    return torch.tensor(timesteps), torch.stack(way), x


def make_schedules():
    tensors, refused = {}, []
    for name, config in CONFIGS.items():
        for sampler in SAMPLERS:
            for schedule in ("normal", "karras"):
                if schedule == "karras" and sampler not in KARRAS:
                    continue
                for steps in STEPS:
                    key = f"{name}|{sampler}|{schedule}|{steps}"
                    try:
                        t, way, x = run_schedule(config, sampler, schedule, steps)
                    except Exception as e:  # what diffusers refuses, kiln refuses or does sensibly
                        refused.append(f"{key}: {type(e).__name__}")
                        continue
                    if not torch.isfinite(way).all():
                        refused.append(f"{key}: not finite")
                        continue
                    tensors[key] = torch.cat([t, way.flatten(), x])
    save_file(tensors, f"{HERE}/schedules.safetensors")
    write_json(f"{HERE}/schedules.json", {"configs": CONFIGS, "refused_by_diffusers": refused})
    print(f"schedules: {len(tensors)} runs, {len(refused)} refused by diffusers")


# Values that a folder's scheduler_config.json may have, those that kiln refuses or diffusers cannot run with among them.
RANDOM_VALUES = {
    "num_train_timesteps": (1000, 1000, 500, 1100), "beta_start": (0.0001, 0.00085), "beta_end": (0.012, 0.02),
    "beta_schedule": ("linear", "scaled_linear", "scaled_linear", "squaredcos_cap_v2"), "trained_betas": (None,),
    "prediction_type": ("epsilon", "epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("linspace", "leading", "trailing"), "steps_offset": (0, 1, 1, 2),
    "rescale_betas_zero_snr": (True, False, None), "clip_sample": (True, False, None), "clip_sample_range": (1.0, 0.7),
    "set_alpha_to_one": (True, False, None), "skip_prk_steps": (True, False, None), "use_karras_sigmas": (True, False, None),
    "use_exponential_sigmas": (True, False, False, False), "use_beta_sigmas": (True, False, False, False),
    "sigma_min": (None, 0.05), "sigma_max": (None, 12.0), "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear", "linear", "linear", "log_linear"), "timestep_type": ("discrete", "discrete", "continuous"),
    "thresholding": (True, False, False, None), "sample_max_value": (1.0, 2.0), "dynamic_thresholding_ratio": (0.995, 0.9),
    "solver_order": (1, 2, 2, 3), "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
    "algorithm_type": ("dpmsolver++", "dpmsolver++", "deis", "sde-dpmsolver++", "dpmsolver"),
    "lower_order_final": (True, False, None), "euler_at_final": (True, False, None), "lambda_min_clipped": (-5.1, -3.0),
    "use_lu_lambdas": (True, False, False, None), "use_flow_sigmas": (True, False, False, None), "flow_shift": (1.0, 3.0),
    "variance_type": (None, "fixed_small", "fixed_large", "learned_range"), "use_dynamic_shifting": (False, False, True),
    "predict_x0": (True, False), "disable_corrector": ([], [0]), "noise_sampler_seed": (None, 3),
}
RANDOM_CLASSES = [cls for _, cls, _ in ROWS] * 3 + ["DDPMScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler",
                                                   "DEISMultistepScheduler", "KDPM2DiscreteScheduler"]


def random_case(rng):
    """A folder's two files, and what a person asks of it."""
    cls = rng.choice(RANDOM_CLASSES)
    share = rng.choice((0.1, 0.25, 0.5))
    config = {key: rng.choice(values) for key, values in RANDOM_VALUES.items() if rng.random() < share}
    config["_class_name"] = cls if rng.random() < 0.8 else rng.choice(RANDOM_CLASSES)
    schedule = rng.choice((None, None, "normal", "karras"))
    sampler = rng.choice((None, None, *SAMPLERS))
    return {"class": cls, "config": config, "pipeline": rng.choice(("StableDiffusionPipeline", "StableDiffusionXLPipeline")),
            "sampler": sampler, "schedule": schedule, "steps": rng.choice((1, 2, 5, 14, 15, 21))}


def folder_scheduler(case):
    """The scheduler as the pipeline has it once it is put together, then X.from_config() of it if a person asks for X."""
    s = getattr(diffusers, case["class"]).from_config(dict(case["config"]))
    if case["pipeline"] == "StableDiffusionPipeline":
        if getattr(s.config, "steps_offset", 1) != 1:
            s._internal_dict = FrozenDict({**s.config, "steps_offset": 1})
        if getattr(s.config, "clip_sample", False) is True:
            s._internal_dict = FrozenDict({**s.config, "clip_sample": False})
    if case["sampler"]:
        own = {cls: name for name, cls, _ in ROWS}.get(case["class"])
        if case["sampler"] != own:
            s = SAMPLERS[case["sampler"]].from_config(s.config)
    if case["schedule"]:
        name = next((name for name, cls, _ in ROWS if cls == type(s).__name__), None)
        if name is None:
            raise ValueError("kiln has it not")
        if case["schedule"] == "karras" and name not in KARRAS:
            raise ValueError("means nothing")
        if name == "Euler a" and case["schedule"] == "karras":
            s.__class__ = EulerAncestralKarras
        elif name in KARRAS and name != "Euler a":
            s._internal_dict = FrozenDict({**s.config, "use_karras_sigmas": case["schedule"] == "karras"})
    return s


def make_random(count, out):
    """Random folders. A run that diffusers cannot do is left out; kiln must refuse each of the others, or do the same."""
    rng, tensors, cases = random.Random(1), {}, {}
    while len(tensors) < count:
        case = random_case(rng)
        try:
            s = folder_scheduler(case)
            t, way, x = walk(s, case["steps"], isinstance(s, EulerAncestralDiscreteScheduler))
        except Exception:  # not of interest here
            continue
        if not torch.isfinite(way).all() or way.abs().max() > 1e6:
            continue
        if s.config.timestep_spacing == "trailing" and t.min() < 0:
            continue  # numpy's arange has one more than was asked for by rounding, at step -1; kiln does what was asked for
        name = f"{len(tensors):04d}"
        cases[name] = case
        tensors[name] = torch.cat([t, way.flatten(), x])
    save_file(tensors, f"{out}/random.safetensors")
    write_json(f"{out}/random.json", {"cases": cases})
    print(f"random: {len(tensors)} runs")


def make_noise():
    tensors = {}
    for seed in (0, 1, 7, 2**32 - 1, 2**32 + 5, 2**63 + 11):
        for n in (1, 3, 15, 16, 17, 31, 64, 250):
            generator = torch.Generator().manual_seed(seed if seed < 2**63 else seed - 2**64)
            first = torch.randn(n, generator=generator)
            tensors[f"{seed}|{n}"] = torch.cat([first, torch.randn(n, generator=generator)])
    save_file(tensors, f"{HERE}/noise.safetensors")


# ---- pipelines ----

WORDS = """a an the of on in red green blue yellow orange black white photo painting drawing cat dog circle square triangle above
below left right small large castle river mountain light dark night morning watercolour don't it's they've""".split()


def byte_alphabet():
    shown = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    hidden = [b for b in range(256) if b not in shown]
    symbols = {b: chr(b) for b in shown}
    symbols.update({b: chr(256 + i) for i, b in enumerate(hidden)})
    return symbols, shown + hidden


def small_bpe(merge_count):
    """A byte-pair vocabulary of WORDS, in CLIP's order of ids: bytes, bytes</w>, merges, the two special tokens."""
    symbols, order = byte_alphabet()
    words = [[symbols[b] for b in w.encode()] for w in WORDS]
    for w in words:
        w[-1] += "</w>"
    merges = []
    while len(merges) < merge_count:
        count = {}
        for w in words:
            for pair in zip(w, w[1:]):
                count[pair] = count.get(pair, 0) + 1
        if not count:
            break
        best = max(sorted(count), key=lambda p: count[p])
        merges.append(best)
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == best:
                    w[i:i + 2] = [w[i] + w[i + 1]]
                i += 1
    tokens = [symbols[b] for b in order] + [symbols[b] + "</w>" for b in order] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {t: i for i, t in enumerate(tokens)}, merges


def randomize(module, seed, gain=1.0):
    """Norms that are not the identity, biases that are not zero, weights of unit gain."""
    g = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim == 1:
            centre = 1.0 if name.endswith("weight") else 0.0
            p.copy_(centre + 0.2 * torch.randn(p.shape, generator=g))
        elif "embedding" in name and "time" not in name and "add_" not in name:
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
        else:
            fan_in = p[0].numel()
            p.copy_(gain * torch.randn(p.shape, generator=g) / math.sqrt(fan_in))


def scale_unet(unet, states, pooled):
    """The prompt's share, then the size of the prediction. pooled: None, or with XL the texts' pooled states."""
    g = torch.Generator().manual_seed(5)
    size = unet.config.sample_size
    x = torch.randn(4, unet.config.in_channels, size, size, generator=g)
    for name, p in unet.named_parameters():
        if ("attn2.to_out" in name or "add_embedding.linear_2" in name) and p.ndim == 2:
            p.mul_(2.0)
    t = torch.tensor([900, 500, 100, 1])

    def run(text, sizes=(32, 32, 0, 0, 32, 32), pool=None):
        pool = text if pool is None else pool
        added = None if pooled is None else {"text_embeds": pooled[pool:pool + 1].expand(4, -1),
                                             "time_ids": torch.tensor([sizes] * 4, dtype=torch.float32)}
        return unet(x, t, states[text:text + 1].expand(4, -1, -1), added_cond_kwargs=added).sample

    std = run(0).std()
    unet.conv_out.weight.div_(std)
    unet.conv_out.bias.div_(std)
    a = run(0)

    def share(b):
        return float((a - b).norm() / a.norm())

    shares = {"prompt": share(run(1))}
    if pooled is not None:
        shares["pooled text"] = share(run(0, pool=1))
        shares["sizes"] = share(run(0, sizes=(32, 64, 0, 0, 32, 64)))
    print(f"  UNet: size {float(a.std()):.3f}, shares of", ", ".join(f"{k} {v:.3f}" for k, v in shares.items()))
    assert min(shares.values()) > 0.05


def scale_vae(vae, size):
    g = torch.Generator().manual_seed(6)
    z = torch.randn(4, vae.config.latent_channels, size, size, generator=g) / vae.config.scaling_factor
    out = vae.decode(z).sample
    factor = 0.5 / float(out.std())
    vae.decoder.conv_out.weight.mul_(factor)
    vae.decoder.conv_out.bias.copy_(vae.decoder.conv_out.bias * factor - factor * float(out.mean()))
    out = vae.decode(z).sample
    print(f"  VAE: mean {float(out.mean()):.3f}, deviation {float(out.std()):.3f}")


def cases_of(base, everything):
    prompts = ["a red circle above a blue square", "A painting of the castle, don't!", ""]
    negatives = ["", "dark night", "black cat on the river"]
    out, n = [], 0
    for sampler in SAMPLERS:
        for schedule in ("normal", "karras"):
            if schedule == "karras" and sampler not in KARRAS:
                continue
            out.append({"prompt": prompts[n % 2], "negative": negatives[n % 3], "seed": 7 + n, "steps": 4 + n % 3, "cfg": 3.0 + n,
                        "sampler": sampler, "schedule": schedule, "width": base, "height": base})
            n += 1
    if everything:
        out.append({**out[2], "cfg": 1.0, "seed": 100})
        out.append({**out[0], "cfg": 0.0, "negative": "dark night", "seed": 101})
        out.append({**out[7], "width": base * 2, "seed": 2**40 + 3})
        out.append({**out[3], "height": base * 2, "prompt": prompts[2], "seed": 0})
        out.append({**out[4], "steps": 17, "prompt": "a cat " * 60, "seed": 102})
        out.append({**out[1], "steps": 1, "seed": 103})
        out.append({**out[0], "steps": 25, "prompt": "caf\u00e9 \u732b 1234 CAT's", "seed": 104})
    return out


def run_case(pipe, config, case):
    own = config["_class_name"]
    sampler = case["sampler"]
    if SAMPLERS[sampler].__name__ == own and case["schedule"] == "normal":
        scheduler = SAMPLERS[sampler].from_config(pipe.folder_scheduler.config)
    else:
        scheduler = make_scheduler(dict(pipe.folder_scheduler.config), sampler, case["schedule"])
    pipe.scheduler = scheduler
    t = {}
    guided = case["cfg"] > 1
    xl = isinstance(pipe, StableDiffusionXLPipeline)
    # to kiln an empty negative prompt is none at all
    negative = (case["negative"] or None) if xl else case["negative"]
    texts = ([negative] if guided and negative is not None else []) + [case["prompt"]]

    def tokens(tokenizer):
        return tokenizer(texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                         return_tensors="pt").input_ids

    ids = tokens(pipe.tokenizer)
    t["input_ids"] = ids.to(torch.int32)
    if xl:
        t["input_ids_2"] = tokens(pipe.tokenizer_2).to(torch.int32)
        embeds, none, pooled, none_pooled = pipe.encode_prompt(case["prompt"], negative_prompt=negative,
                                                               do_classifier_free_guidance=guided)
        t["text_states"] = torch.cat([none, embeds]) if guided else embeds
        t["text_pooled"] = torch.cat([none_pooled, pooled]) if guided else pooled
    else:
        t["text_states"] = pipe.text_encoder(ids).last_hidden_state
    factor = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, case["height"] // factor, case["width"] // factor)
    t["noise"] = torch.randn(shape, generator=torch.Generator().manual_seed(case["seed"]))

    k = 0
    step = scheduler.step

    @functools.wraps(step)  # the pipeline looks at its arguments to see whether it wants the generator
    def spy(model_output, *args, **kwargs):
        nonlocal k
        t[f"unet_{k:03d}"] = model_output.clone()
        out = step(model_output, *args, **kwargs)
        t[f"latents_{k:03d}"] = out[0].clone()
        k += 1
        return out

    scheduler.step = spy
    image = pipe(case["prompt"], negative_prompt=negative, guidance_scale=case["cfg"],
                 num_inference_steps=case["steps"], width=case["width"], height=case["height"],
                 generator=torch.Generator().manual_seed(case["seed"]), output_type="np").images[0]
    t["image"] = torch.from_numpy(image)
    return t


EOT = "<|endoftext|>"


def make_tokenizer(folder, vocab, merges, length, options):
    os.makedirs(folder)
    with open(f"{folder}/vocab.json", "w") as f:
        json.dump(vocab, f, ensure_ascii=False)
    with open(f"{folder}/merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write_json(f"{folder}/tokenizer_config.json",
               {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "bos_token": "<|startoftext|>",
                "eos_token": EOT, "unk_token": EOT, **options})
    return CLIPTokenizer.from_pretrained(folder)


def make_text(cls, vocab, config):
    special = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1}
    return cls(CLIPTextConfig(vocab_size=len(vocab), pad_token_id=1, **{**special, **config})).eval()


def build(name, text, unet, vae, scheduler, tokenizer, dtype, after, text2=None, tokenizer2=None, everything=False, seed=0):
    print(name)
    folder = f"{HERE}/pipelines/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    vocab, merges = small_bpe(60)
    tok = make_tokenizer(f"{folder}/tokenizer", vocab, merges, text["max_position_embeddings"], tokenizer)
    te = make_text(CLIPTextModel, vocab, text)
    un = UNet2DConditionModel(**unet).eval()
    va = AutoencoderKL(**vae).eval()
    parts = [te, un, va]
    if text2:
        tok2 = make_tokenizer(f"{folder}/tokenizer_2", vocab, merges, text2["max_position_embeddings"], tokenizer2)
        te2 = make_text(CLIPTextModelWithProjection, vocab, text2)
        parts.append(te2)
    for i, m in enumerate(parts):
        randomize(m, seed + i)
    samples = ["a red circle", "the dark castle, don't"]

    def ids(t):
        return t(samples, padding="max_length", max_length=t.model_max_length, truncation=True,
                 return_tensors="pt").input_ids

    if text2:
        one, two = te(ids(tok), output_hidden_states=True), te2(ids(tok2), output_hidden_states=True)
        scale_unet(un, torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds)
    else:
        scale_unet(un, te(ids(tok)).last_hidden_state, None)
    scale_vae(va, un.config.sample_size)
    if text2:
        pipe = StableDiffusionXLPipeline(vae=va, text_encoder=te, text_encoder_2=te2, tokenizer=tok, tokenizer_2=tok2,
                                         unet=un, scheduler=PNDMScheduler(), add_watermarker=False)
    else:
        pipe = StableDiffusionPipeline(vae=va, text_encoder=te, tokenizer=tok, unet=un, scheduler=PNDMScheduler(),
                                       safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.to(dtype)
    if name == "v8":
        pipe.vae.to(torch.float32)
    pipe.save_pretrained(folder)
    write_json(f"{folder}/scheduler/scheduler_config.json", scheduler)
    for part in ("tokenizer", "tokenizer_2"):
        for leftover in ("vocab.json", "merges.txt"):  # tokenizer.json says it all
            if os.path.exists(f"{folder}/{part}/{leftover}"):
                os.remove(f"{folder}/{part}/{leftover}")
    index = json.load(open(f"{folder}/model_index.json"))
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    write_json(f"{folder}/model_index.json", index)
    after(folder, vocab, merges)

    if text2:
        pipe = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None,
                                                       requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.folder_scheduler = pipe.scheduler
    base = un.config.sample_size * pipe.vae_scale_factor
    cases, tensors = cases_of(base, everything), {}
    for i, case in enumerate(cases):
        t = run_case(pipe, scheduler, case)
        for k, v in t.items():
            if i < 3 or not k.startswith(("text", "unet")):  # the rest shows in the latents
                tensors[f"{i:02d}.{k}"] = v.contiguous()
        im = t["image"]
        print(f"  {i:2d} {case['sampler']:9s} {case['schedule']:7s} steps {case['steps']:2d} cfg {case['cfg']:4.1f}"
              f" prediction {float(t['unet_000'].std()):.2f} picture {float(im.std()):.2f}")
        assert float(im.std()) > 0.1
    save_file(tensors, f"{HERE}/pipelines/{name}.safetensors")
    write_json(f"{HERE}/pipelines/{name}.json", cases)


def keep_old_tokenizer(folder, vocab, merges, pad, config_pad=None, part="tokenizer"):
    """Back to the files that folders of Stable Diffusion hold: vocab.json, merges.txt and a special_tokens_map.json.
    config_pad: what tokenizer_config.json says of the pad token, when not the same."""
    shutil.rmtree(f"{folder}/{part}")
    os.makedirs(f"{folder}/{part}")
    with open(f"{folder}/{part}/vocab.json", "w") as f:
        json.dump(vocab, f, ensure_ascii=False)
    with open(f"{folder}/{part}/merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))

    def token(text):
        return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    special = {"bos_token": token("<|startoftext|>"), "eos_token": token(EOT), "pad_token": pad, "unk_token": token(EOT)}
    write_json(f"{folder}/{part}/special_tokens_map.json", special)
    config = {k: {"__type": "AddedToken", **v} if isinstance(v, dict) else v for k, v in special.items()}
    if config_pad:
        config["pad_token"] = config_pad
    write_json(f"{folder}/{part}/tokenizer_config.json",
               {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
                "tokenizer_class": "CLIPTokenizer", **config})


def rename_keys(path, rename):
    tensors = load_file(path)
    os.chmod(path, 0o644)
    save_file({rename(k): v for k, v in tensors.items()}, path, metadata={"format": "pt"})


def make_pipelines(only):
    def sd1(folder, vocab, merges):
        keep_old_tokenizer(folder, vocab, merges, "<|endoftext|>")
        # the encoder's keys as all published folders have them
        rename_keys(f"{folder}/text_encoder/model.safetensors",
                    lambda k: k if k.startswith("text_model.") else "text_model." + k)
        # and the VAE's attention
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

        def rename(k):
            if ".attentions." in k:
                for new, before in old.items():
                    k = k.replace(f".{new}.", f".{before}.")
            return k

        rename_keys(f"{folder}/vae/diffusion_pytorch_model.safetensors", rename)

    def v8(folder, vocab, merges):
        rename_keys(f"{folder}/text_encoder/model.safetensors", lambda k: k.removeprefix("text_model."))

    def sd2(folder, vocab, merges):
        keep_old_tokenizer(folder, vocab, merges, "!", config_pad=EOT)

    def sdxl(folder, vocab, merges):
        keep_old_tokenizer(folder, vocab, merges, EOT)
        for part in ("text_encoder", "text_encoder_2"):  # as published: the ids before transformers' PR 24773
            path = f"{folder}/{part}/config.json"
            config = json.load(open(path))
            write_json(path, {**config, "bos_token_id": 0, "eos_token_id": 2})

    def wide(folder, vocab, merges):
        # the UNet in parts behind an index
        path = f"{folder}/unet/diffusion_pytorch_model"
        tensors = load_file(path + ".safetensors")
        os.remove(path + ".safetensors")
        names = sorted(tensors)
        halves = names[: len(names) // 2], names[len(names) // 2:]
        weight_map = {}
        for i, half in enumerate(halves):
            part = f"diffusion_pytorch_model-{i + 1:05d}-of-00002.safetensors"
            save_file({k: tensors[k] for k in half}, f"{folder}/unet/{part}", metadata={"format": "pt"})
            weight_map.update({k: part for k in half})
        with open(path + ".safetensors.index.json", "w") as f:
            json.dump({"metadata": {}, "weight_map": weight_map}, f, separators=(",", ":"))

    pipelines = {
        "sd1": dict(
            text=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                      max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=32),
            unet=dict(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
                      cross_attention_dim=32, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
            vae=dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
                     down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
            scheduler={"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
                       "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
                       "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
                       "trained_betas": None},
            tokenizer={"pad_token": "<|endoftext|>"}, dtype=torch.float16, after=sd1, everything=True, seed=10),
        "v8": dict(
            text=dict(hidden_size=24, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
                      max_position_embeddings=77, hidden_act="gelu", projection_dim=24),
            unet=dict(sample_size=8, in_channels=8, out_channels=8, block_out_channels=(8, 16, 24), layers_per_block=(1, 2, 1),
                      norm_num_groups=4, attention_head_dim=(1, 2, 3), cross_attention_dim=24, use_linear_projection=True,
                      down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                      up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")),
            vae=dict(block_out_channels=(4, 4, 8), layers_per_block=2, norm_num_groups=1, latent_channels=8,
                     scaling_factor=0.5, down_block_types=("DownEncoderBlock2D",) * 3,
                     up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False),
            scheduler={"_class_name": "DDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
                       "beta_start": 0.00085, "clip_sample": True, "clip_sample_range": 1.0, "num_train_timesteps": 1000,
                       "prediction_type": "v_prediction", "rescale_betas_zero_snr": False, "set_alpha_to_one": False,
                       "steps_offset": 0, "timestep_spacing": "leading", "trained_betas": None, "thresholding": False},
            tokenizer={"pad_token": "!"}, dtype=torch.float16, after=v8, seed=20),
        "wide": dict(
            text=dict(hidden_size=40, intermediate_size=80, num_hidden_layers=1, num_attention_heads=5,
                      max_position_embeddings=32, hidden_act="quick_gelu", projection_dim=40),
            unet=dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=(1, 2), norm_num_groups=8,
                      attention_head_dim=2, cross_attention_dim=40, transformer_layers_per_block=(1, 2),
                      flip_sin_to_cos=False, freq_shift=1,
                      down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                      up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")),
            vae=dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
                     down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                     use_quant_conv=False, use_post_quant_conv=False),
            scheduler={"_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
                       "beta_start": 0.00085, "num_train_timesteps": 1000, "prediction_type": "v_prediction",
                       "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 1,
                       "use_karras_sigmas": False},
            tokenizer={"pad_token": "<|endoftext|>"}, dtype=torch.bfloat16, after=wide, seed=30),
        "sd2": dict(
            text=dict(hidden_size=8, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                      max_position_embeddings=77, hidden_act="gelu", projection_dim=12),
            unet=dict(sample_size=8, block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=4,
                      attention_head_dim=(1, 2, 4), cross_attention_dim=8, use_linear_projection=True,
                      upcast_attention=True,
                      down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")),
            vae=dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
                     down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
            scheduler={"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "beta_end": 0.012,
                       "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
                       "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False,
                       "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None},
            tokenizer={"pad_token": "!"}, dtype=torch.float32, after=sd2, seed=40),
        "sdxl": dict(
            text=dict(hidden_size=8, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                      max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=8),
            text2=dict(hidden_size=12, intermediate_size=24, num_hidden_layers=4, num_attention_heads=3,
                       max_position_embeddings=77, hidden_act="gelu", projection_dim=10),
            unet=dict(sample_size=8, block_out_channels=(4, 8, 12), layers_per_block=(1, 2, 1), norm_num_groups=4,
                      attention_head_dim=(1, 2, 3), cross_attention_dim=20, use_linear_projection=True,
                      transformer_layers_per_block=(1, 2, 3), addition_embed_type="text_time", addition_time_embed_dim=6,
                      projection_class_embeddings_input_dim=46,
                      down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                      up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")),
            vae=dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
                     scaling_factor=0.13025, force_upcast=True, down_block_types=("DownEncoderBlock2D",) * 2,
                     up_block_types=("UpDecoderBlock2D",) * 2),
            # published folders state steps_offset 1; StableDiffusionPipeline would make a 1 of this 0, XL's does not
            scheduler={"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
                       "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
                       "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
                       "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 0,
                       "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False},
            tokenizer={"pad_token": EOT}, tokenizer2={"pad_token": "!"}, dtype=torch.float16, after=sdxl,
            everything=True, seed=50),
    }
    for name, p in pipelines.items():
        if not only or name in only:
            build(name, **p)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", help="noise, schedules, or names of pipelines; all if none is given")
    what = parser.parse_args().what
    if what[:1] == ["random"]:
        make_random(int(what[1]) if len(what) > 1 else 160, what[2] if len(what) > 2 else HERE)
        raise SystemExit
    if not what:
        make_random(160, HERE)
    if not what or "noise" in what:
        make_noise()
    if not what or "schedules" in what:
        make_schedules()
    names = [w for w in what if w not in ("noise", "schedules")]
    if not what or names:
        make_pipelines(names)

#!/usr/bin/env python3
"""Makes a model folder of a published architecture at full size with random weights, for measuring: how fast it is does not depend on
what it draws. Python's standard library only, so that a bare GPU machine can do it; the same name, type and seed give the same bytes.

    random_model.py sd15|sd21|sdxl FOLDER [--type f16|bf16] [--tokenizer models/tiny/tokenizer]
    random_model.py --check            compares names and shapes with diffusers' own (needs it; 77 without)

Weights have unit gain (magnitudes within a factor of 2, signs at random), norms are the identity, biases 0: activations neither vanish
nor overflow.
"""
import argparse
import json
import math
import os
import random
import shutil
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
CHUNK = 1 << 20

CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu",
              projection_dim=768)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu",
              projection_dim=512)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
              projection_dim=1280)
VAE = dict(in_channels=3, out_channels=3, block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4,
           norm_num_groups=32, act_fn="silu", down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
FOUR_LEVELS = dict(block_out_channels=[320, 640, 1280, 1280],
                   down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
                   up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
UNET = dict(in_channels=4, out_channels=4, layers_per_block=2, norm_num_groups=32, norm_eps=1e-5, act_fn="silu",
            center_input_sample=False, flip_sin_to_cos=True, freq_shift=0, downsample_padding=1, mid_block_scale_factor=1)
SCHEDULE = dict(beta_end=0.012, beta_schedule="scaled_linear", beta_start=0.00085, num_train_timesteps=1000, steps_offset=1,
                prediction_type="epsilon", timestep_spacing="leading")

MODELS = {
    "sd15": dict(text=[CLIP_L], unet=dict(UNET, sample_size=64, attention_head_dim=8, cross_attention_dim=768, **FOUR_LEVELS),
                 vae=dict(VAE, sample_size=512, scaling_factor=0.18215), schedule=SCHEDULE),
    "sd21": dict(text=[CLIP_H], unet=dict(UNET, sample_size=96, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024,
                                          use_linear_projection=True, **FOUR_LEVELS),
                 vae=dict(VAE, sample_size=768, scaling_factor=0.18215), schedule=dict(SCHEDULE, prediction_type="v_prediction")),
    "sdxl": dict(text=[CLIP_L, CLIP_G],
                 unet=dict(UNET, sample_size=128, block_out_channels=[320, 640, 1280], attention_head_dim=[5, 10, 20],
                           cross_attention_dim=2048, use_linear_projection=True, transformer_layers_per_block=[1, 2, 10],
                           addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
                           down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                           up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]),
                 vae=dict(VAE, sample_size=1024, scaling_factor=0.13025, force_upcast=True), schedule=SCHEDULE),
}


# ---- names and shapes ----

def linear(name, n_out, n_in, bias=True):
    yield f"{name}.weight", (n_out, n_in)
    if bias:
        yield f"{name}.bias", (n_out,)


def conv(name, n_out, n_in, kernel=3):
    yield f"{name}.weight", (n_out, n_in, kernel, kernel)
    yield f"{name}.bias", (n_out,)


def norm(name, c):
    yield f"{name}.weight", (c,)
    yield f"{name}.bias", (c,)


def text_shapes(t, projection):
    p, h = "text_model.", t["hidden_size"]
    yield f"{p}embeddings.token_embedding.weight", (49408, h)
    yield f"{p}embeddings.position_embedding.weight", (77, h)
    for i in range(t["num_hidden_layers"]):
        l = f"{p}encoder.layers.{i}."
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"{l}self_attn.{part}", h, h)
        yield from norm(f"{l}layer_norm1", h)
        yield from linear(f"{l}mlp.fc1", t["intermediate_size"], h)
        yield from linear(f"{l}mlp.fc2", h, t["intermediate_size"])
        yield from norm(f"{l}layer_norm2", h)
    yield from norm(f"{p}final_layer_norm", h)
    if projection:
        yield from linear("text_projection", t["projection_dim"], h, bias=False)


def resnet(name, c_in, c_out, time=0):
    yield from norm(f"{name}.norm1", c_in)
    yield from conv(f"{name}.conv1", c_out, c_in)
    if time:
        yield from linear(f"{name}.time_emb_proj", c_out, time)
    yield from norm(f"{name}.norm2", c_out)
    yield from conv(f"{name}.conv2", c_out, c_out)
    if c_in != c_out:
        yield from conv(f"{name}.conv_shortcut", c_out, c_in, 1)


def transformer(name, c, context, depth, is_linear):
    yield from norm(f"{name}.norm", c)
    yield from linear(f"{name}.proj_in", c, c) if is_linear else conv(f"{name}.proj_in", c, c, 1)
    for i in range(depth):
        b = f"{name}.transformer_blocks.{i}"
        for attn, width in (("attn1", c), ("attn2", context)):
            yield from norm(f"{b}.norm{attn[-1]}", c)
            yield from linear(f"{b}.{attn}.to_q", c, c, bias=False)
            yield from linear(f"{b}.{attn}.to_k", c, width, bias=False)
            yield from linear(f"{b}.{attn}.to_v", c, width, bias=False)
            yield from linear(f"{b}.{attn}.to_out.0", c, c)
        yield from norm(f"{b}.norm3", c)
        yield from linear(f"{b}.ff.net.0.proj", 8 * c, c)
        yield from linear(f"{b}.ff.net.2", c, 4 * c)
    yield from linear(f"{name}.proj_out", c, c) if is_linear else conv(f"{name}.proj_out", c, c, 1)


def unet_shapes(u):
    widths, layers, context = u["block_out_channels"], u["layers_per_block"], u["cross_attention_dim"]
    is_linear, levels, time = u.get("use_linear_projection", False), len(widths), 4 * widths[0]
    depth = u.get("transformer_layers_per_block", [1] * levels)
    yield from conv("conv_in", widths[0], u["in_channels"])
    yield from linear("time_embedding.linear_1", time, widths[0])
    yield from linear("time_embedding.linear_2", time, time)
    if "addition_embed_type" in u:
        yield from linear("add_embedding.linear_1", time, u["projection_class_embeddings_input_dim"])
        yield from linear("add_embedding.linear_2", time, time)
    skips, c = [widths[0]], widths[0]
    for i, width in enumerate(widths):
        b = f"down_blocks.{i}"
        for j in range(layers):
            yield from resnet(f"{b}.resnets.{j}", c, width, time)
            c = width
            if "CrossAttn" in u["down_block_types"][i]:
                yield from transformer(f"{b}.attentions.{j}", c, context, depth[i], is_linear)
            skips.append(c)
        if i < levels - 1:
            yield from conv(f"{b}.downsamplers.0.conv", c, c)
            skips.append(c)
    yield from resnet("mid_block.resnets.0", c, c, time)
    yield from transformer("mid_block.attentions.0", c, context, depth[-1], is_linear)
    yield from resnet("mid_block.resnets.1", c, c, time)
    for i, width in enumerate(reversed(widths)):
        b = f"up_blocks.{i}"
        for j in range(layers + 1):
            yield from resnet(f"{b}.resnets.{j}", c + skips.pop(), width, time)
            c = width
            if "CrossAttn" in u["up_block_types"][i]:
                yield from transformer(f"{b}.attentions.{j}", c, context, depth[levels - 1 - i], is_linear)
        if i < levels - 1:
            yield from conv(f"{b}.upsamplers.0.conv", c, c)
    yield from norm("conv_norm_out", c)
    yield from conv("conv_out", u["out_channels"], c)


def vae_shapes(v):
    widths, layers, latents = v["block_out_channels"], v["layers_per_block"], v["latent_channels"]

    def middle(name, c):
        yield from resnet(f"{name}.resnets.0", c, c)
        a = f"{name}.attentions.0"
        yield from norm(f"{a}.group_norm", c)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from linear(f"{a}.{part}", c, c)
        yield from resnet(f"{name}.resnets.1", c, c)

    c = widths[0]
    yield from conv("encoder.conv_in", c, v["in_channels"])
    for i, width in enumerate(widths):
        for j in range(layers):
            yield from resnet(f"encoder.down_blocks.{i}.resnets.{j}", c, width)
            c = width
        if i < len(widths) - 1:
            yield from conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", c, c)
    yield from middle("encoder.mid_block", c)
    yield from norm("encoder.conv_norm_out", c)
    yield from conv("encoder.conv_out", 2 * latents, c)
    yield from conv("quant_conv", 2 * latents, 2 * latents, 1)
    yield from conv("post_quant_conv", latents, latents, 1)
    yield from conv("decoder.conv_in", c, latents)
    yield from middle("decoder.mid_block", c)
    for i, width in enumerate(reversed(widths)):
        for j in range(layers + 1):
            yield from resnet(f"decoder.up_blocks.{i}.resnets.{j}", c, width)
            c = width
        if i < len(widths) - 1:
            yield from conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", c, c)
    yield from norm("decoder.conv_norm_out", c)
    yield from conv("decoder.conv_out", v["out_channels"], c)


# ---- files ----

def tensor_bytes(name, shape, kind, rng):
    """In pieces of CHUNK bytes."""
    n = 2 * math.prod(shape)
    bits, bias = (10, 15) if kind == "f16" else (7, 127)
    if len(shape) == 1:
        one = struct.pack("<H", bias << bits) if name.endswith("weight") else b"\0\0"
        yield one * (n // 2)
        return
    gain = 0.25 if "embedding.weight" in name else 1 / math.sqrt(math.prod(shape[1:]))
    exponent = round(math.log2(gain / 1.53)) + bias  # magnitudes from 1 to 2 times a power of 2 have an RMS of 1.53 times it
    keep, put = 0x8000 | (1 << bits) - 1, exponent << bits
    for at in range(0, n, CHUNK):
        size = min(CHUNK, n - at)
        keep_all = int.from_bytes(struct.pack("<H", keep) * (size // 2), "little")
        put_all = int.from_bytes(struct.pack("<H", put) * (size // 2), "little")
        yield (rng.getrandbits(8 * size) & keep_all | put_all).to_bytes(size, "little")


def write_weights(path, shapes, kind, seed):
    shapes, header, at = list(shapes), {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes:
        n = 2 * math.prod(shape)
        header[name] = {"dtype": kind.upper(), "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes:
            for piece in tensor_bytes(name, shape, kind, random.Random(f"{seed} {name}")):
                f.write(piece)
    return sum(math.prod(s) for _, s in shapes)


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write("\n")


def text_config(t, cls):
    return dict(t, architectures=[cls], model_type="clip_text_model", vocab_size=49408, max_position_embeddings=77,
                layer_norm_eps=1e-5, attention_dropout=0.0, bos_token_id=0, eos_token_id=2, pad_token_id=1)


def make(name, folder, kind="f16", tokenizer=None, seed=0):
    """Returns the number of the UNet's parameters."""
    m = MODELS[name]
    tokenizer = tokenizer or os.path.join(HERE, "../../models/tiny/tokenizer")
    xl = len(m["text"]) == 2
    index = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline", "_diffusers_version": "0.30.0",
             "scheduler": ["diffusers", "EulerDiscreteScheduler"], "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"]}
    if xl:
        index["force_zeros_for_empty_prompt"] = True
    else:
        index.update(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)
    for i, t in enumerate(m["text"]):
        suffix, cls = ("_2", "CLIPTextModelWithProjection") if i else ("", "CLIPTextModel")
        write_json(f"{folder}/text_encoder{suffix}/config.json", text_config(t, cls))
        write_weights(f"{folder}/text_encoder{suffix}/model.safetensors", text_shapes(t, bool(i)), kind, f"{seed} {name} text{i}")
        shutil.copytree(tokenizer, f"{folder}/tokenizer{suffix}", dirs_exist_ok=True)
        index["text_encoder" + suffix] = ["transformers", cls]
        index["tokenizer" + suffix] = ["transformers", "CLIPTokenizer"]
    write_json(f"{folder}/vae/config.json", dict(m["vae"], _class_name="AutoencoderKL"))
    write_weights(f"{folder}/vae/diffusion_pytorch_model.safetensors", vae_shapes(m["vae"]), kind, f"{seed} {name} vae")
    write_json(f"{folder}/unet/config.json", dict(m["unet"], _class_name="UNet2DConditionModel"))
    n = write_weights(f"{folder}/unet/diffusion_pytorch_model.safetensors", unet_shapes(m["unet"]), kind, f"{seed} {name} unet")
    write_json(f"{folder}/scheduler/scheduler_config.json", dict(m["schedule"], _class_name="EulerDiscreteScheduler"))
    write_json(f"{folder}/model_index.json", index)
    return n


def check():
    try:
        import diffusers
        import torch
        import transformers
    except ImportError as e:
        print(f"skipped: {e}")
        return 77
    wrong = 0
    for name, m in MODELS.items():
        with torch.device("meta"):
            theirs = [("unet", diffusers.UNet2DConditionModel.from_config(m["unet"]), unet_shapes(m["unet"])),
                      ("vae", diffusers.AutoencoderKL.from_config(m["vae"]), vae_shapes(m["vae"]))]
            for i, t in enumerate(m["text"]):
                cls = transformers.CLIPTextModelWithProjection if i else transformers.CLIPTextModel
                theirs.append((f"text_encoder {i}", cls(transformers.CLIPTextConfig(**text_config(t, cls.__name__))),
                               text_shapes(t, bool(i))))
        for part, model, shapes in theirs:
            want = {k: tuple(v.shape) for k, v in model.state_dict().items()}
            got = dict(shapes)
            if part.startswith("text"):  # newer transformers drop the prefix
                want = {k.removeprefix("text_model."): v for k, v in want.items()}
                got = {k.removeprefix("text_model."): v for k, v in got.items()}
            differ = sorted(k for k in want.keys() | got.keys() if want.get(k) != got.get(k))
            wrong += bool(differ)
            print(f"{name} {part}: {len(want)} tensors, {'differ: ' + ', '.join(differ[:5]) if differ else 'the same'}")
    return 1 if wrong else 0


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("model", nargs="?", choices=sorted(MODELS))
    p.add_argument("folder", nargs="?")
    p.add_argument("--type", default="f16", choices=["f16", "bf16"])
    p.add_argument("--tokenizer")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    if a.check:
        return check()
    if not a.folder:
        p.error("a model and a folder are needed")
    print(f"{a.model}: {make(a.model, a.folder, a.type, a.tokenizer, a.seed):,} parameters in the UNet")
    return 0


if __name__ == "__main__":
    sys.exit(main())

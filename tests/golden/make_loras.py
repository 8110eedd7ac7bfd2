#!/usr/bin/env python3
"""Makes loras/: small LoRA files in each form that programs write, and what diffusers and PEFT make of them.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make_loras.py

For each case NAME there is NAME.safetensors (or NAME/adapter_model.safetensors beside NAME/adapter_config.json), to be applied to
pipelines/PIPELINE, and NAME.merged.safetensors: the weights of each layer that it changes, merged by diffusers (load_lora_weights and
fuse_lora) or by PEFT (merge_and_unload), as COMPONENT.LAYER. __metadata__ there says which pipeline. Nothing here is needed to run the
tests (tests/unit/engine_lora.c).
"""
import os
import shutil
import tempfile
import warnings

import torch
from safetensors.torch import load_file, save_file

import diffusers
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model

warnings.filterwarnings("ignore")
diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()
torch.set_grad_enabled(False)

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "loras")
ATTN = "down_blocks.0.attentions.0.transformer_blocks.0."


def pipeline(name):
    kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    extra = {} if name == "sdxl" else {"safety_checker": None}
    return kind.from_pretrained(os.path.join(HERE, "pipelines", name), torch_dtype=torch.float32, **extra)


def weights(pipe):
    """COMPONENT.LAYER -> its weight, with the text encoders' names as files have had them for years."""
    out = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(pipe, part, None)
        for name, module in model.named_modules() if model is not None else ():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and ".lora_" not in name:
                name = name.replace(".base_layer", "")
                if part != "unet" and name.startswith("encoder."):
                    name = "text_model." + name
                out[f"{part}.{name}"] = module.weight.detach().clone()
    return out


def keep_merged(case, name, before, after, wanted):
    changed = {k: v for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed and (wanted is None or sorted(changed) == sorted(wanted)), (case, sorted(set(changed) ^ set(wanted or ())))
    save_file(changed, os.path.join(OUT, f"{case}.merged.safetensors"), metadata={"pipeline": name})


def pair(weight, rank, seed):
    """down and up for a layer's weight, in half precision, as most files have them."""
    g = torch.Generator().manual_seed(seed)
    out, rest = weight.shape[0], weight.shape[1:]
    tail = (1,) * (weight.ndim - 2)
    return ((torch.rand(rank, *rest, generator=g) - 0.5).half(), (torch.rand(out, rank, *tail, generator=g) - 0.5).half())


def by_diffusers(case, name, wanted):
    pipe = pipeline(name)
    before = weights(pipe)
    state, alphas, metadata = pipe.lora_state_dict(OUT, weight_name=f"{case}.safetensors", return_lora_metadata=True,
                                                   unet_config=pipe.unet.config if case == "kohya_blocks" else None)
    pipe.load_lora_into_unet(state, network_alphas=alphas, unet=pipe.unet, metadata=metadata)
    for part in ("text_encoder", "text_encoder_2"):
        if any(k.startswith(f"{part}.") for k in state):
            pipe.load_lora_into_text_encoder(state, network_alphas=alphas, text_encoder=getattr(pipe, part), prefix=part,
                                             metadata=metadata)
    pipe.fuse_lora(components=[c for c in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, c, None) is not None])
    keep_merged(case, name, before, weights(pipe), wanted)


def kohya(case, name, layers, metadata, unused=()):
    """layers: key without its ending -> (COMPONENT.LAYER, rank, alpha or None)."""
    base, tensors = weights(pipeline(name)), {}
    for i, (key, (layer, rank, alpha)) in enumerate(layers.items()):
        down, up = pair(base[layer], rank, 100 + i)
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=torch.float16)
    save_file(tensors, os.path.join(OUT, f"{case}.safetensors"), metadata=metadata)
    by_diffusers(case, name, [layer for layer, _, _ in layers.values()])


def plain(case, name, layers, metadata=None):
    """layers: (key of down, key of up, COMPONENT.LAYER, rank)."""
    base, tensors = weights(pipeline(name)), {}
    for i, (down_key, up_key, layer, rank) in enumerate(layers):
        tensors[down_key], tensors[up_key] = pair(base[layer], rank, 200 + i)
    save_file(tensors, os.path.join(OUT, f"{case}.safetensors"), metadata=metadata)
    by_diffusers(case, name, [layer for _, _, layer, _ in layers])


def fill(model):
    """Values for an adapter, whose second half begins as zeros."""
    g = torch.Generator().manual_seed(7)
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name:
            p.data = (torch.rand(p.shape, generator=g) - 0.5)


def saved_by_diffusers(case, name, configs, wanted):
    """What diffusers' training scripts do since 0.34: adapters saved with their configs as lora_adapter_metadata."""
    pipe = pipeline(name)
    models, layers = {}, {}
    for part, config in configs.items():
        model = getattr(pipe, part)
        inject_adapter_in_model(LoraConfig(**config), model)
        model.peft_config = {"default": LoraConfig(**config)}
        fill(model)
        models[part], layers[f"{part}_lora_layers"] = model, get_peft_model_state_dict(model)
    layers = {k: {n: t.contiguous() for n, t in v.items()} for k, v in layers.items()}
    pipe.save_lora_weights(OUT, weight_name=f"{case}.safetensors", **layers, **_collate_lora_metadata(models))
    by_diffusers(case, name, wanted)


def saved_by_unet(case, name, config):
    """What a UNet saves of itself: no prefix, neither in the keys nor in the metadata."""
    pipe = pipeline(name)
    before = weights(pipe)
    pipe.unet.add_adapter(LoraConfig(**config))
    fill(pipe.unet)
    pipe.unet.save_lora_adapter(OUT, adapter_name="default", weight_name=f"{case}.safetensors")
    fresh = pipeline(name)
    fresh.unet.load_lora_adapter(OUT, weight_name=f"{case}.safetensors", prefix=None)
    fresh.unet.fuse_lora()
    keep_merged(case, name, before, weights(fresh), None)


def saved_by_peft(case, name, part, config, wanted):
    pipe = pipeline(name)
    before = weights(pipe)
    model = get_peft_model(getattr(pipe, part), LoraConfig(**config))
    fill(model)
    folder = os.path.join(OUT, case)
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    fresh = pipeline(name)
    setattr(fresh, part, PeftModel.from_pretrained(getattr(fresh, part), folder).merge_and_unload())
    keep_merged(case, name, before, weights(fresh), wanted)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    te, te2, mid = "text_model.encoder.layers.", "text_model.encoder.layers.", "mid_block.attentions.0.transformer_blocks.0."

    # kohya's trainers: alpha as a tensor; their metadata repeat it, and no program reads it from there. One alpha for all attentions and
    # one for a text encoder, as the trainers write it: where they differ diffusers 0.42 looks for them under names that no layer has.
    kohya("kohya_sd1", "sd1", {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (f"unet.{ATTN}attn1.to_q", 2, 1.0),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0": (f"unet.{ATTN}attn2.to_out.0", 4, 1.0),
        "lora_unet_down_blocks_0_resnets_0_conv1": ("unet.down_blocks.0.resnets.0.conv1", 2, 0.5),
        "lora_unet_down_blocks_0_resnets_0_time_emb_proj": ("unet.down_blocks.0.resnets.0.time_emb_proj", 2, 1.0),
        "lora_unet_down_blocks_0_attentions_0_proj_in": ("unet.down_blocks.0.attentions.0.proj_in", 2, 1.0),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (f"text_encoder.{te}0.self_attn.q_proj", 2, 1.0),
        "lora_te_text_model_encoder_layers_0_self_attn_out_proj": (f"text_encoder.{te}0.self_attn.out_proj", 2, 1.0),
        "lora_te_text_model_encoder_layers_1_mlp_fc1": (f"text_encoder.{te}1.mlp.fc1", 2, 1.0),
    }, {"ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "1.0"})

    # SDXL's, with two text encoders; the first one's last layer is there too, and is not run
    kohya("kohya_sdxl", "sdxl", {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q", 2, 1.0),
        "lora_unet_mid_block_attentions_0_transformer_blocks_2_ff_net_2": ("unet.mid_block.attentions.0.transformer_blocks.2.ff.net.2", 2, 1.0),
        "lora_unet_up_blocks_0_attentions_0_proj_out": ("unet.up_blocks.0.attentions.0.proj_out", 2, 0.5),
        "lora_unet_label_emb_0_0": ("unet.add_embedding.linear_1", 2, 1.0),
        **{f"lora_te1_text_model_encoder_layers_{i}_{x.replace('.', '_')}": (f"text_encoder.{te}{i}.{x}", 2, 1.0)
           for i, x in ((0, "self_attn.out_proj"), (2, "self_attn.out_proj"), (2, "self_attn.q_proj"), (2, "mlp.fc2"))},
        "lora_te2_text_model_encoder_layers_3_self_attn_out_proj": (f"text_encoder_2.{te2}3.self_attn.out_proj", 2, 1.0),
        "lora_te2_text_model_encoder_layers_3_mlp_fc1": (f"text_encoder_2.{te2}3.mlp.fc1", 2, 1.0),
    }, {"ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "1.0"})

    # SDXL's trainers name the UNet's layers as the original code does; on the small SD1, whose blocks diffusers can count
    kohya("kohya_blocks", "sd1", {
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": (f"unet.{ATTN}attn1.to_q", 2, 1.0),
        "lora_unet_input_blocks_3_0_in_layers_2": ("unet.down_blocks.1.resnets.0.conv1", 2, 1.0),
        "lora_unet_middle_block_1_transformer_blocks_0_ff_net_2": (f"unet.{mid}ff.net.2", 2, 1.0),
        "lora_unet_input_blocks_0_0": ("unet.conv_in", 2, 1.0),
        "lora_unet_time_embed_2": ("unet.time_embedding.linear_2", 2, 1.0),
        "lora_unet_out_2": ("unet.conv_out", 2, 1.0),
        "lora_unet_output_blocks_3_0_out_layers_3": ("unet.up_blocks.1.resnets.1.conv2", 2, 0.5),
        "lora_unet_output_blocks_0_0_skip_connection": ("unet.up_blocks.0.resnets.0.conv_shortcut", 2, 0.5),
        "lora_unet_output_blocks_3_0_emb_layers_1": ("unet.up_blocks.1.resnets.1.time_emb_proj", 2, 0.5),
        "lora_unet_output_blocks_3_1_proj_out": ("unet.up_blocks.1.attentions.1.proj_out", 2, 0.5),
    }, {"ss_network_module": "networks.lora"})

    # diffusers before it used PEFT: attention processors (0.14), .lora. and .lora_linear_layer. (0.18); no alpha, so it is the rank
    plain("diffusers_processors", "sd1", [
        (f"unet.{ATTN}attn1.processor.to_q_lora.down.weight", f"unet.{ATTN}attn1.processor.to_q_lora.up.weight", f"unet.{ATTN}attn1.to_q", 2),
        (f"unet.{ATTN}attn2.processor.to_out_lora.down.weight", f"unet.{ATTN}attn2.processor.to_out_lora.up.weight",
         f"unet.{ATTN}attn2.to_out.0", 4),
        *((f"text_encoder.{te}1.self_attn.to_{x}_lora.down.weight", f"text_encoder.{te}1.self_attn.to_{x}_lora.up.weight",
           f"text_encoder.{te}1.self_attn.{x}_proj", 2) for x in ("q", "k", "v", "out")),
    ])
    plain("diffusers_layers", "sd1", [
        (f"unet.{ATTN}attn1.to_k.lora.down.weight", f"unet.{ATTN}attn1.to_k.lora.up.weight", f"unet.{ATTN}attn1.to_k", 2),
        (f"unet.{mid}ff.net.2.lora.down.weight", f"unet.{mid}ff.net.2.lora.up.weight", f"unet.{mid}ff.net.2", 2),
        *((f"text_encoder.{te}0.{x}.lora_linear_layer.down.weight", f"text_encoder.{te}0.{x}.lora_linear_layer.up.weight",
           f"text_encoder.{te}0.{x}", 2) for x in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")),
    ])

    # the adapters' configs in the file: alpha other than rank, patterns, rank-stabilised scaling
    saved_by_diffusers("diffusers_metadata", "sd1", {
        "unet": dict(r=4, lora_alpha=2, target_modules=["attn1.to_q", "attn1.to_k", "mid_block.attentions.0.proj_in", "conv_in"],
                     rank_pattern={"^down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 2, "mid_block.*": 3},
                     alpha_pattern={"attn1.to_k": 16, "conv_in": 1}),
        "text_encoder": dict(r=2, lora_alpha=12, use_rslora=True, target_modules=["q_proj", "fc2"]),
    }, None)

    saved_by_unet("diffusers_unet", "sd1", dict(r=2, lora_alpha=5, target_modules=["attn1.to_v"], alpha_pattern={"mid_block.*": 3}))

    # PEFT's own folders: adapter_model.safetensors, with the config beside it
    saved_by_peft("peft_unet", "sd1", "unet", dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["attn2.to_v", "time_emb_proj"], rank_pattern={r".*up_blocks\..*time_emb_proj": 2},
        alpha_pattern={"down_blocks.0.resnets.0.time_emb_proj": 1.5}), None)
    saved_by_peft("peft_text_encoder", "sd1", "text_encoder", dict(r=2, lora_alpha=7, target_modules=["v_proj", "fc1"]), None)


if __name__ == "__main__":
    main()

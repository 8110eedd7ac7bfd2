"""The UNet, the text encoder and the noise of the small model."""

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import vae as ae
import words

WIDTH = 128  # of the text encoder
STEPS = 1000
SCHEDULER = dict(num_train_timesteps=STEPS, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                 prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1,
                 clip_sample=False, set_alpha_to_one=True)


class Attention:
    """Plain attention, which is faster at these sizes on a CPU than the fused one. For training only."""

    def __call__(self, attn, h, encoder_hidden_states=None, attention_mask=None, temb=None, *args, **kwargs):
        e = h if encoder_hidden_states is None else encoder_hidden_states
        b, n, c = h.shape

        def heads(x):
            return x.view(b, x.shape[1], attn.heads, -1).transpose(1, 2)

        q, k, v = heads(attn.to_q(h)), heads(attn.to_k(e)), heads(attn.to_v(e))
        s = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        o = s.softmax(-1).to(v.dtype) @ v
        return attn.to_out[0](o.transpose(1, 2).reshape(b, n, c))


def make_unet():
    plain, cross = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    levels = (plain, plain, cross, plain)
    return UNet2DConditionModel(sample_size=32, in_channels=ae.LATENT_CHANNELS, out_channels=ae.LATENT_CHANNELS,
                                block_out_channels=(32, 64, 128, 128),
                                down_block_types=tuple(x[0] for x in levels),
                                up_block_types=tuple(x[1] for x in reversed(levels)), layers_per_block=1,
                                cross_attention_dim=WIDTH, attention_head_dim=[2, 2, 4, 4], norm_num_groups=8)


def make_text(vocabulary):
    return CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
                                        num_hidden_layers=3, num_attention_heads=4,
                                        max_position_embeddings=words.LENGTH, projection_dim=WIDTH,
                                        hidden_act="quick_gelu", bos_token_id=vocabulary - 2,
                                        eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1))


def alphas():
    """√ᾱ and √(1 − ᾱ) of every training step."""
    bar = (1 - torch.linspace(SCHEDULER["beta_start"], SCHEDULER["beta_end"], STEPS)).double().cumprod(0)
    return bar.sqrt().float(), (1 - bar).sqrt().float()

"""The tokenizer: CLIP's byte-level BPE, learnt from the captions so that each of their words is one token."""

import json
import os

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Regex

import scene

LENGTH = 32  # tokens a prompt; the longest caption has 21 and the two marks
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

# Other ways to say the same, mixed into the training captions.
ALIASES = (
    ("in the centre", ("in the center", "in the middle")),
    ("grey", ("gray",)),
    ("to the left of", ("left of",)),
    ("to the right of", ("right of",)),
    ("a dark background", ("a dark grey background",)),
    ("in the night sky", ("at night",)),
    ("on green grass", ("on the grass",)),
)
PREFIXES = ("a picture of", "a drawing of", "an image of", "an illustration of", "a photo of")
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def say(s, rng):
    """The scene's caption, one time in eight in other words."""
    text = scene.caption(s)
    if rng.random() < 0.125:
        for known, others in ALIASES:
            if known in text and rng.random() < 0.5:
                text = text.replace(known, others[rng.integers(len(others))])
    if rng.random() < 0.06:
        text = f"{PREFIXES[rng.integers(len(PREFIXES))]} {text}"
    return text


def train(folder):
    rng = np.random.default_rng(3)
    captions = [say(scene.random_scene(rng), rng) for _ in range(20000)]
    for _, others in ALIASES:
        captions += list(others) * 50
    captions += list(PREFIXES) * 50
    t = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=EOS))
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "),
                                         normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    t.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=1200, min_frequency=2, show_progress=False,
                                                        initial_alphabet=alphabet, special_tokens=[],
                                                        end_of_word_suffix="</w>"))
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m)
              for m in json.loads(t.to_str())["model"]["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, marks.
    order = alphabet + [c + "</w>" for c in alphabet]
    for a, b in merges:
        if a + b not in order:
            order.append(a + b)
    order += [BOS, EOS]
    os.makedirs(folder, exist_ok=True)

    def put(name, text):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            f.write(text)

    mark = {t: {"content": t, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
            for t in (BOS, EOS)}
    named = {"bos_token": mark[BOS], "eos_token": mark[EOS], "unk_token": mark[EOS], "pad_token": EOS}
    put("vocab.json", json.dumps({w: i for i, w in enumerate(order)}, ensure_ascii=False))
    put("merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    put("special_tokens_map.json", json.dumps(named, indent=1))
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": LENGTH,
              "tokenizer_class": "CLIPTokenizer"}
    config.update({k: {**v, "__type": "AddedToken"} if isinstance(v, dict) else v for k, v in named.items()})
    put("tokenizer_config.json", json.dumps(config, indent=1))


def load(folder):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def ids(tokenizer, texts):
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True,
                     return_tensors="pt").input_ids


if __name__ == "__main__":
    import sys

    train(sys.argv[1])

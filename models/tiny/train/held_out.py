"""Writes what tests/model needs: held_out.py DIR

DIR/held_out.tsv: prompts that training never sees (scene.held_out), with what a picture of each must show:
  seed, background, object, object or "-", prompt        object: "colour shape x y radius"
DIR/truth.png: pictures of the first of them as the generator itself draws them, to test the judge with.
"""

import os
import sys

import numpy as np
from PIL import Image

import scene

PROMPTS, TRUTH, COLUMNS = 320, 64, 8


def place(s):
    centres = scene.RELATIONS[s["relation"]] if s["relation"] else (scene.PLACES[s["place"]],)
    out = [f'{o["colour"]} {o["shape"]} {c[0]} {c[1]} {scene.SIZES[o["size"]]:.0f}'
           for o, c in zip(s["objects"], centres)]
    return out + ["-"] * (2 - len(out))


def main(folder):
    rng = np.random.default_rng(20)
    seen, scenes = set(), []
    while len(scenes) < PROMPTS:
        s = scene.random_split_scene(rng, True)
        if scene.caption(s) not in seen:
            seen.add(scene.caption(s))
            scenes.append(s)
    with open(os.path.join(folder, "held_out.tsv"), "w") as f:
        f.write("# seed\tbackground\tobject\tobject\tprompt; written by models/tiny/train/held_out.py\n")
        for i, s in enumerate(scenes):
            f.write("\t".join([str(i + 1), s["background"] or "-", *place(s), scene.caption(s)]) + "\n")
    p = [scene.draw(s, rng) for s in scenes[:TRUTH]]
    rows = [np.concatenate(p[i:i + COLUMNS], 1) for i in range(0, TRUTH, COLUMNS)]
    Image.fromarray(np.concatenate(rows, 0)).save(os.path.join(folder, "truth.png"), optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])

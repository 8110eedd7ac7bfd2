"""The world of the small model: scenes, their captions, and how they are drawn.

A scene is one object, or two with a relation between them, on a background. Everything that a caption says
is drawn as said; what it does not say (the exact place, the shade, the background) is drawn at random.
Which scenes are kept out of training is a rule on the scene itself, `held_out`.
"""

import hashlib

import numpy as np

SIZE = 128

COLOURS = {
    "red": (222, 38, 42),
    "orange": (246, 138, 28),
    "yellow": (250, 214, 48),
    "green": (40, 160, 70),
    "cyan": (40, 202, 212),
    "blue": (40, 84, 214),
    "purple": (130, 60, 180),
    "pink": (246, 130, 182),
    "white": (248, 248, 246),
    "black": (22, 22, 26),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
SIZES = {"small": 15.0, "": 22.0, "large": 30.0}
STYLES = ("", "glossy", "outlined")
PLACES = {  # words → centre
    "": (64, 64),
    "in the centre": (64, 64),
    "on the left": (33, 64),
    "on the right": (95, 64),
    "at the top": (64, 33),
    "at the bottom": (64, 95),
    "in the top left corner": (33, 33),
    "in the top right corner": (95, 33),
    "in the bottom left corner": (33, 95),
    "in the bottom right corner": (95, 95),
}
RELATIONS = {  # words → centres of the first and of the second
    "above": ((64, 34), (64, 94)),
    "below": ((64, 94), (64, 34)),
    "to the left of": ((34, 64), (94, 64)),
    "to the right of": ((94, 64), (34, 64)),
}
# words → the colours of objects that would not stand out against it
BACKGROUNDS = {
    "": (),
    "on a grey background": (),
    "on a white background": ("white",),
    "on a dark background": ("black",),
    "on cream paper": ("white",),
    "on stripes": (),
    "on a checkered floor": (),
    "in the night sky": ("black",),
    "under a blue sky": ("white", "cyan"),
    "at sunset": ("orange", "pink", "purple"),
    "on green grass": ("green", "white", "cyan"),
}


# ---- shapes: distance fields, made once ----

FIELD_N, FIELD_R = 288, 1.8


def _polygon(points):
    p = np.asarray(points, np.float64)
    g = (np.arange(FIELD_N) + 0.5) / FIELD_N * 2 * FIELD_R - FIELD_R
    x, y = np.meshgrid(g, g)
    best = np.full(x.shape, 1e9)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(p, np.roll(p, -1, 0)):
        ex, ey = bx - ax, by - ay
        t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        best = np.minimum(best, np.hypot(x - ax - t * ex, y - ay - t * ey))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / (by - ay) + ax)
    return np.where(inside, -best, best)


def _field(shape):
    g = (np.arange(FIELD_N) + 0.5) / FIELD_N * 2 * FIELD_R - FIELD_R
    x, y = np.meshgrid(g, g)
    r = np.hypot(x, y)
    if shape == "circle":
        return r - 0.98
    if shape == "ring":
        return np.abs(r - 0.77) - 0.23
    if shape == "square":
        qx, qy = np.abs(x) - 0.76, np.abs(y) - 0.76
        return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - 0.08
    if shape == "triangle":
        return _polygon([(0, -1.0), (1.05, 0.82), (-1.05, 0.82)])
    if shape == "diamond":
        return _polygon([(0, -1.12), (0.74, 0), (0, 1.12), (-0.74, 0)])
    if shape == "cross":
        a, b = 0.34, 1.0
        return _polygon([(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a),
                         (-b, a), (-b, -a), (-a, -a)])
    if shape == "star":
        k = np.arange(10)
        rad = np.where(k % 2 == 0, 1.16, 0.5)
        return _polygon(np.stack([rad * np.sin(k * np.pi / 5), -rad * np.cos(k * np.pi / 5) + 0.06], 1))
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        hx = 16 * np.sin(t) ** 3
        hy = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return _polygon(np.stack([hx / 15.5, hy / 15.5 - 0.1], 1))
    raise ValueError(shape)


_fields = {}


def _distance(shape, cx, cy, r, x0, x1, y0, y1):
    """Signed distance in pixels to the shape's edge, for the pixels of a box."""
    if shape not in _fields:
        _fields[shape] = _field(shape).astype(np.float32)
    f = _fields[shape]
    scale = FIELD_N / (2 * FIELD_R)
    u = np.clip(((np.arange(x0, x1) + 0.5 - cx) / r + FIELD_R) * scale - 0.5, 0, FIELD_N - 1.001)
    v = np.clip(((np.arange(y0, y1) + 0.5 - cy) / r + FIELD_R) * scale - 0.5, 0, FIELD_N - 1.001)
    ui, vi = u.astype(int), v.astype(int)
    uf, vf = (u - ui).astype(np.float32), (v - vi).astype(np.float32)
    rows = f[vi] * (1 - vf)[:, None] + f[vi + 1] * vf[:, None]
    return (rows[:, ui] * (1 - uf) + rows[:, ui + 1] * uf) * r


# ---- scenes ----


def obj(colour, shape, size="", style=""):
    return {"colour": colour, "shape": shape, "size": size, "style": style}


def random_object(rng, sizes):
    return obj(list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))],
               sizes[rng.integers(len(sizes))], STYLES[rng.choice(3, p=(0.5, 0.25, 0.25))])


def fits(scene):
    """Whether every object stands out against the background and from the other."""
    bad = BACKGROUNDS[scene["background"]]
    colours = [o["colour"] for o in scene["objects"]]
    return not any(c in bad for c in colours) and len(set(colours)) == len(colours)


def random_scene(rng, pair=0.4):
    while True:
        bgs = list(BACKGROUNDS)
        background = "" if rng.random() < 0.25 else bgs[rng.integers(1, len(bgs))]
        if rng.random() < pair:
            rel = list(RELATIONS)[rng.integers(len(RELATIONS))]
            s = {"objects": [random_object(rng, ("", "", "small")) for _ in range(2)], "relation": rel,
                 "place": "", "background": background}
        else:
            places = list(PLACES)
            s = {"objects": [random_object(rng, ("", "", "small", "large"))], "relation": "",
                 "place": places[rng.integers(len(places))], "background": background}
        if fits(s):
            return s


def held_out(scene):
    """One in ten of the combinations of colour, shape, size and place (or relation) is never trained on,
    whatever the style and the background. "in the centre" and no place are one."""
    place = scene["relation"] or scene["place"] or "in the centre"
    key = place + "|" + "|".join(f'{o["colour"]} {o["shape"]} {o["size"]}' for o in scene["objects"])
    return hashlib.sha256(key.encode()).digest()[0] % 10 == 0


def random_split_scene(rng, held, pair=0.4):
    while True:
        s = random_scene(rng, pair)
        if held_out(s) == held:
            return s


def _noun(o):
    words = [w for w in (o["size"], o["style"], o["colour"], o["shape"]) if w]
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def caption(scene):
    words = [_noun(scene["objects"][0])]
    if scene["relation"]:
        words += [scene["relation"], _noun(scene["objects"][1])]
    words += [w for w in (scene["place"], scene["background"]) if w]
    return " ".join(words)


# ---- drawing ----

_g = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
_gx, _gy = np.meshgrid(_g, _g)
_vignette = ((_gx - 0.5) ** 2 + (_gy - 0.5) ** 2) * 2


def _ramp(top, bottom, t=None):
    t = _gy if t is None else t
    return np.asarray(top, np.float32) + t[..., None] * (np.asarray(bottom, np.float32) - np.asarray(top, np.float32))


def _background(words, rng):
    j = rng.uniform(-6, 6)
    if words == "":
        a, b = rng.uniform(115, 195, 2)
        tint = rng.uniform(-9, 9, 3)
        ang = rng.uniform(0, 2 * np.pi)
        t = np.clip(0.5 + (_gx - 0.5) * np.cos(ang) + (_gy - 0.5) * np.sin(ang), 0, 1)
        return _ramp(a + tint, b + tint, t)
    if words == "on a grey background":
        return _ramp((158 + j,) * 3, (140 + j,) * 3) - 22 * _vignette[..., None]
    if words == "on a white background":
        return _ramp((245, 245, 247), (236, 236, 238)) - 14 * _vignette[..., None]
    if words == "on a dark background":
        return _ramp((66 + j,) * 3, (54 + j, 55 + j, 60 + j)) - 14 * _vignette[..., None]
    if words == "on cream paper":
        wave = np.sin(_gy * 40 + np.sin(_gx * 9 + j) * 1.5)[..., None] * 2.5
        return _ramp((236, 222, 190), (228, 212, 178)) + wave - 12 * _vignette[..., None]
    if words == "on stripes":
        s = np.clip(np.sin((_gx + _gy + j / 6) * 2 * np.pi * 5) * 3, -1, 1)[..., None] * 0.5 + 0.5
        return (1 - s) * np.float32((176, 172, 182)) + s * np.float32((146, 143, 154))
    if words == "on a checkered floor":
        s = np.clip(np.sin(_gx * 2 * np.pi * 4) * 6, -1, 1) * np.clip(np.sin(_gy * 2 * np.pi * 4) * 6, -1, 1)
        s = s[..., None] * 0.5 + 0.5
        return (1 - s) * np.float32((192, 190, 184)) + s * np.float32((152, 150, 146))
    if words == "in the night sky":
        img = _ramp((18, 22, 58), (38, 40, 86))
        for _ in range(14):
            x, y = rng.integers(2, SIZE - 2, 2)
            a = rng.uniform(0.35, 0.8)
            img[y, x] += a * (255 - img[y, x])
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                img[y + dy, x + dx] += 0.4 * a * (255 - img[y + dy, x + dx])
        return img
    if words == "under a blue sky":
        img = _ramp((122, 176, 232), (204, 226, 244))
        for _ in range(2):
            cx, cy = rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.6)
            d = ((_gx - cx) / 0.2) ** 2 + ((_gy - cy) / 0.07) ** 2
            img += (np.exp(-d)[..., None] * 0.55) * (246 - img)
        return img
    if words == "at sunset":
        lo = _ramp((92, 70, 124), (214, 140, 120), np.clip(_gy * 1.5, 0, 1))
        return lo + np.clip(_gy - 0.62, 0, 1)[..., None] * 2.2 * (np.float32((244, 196, 140)) - lo)
    if words == "on green grass":
        h = 0.55 + j / 150 + 0.02 * np.sin(_gx * 7 + j)
        t = np.clip((_gy - h) * 40, 0, 1)[..., None]
        sky, grass = _ramp((186, 212, 232), (222, 232, 236)), _ramp((132, 178, 96), (84, 136, 66))
        grass += np.sin(_gx * 90 + np.sin(_gy * 50) * 2)[..., None] * 4
        return (1 - t) * sky + t * grass
    raise ValueError(words)


def _draw(img, mask, o, cx, cy, r, rng):
    m = int(r * 1.35) + 9
    x0, x1 = max(int(cx) - m, 0), min(int(cx) + m, SIZE)
    y0, y1 = max(int(cy) - m, 0), min(int(cy) + m, SIZE)
    box = img[y0:y1, x0:x1]
    sd = _distance(o["shape"], cx + 2, cy + 3.5, r, x0, x1, y0, y1)
    box *= 1 - 0.26 * np.clip(0.5 - sd / 7, 0, 1)[..., None] ** 2 * 1.4
    d = _distance(o["shape"], cx, cy, r, x0, x1, y0, y1)
    px, py = np.meshgrid((np.arange(x0, x1) + 0.5 - cx) / r, (np.arange(y0, y1) + 0.5 - cy) / r)
    base = np.float32(COLOURS[o["colour"]]) + rng.uniform(-7, 7, 3).astype(np.float32)
    fill = base * (1 - 0.07 * py[..., None]).astype(np.float32)
    if o["style"] == "glossy":
        fill = fill * (1 - 0.16 * np.clip(py + 0.2, 0, 1.2))[..., None]
        shine = 0.5 * np.exp(-(((px + 0.3) / 0.36) ** 2 + ((py + 0.42) / 0.24) ** 2))
        fill = fill + shine[..., None] * (255 - fill)
    if o["style"] == "outlined":
        line = np.float32((235, 235, 235) if o["colour"] == "black" else (34, 32, 40))
        a = np.clip(0.5 - (d - 2.4), 0, 1)[..., None]
        box += a * (line - box)
    mask[y0:y1, x0:x1] = np.maximum(mask[y0:y1, x0:x1], np.clip(3.5 - d, 0, 1))
    a = np.clip(0.5 - d, 0, 1)[..., None]
    box += a * (fill - box)


def draw(scene, rng):
    """The picture, 128 × 128 × 3 uint8."""
    return draw_masked(scene, rng)[0]


def draw_masked(scene, rng):
    """The picture, and where its objects are with their edges: 128 × 128, 0 to 1."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    img = np.array(_background(scene["background"], rng), np.float32)
    if scene["relation"]:
        centres = RELATIONS[scene["relation"]]
    else:
        centres = (PLACES[scene["place"]],)
    for o, (cx, cy) in zip(scene["objects"], centres):
        r = SIZES[o["size"]] * rng.uniform(0.95, 1.05)
        keep = r * 1.13 + 3  # nothing is cut off at the edge
        cx = np.clip(cx + rng.uniform(-3, 3), keep, SIZE - keep)
        cy = np.clip(cy + rng.uniform(-3, 3), keep, SIZE - keep)
        _draw(img, mask, o, float(cx), float(cy), float(r), rng)
    return np.clip(img + 0.5, 0, 255).astype(np.uint8), mask

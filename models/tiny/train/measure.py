"""tests/model/measure.c, the judge of the pictures, called from Python, so that training and test agree."""

import ctypes
import os
import subprocess
import tempfile

import numpy as np

import scene

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../tests/model/measure.c")
_lib = None


class Object(ctypes.Structure):
    _fields_ = [("colour", ctypes.c_int32), ("shape", ctypes.c_int32), ("x", ctypes.c_float),
                ("y", ctypes.c_float), ("radius", ctypes.c_float)]


class Result(ctypes.Structure):
    _fields_ = [("colour", ctypes.c_int32), ("shape", ctypes.c_int32), ("place", ctypes.c_int32),
                ("seen", ctypes.c_int32), ("fit", ctypes.c_float), ("x", ctypes.c_float), ("y", ctypes.c_float),
                ("area", ctypes.c_int32)]


def lib():
    global _lib
    if _lib is None:
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "measure.so")
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", path, SOURCE, "-lm"], check=True)
            _lib = ctypes.CDLL(path)
    return _lib


def asked(s):
    """(index of the background, what is asked of each object)"""
    centres = scene.RELATIONS[s["relation"]] if s["relation"] else (scene.PLACES[s["place"]],)
    return list(scene.BACKGROUNDS).index(s["background"]), [
        Object(list(scene.COLOURS).index(o["colour"]), scene.SHAPES.index(o["shape"]), *c, scene.SIZES[o["size"]])
        for o, c in zip(s["objects"], centres)]


def judge(s, picture):
    """(results of the objects, whether the background is right)"""
    picture = np.ascontiguousarray(picture, np.uint8)
    p = picture.ctypes.data_as(ctypes.c_void_p)
    background, objects = asked(s)
    out = []
    for o in objects:
        r = Result()
        lib().measure_object(p, background, ctypes.byref(o), ctypes.byref(r))
        out.append(r)
    f = lib().measure_background
    f.restype = ctypes.c_bool
    return out, bool(f(p, background))


def count(scenes, pictures):
    """[objects, right colours, right shapes, right places, right backgrounds, pictures]"""
    c = [0] * 6
    for s, p in zip(scenes, pictures):
        results, background = judge(s, p)
        c[0] += len(results)
        c[1] += sum(r.colour for r in results)
        c[2] += sum(r.shape for r in results)
        c[3] += sum(r.place for r in results)
        c[4] += background
        c[5] += 1
    return c


def grid(pictures, path, columns=8):
    from PIL import Image

    rows = [np.concatenate(pictures[i:i + columns], 1) for i in range(0, len(pictures), columns)]
    Image.fromarray(np.concatenate(rows, 0)).save(path)

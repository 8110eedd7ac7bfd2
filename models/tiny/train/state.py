"""Checkpoints that survive a kill at any moment, a log of JSON lines, and the clock of a run."""

import json
import os
import time

import torch


def save(path, **parts):
    tmp = f"{path}.{os.getpid()}"
    torch.save(parts, tmp)
    os.replace(tmp, path)


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False) if os.path.exists(path) else None


class Log:
    def __init__(self, path, rank):
        self.path, self.rank = path, rank

    def __call__(self, **fields):
        if self.rank:
            return
        fields = {k: round(v, 5) if isinstance(v, float) else v for k, v in fields.items()}
        with open(self.path, "a") as f:
            f.write(json.dumps(fields) + "\n")
        print(json.dumps(fields), flush=True)


class Clock:
    """Seconds trained, over all resumptions; `done` is the share of the budget, which drives the rate."""

    def __init__(self, minutes, seconds=0.0):
        self.budget, self.before, self.start = minutes * 60, seconds, time.monotonic()

    def seconds(self):
        return self.before + time.monotonic() - self.start

    def done(self):
        return min(self.seconds() / self.budget, 1.0)

"""Two or more single-threaded processes on a CPU that average their gradients: small layers lose less
that way than by threads inside of each operation. On CUDA there is one process."""

import os

import torch
import torch.distributed as dist


def start():
    """(rank, number of processes, device)"""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        return 0, 1, torch.device("cuda")
    if world > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method="env://", rank=rank, world_size=world)
    return rank, world, torch.device("cpu")


def average(parameters, world):
    """Averages the gradients of all processes."""
    average_tensors([p.grad for p in parameters if p.grad is not None], world)


def average_tensors(grads, world):
    """As one flat vector."""
    if world == 1:
        return
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world
    at = 0
    for g in grads:
        g.copy_(flat[at:at + g.numel()].view_as(g))
        at += g.numel()

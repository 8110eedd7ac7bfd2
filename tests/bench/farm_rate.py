#!/usr/bin/env python3
"""How many images a second the farm makes durable, beside what its disk and its Redis do alone; all in one run.

    farm_rate.py [--build build] [--images 8000] [--workers 1,2,4,8] [--seconds 60] [--part NAME …]

  workers  the simulated engine at 0 ms with tiny pictures, through the Unix socket: images a second from the first commit
           that is seen to the last, with each number of workers
  tcp      the same through TCP with keys (CURVE)
  keys     pictures of --size through TCP with keys and through the Unix socket: fetched a second, and CPU of the coordinator
  disk     the same number of files of the same size, written, synced, renamed and synced again, in groups of 256, as the
           collector does it where that is the cheaper way (syncfs)
  redis    a script of the same reads and writes as a commit, 64 in flight, appendonly with fsync always
  accept   seconds until a submission of --tasks tasks is accepted
  restart  seconds until a coordinator that was killed with these tasks answers again (with accept)
  batches  the same with --batches batches of one task, which are submitted by as many commands
  idle     the share of a core that the coordinator takes with --crowd workers that have nothing to do

A part that has not ended after --seconds is cut off and said to be so (batches: ten times as long). Run it on a quiet machine.
Python's standard library only.
"""
import argparse
import ctypes
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
IN_FLIGHT = 64
GROUP = 256
RECORD = 80
SCRIPT = """#!lua
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local b = redis.call('HMGET', KEYS[2], 'seq', 'state')
if not b[1] or b[2] == ARGV[4] then return -2 end
local at = tonumber(ARGV[2]) * 80
local old = redis.call('GETRANGE', KEYS[3], at, at + 79)
if #old == 80 and old:byte(80) ~= 0 then return -3 end
redis.call('SETRANGE', KEYS[3], at, ARGV[3])
redis.call('HDEL', KEYS[4], ARGV[2])
redis.call('INCR', KEYS[5])
return 0
"""


def farm_of(build):
    os.environ["KILN_BIN"] = str(pathlib.Path(build).resolve() / "bin")
    sys.path.insert(0, str(ROOT / "tests/farm"))
    import farm
    return farm


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def up_by_tcp(farm, f, workers, engine):
    """A farm whose workers come through TCP, with keys."""
    url = f"tcp://127.0.0.1:{free_port()}"
    f.up("sim:ms=0", 0, "--listen", url)
    token = f.token("--uses", workers)
    for n in range(workers):
        home = f.tmp / f"machine-{n}"
        home.mkdir()
        f.start(farm.BIN / "kiln-worker", "--join", url, "--engine", engine, "--token", token, "--name", f"w{n}",
                env={**f.env, "HOME": str(home)})
    farm.wait_for("the workers have joined", lambda: len(f.json("workers")) == workers)
    return url


def part_workers(a, tcp=False):
    farm = farm_of(a.build)
    for workers in (int(n) for n in a.workers.split(",")):
        f = farm.Farm()
        try:
            if tcp:
                up_by_tcp(farm, f, workers, "sim:ms=0,size=16")
            else:
                f.up("sim:ms=0,size=16", workers)
            batch = f.ok("submit", f.prompts(a.images), "--model", "sim", "--size", "16x16").strip()
            first, last, end = None, (0, 0), time.monotonic() + a.seconds
            while time.monotonic() < end:
                status, now = f.json("status", batch), time.monotonic()
                done = status["done"]
                if done and not first:
                    first = (now, done)
                if done > last[1]:
                    last = (now, done)
                if done == a.images:
                    break
                time.sleep(0.05)
            cut = "" if last[1] == a.images else f" (cut off: {last[1]} of {a.images})"
            if first and last[0] > first[0]:
                print(f"{'tcp' if tcp else 'workers':8} {workers}: {(last[1] - first[1]) / (last[0] - first[0]):8.0f} images/s{cut}", flush=True)
            else:
                print(f"{'tcp' if tcp else 'workers':8} {workers}: too few images to tell", flush=True)
        finally:
            f.close()


def part_disk(a):
    with tempfile.TemporaryDirectory(prefix="kiln-rate-") as tmp:
        root, data, end = os.open(tmp, os.O_RDONLY), os.urandom(a.bytes), time.monotonic() + a.seconds
        libc, done = ctypes.CDLL(None, use_errno=True), 0
        begun = time.monotonic()
        while done < a.images and time.monotonic() < end:
            group = [f"{tmp}/{i}" for i in range(done, min(done + GROUP, a.images))]
            for path in group:
                with open(path + ".tmp", "wb") as f:
                    f.write(data)
            if libc.syncfs(root):
                sys.exit("disk: syncfs failed")
            for path in group:
                os.rename(path + ".tmp", path)
            libc.syncfs(root)
            done += len(group)
        print(f"disk     {done / (time.monotonic() - begun):8.0f} files/s of {a.bytes} bytes, {GROUP} a group", flush=True)
        os.close(root)


def words(*args):
    out = [b"*%d\r\n" % len(args)]
    for x in args:
        x = x if isinstance(x, bytes) else str(x).encode()
        out.append(b"$%d\r\n%s\r\n" % (len(x), x))
    return b"".join(out)


def part_redis(a):
    with tempfile.TemporaryDirectory(prefix="kiln-rate-") as tmp:
        p = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", f"{tmp}/s", "--dir", tmp, "--appendonly", "yes",
                              "--appendfsync", "always", "--save", ""], stdout=subprocess.DEVNULL)
        try:
            s = socket.socket(socket.AF_UNIX)
            for _ in range(200):
                try:
                    s.connect(f"{tmp}/s")
                    break
                except OSError:
                    time.sleep(0.05)
            r = s.makefile("rb")
            s.sendall(words("SCRIPT", "LOAD", SCRIPT) + words("SET", "term", 1) + words("HSET", "b", "seq", 1, "state", 0))
            r.readline()
            sha = r.readline().strip()
            r.readline(), r.readline()
            record, done, end = b"\1" * RECORD, 0, time.monotonic() + a.seconds
            begun = time.monotonic()
            while done < a.images and time.monotonic() < end:
                s.sendall(b"".join(words("EVALSHA", sha, 5, "term", "b", "r", "f", "count", 1, done + k, record, 3)
                                   for k in range(IN_FLIGHT)))
                for _ in range(IN_FLIGHT):
                    if r.readline() != b":0\r\n":
                        sys.exit("redis: the script refused")
                done += IN_FLIGHT
            print(f"redis    {done / (time.monotonic() - begun):8.0f} commits/s, {IN_FLIGHT} in flight", flush=True)
        finally:
            p.terminate()
            p.wait()


def part_accept(a, restart=False):
    farm = farm_of(a.build)
    f = farm.Farm()
    try:
        f.up("sim:ms=1000,size=16", 1)
        prompts = f.prompts(a.tasks)
        begun = time.monotonic()
        batch = f.ok("submit", prompts, "--size", "16x16", timeout=a.seconds).strip()
        print(f"accept   {time.monotonic() - begun:8.1f} s for {a.tasks} tasks", flush=True)
        if not restart:
            return
        begun = time.monotonic()
        f.kill_and_await("coordinator")
        farm.wait_for("the coordinator answers", lambda: f.run("status", batch, "--json").returncode == 0, a.seconds)
        print(f"restart  {time.monotonic() - begun:8.1f} s with {a.tasks} tasks, from the kill to an answer", flush=True)
    finally:
        f.close()


def cpu_s(pid):
    """Seconds of CPU that a process took so far."""
    words = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def part_keys(a):
    farm = farm_of(a.build)
    f = farm.Farm()
    try:
        url = f"tcp://127.0.0.1:{free_port()}"
        f.up("sim:ms=0", 1, "--listen", url)
        batch = f.ok("submit", f.prompts(a.pictures), "--model", "sim", "--size", f"{a.size}x{a.size}").strip()
        f.ok("wait", batch, timeout=a.seconds)
        home, token, far = f.tmp / "person", f.token("--admin"), ("--farm", url)
        home.mkdir()
        (f.tmp / "hidden").mkdir()
        pictures = [p.stat().st_size for p in (f.dir / "objects").glob("??/*.png")]
        env, f.env = f.env, {**f.env, "HOME": str(home)}
        f.ok("status", *far, "--token", token)
        f.env = env
        for name, where in ("unix", ()), ("keys", far):
            f.env = {**env, "HOME": str(home)} if where else env
            before, begun = cpu_s(f.pid("coordinator")), time.monotonic()
            f.ok("fetch", batch, "-o", f.tmp / f"out-{name}", *where, timeout=a.seconds)
            took, cpu = time.monotonic() - begun, cpu_s(f.pid("coordinator")) - before
            print(f"keys     {name}: {len(pictures) / took:8.1f} pictures/s of {sum(pictures) // len(pictures)} bytes, "
                  f"{1000 * cpu / len(pictures):.2f} ms of the coordinator's CPU each", flush=True)
    finally:
        f.close()


def part_batches(a):
    farm = farm_of(a.build)
    f = farm.Farm()
    try:
        f.up("sim:ms=1000,size=16", 1)
        begun, end, going, done = time.monotonic(), time.monotonic() + 10 * a.seconds, [], 0
        while done < a.batches and time.monotonic() < end:
            going = [f.start("submit", "-p", f"a picture of {done + k}", "--model", "sim", "--size", "16x16", "--quiet") for k in range(min(4, a.batches - done))]
            for p in going:
                p.communicate()
                if p.returncode:
                    sys.exit("batches: a submission was refused")
            f.started.clear()
            done += len(going)
        print(f"batches  {time.monotonic() - begun:8.1f} s to submit {done} batches, by as many commands", flush=True)
        begun = time.monotonic()
        f.kill_and_await("coordinator")
        farm.wait_for("the coordinator answers", lambda: f.run("status", "--limit", "1").returncode == 0, a.seconds)
        print(f"batches  {time.monotonic() - begun:8.1f} s with {done} batches, from the kill to an answer", flush=True)
    finally:
        f.close()


def part_idle(a):
    farm = farm_of(a.build)
    import promise_strangers
    f, peers = farm.Farm(), promise_strangers.Peers()
    try:
        unix = f.up("sim:ms=0", 0, "--model", "sim").removeprefix("ipc://")
        for n in range(a.crowd):
            peers.join(n, unix)
            if n % 20 == 19:
                farm.wait_for("these have joined", lambda: all(w.data and w.data.greeted for w in peers.workers), a.seconds)
        farm.wait_for("all have joined", lambda: len(f.json("workers")) == a.crowd, a.seconds)
        time.sleep(3)
        pid, begun = f.pid("coordinator"), time.monotonic()
        before = cpu_s(pid)
        time.sleep(15)
        print(f"idle     {100 * (cpu_s(pid) - before) / (time.monotonic() - begun):8.1f} % of a core with {a.crowd} workers", flush=True)
    finally:
        peers.close()
        f.close()


def main():
    parts = {"workers": part_workers, "tcp": lambda a: part_workers(a, tcp=True), "keys": part_keys, "batches": part_batches,
             "idle": part_idle, "disk": part_disk, "redis": part_redis, "accept": part_accept,
             "restart": lambda a: part_accept(a, restart=True)}
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("--build", default=ROOT / "build")
    o.add_argument("--images", type=int, default=8000)
    o.add_argument("--batches", type=int, default=10000)
    o.add_argument("--crowd", type=int, default=1000, help="workers in the part idle")
    o.add_argument("--pictures", type=int, default=60, help="in the part keys")
    o.add_argument("--size", type=int, default=1024, help="of a picture in the part keys, pixels a side")
    o.add_argument("--tasks", type=int, default=1000000)
    o.add_argument("--bytes", type=int, default=1400, help="of a file in the part disk")
    o.add_argument("--workers", default="1,2,4,8")
    o.add_argument("--seconds", type=int, default=60)
    o.add_argument("--part", choices=parts, nargs="+", default=["workers", "tcp", "disk", "redis", "keys", "restart", "batches", "idle"])
    a = o.parse_args()
    for name in a.part:
        try:
            parts[name](a)
        except (subprocess.TimeoutExpired, AssertionError) as e:
            print(f"{name}: not measured: {str(e).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()

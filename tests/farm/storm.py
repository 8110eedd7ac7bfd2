#!/usr/bin/env python3
"""Storms: a farm of real processes under trouble drawn from a seed, and a judge that shares no code with the coordinator.

    storm.py [--seconds N | --minutes N | --hours N] [--seed S] [--keep] [--plant NAME | --lie CALL]

Redis, a coordinator, one that stands by, and workers with the simulated engine are killed, stopped, cut off; their disk
is full, read-only or fails in every n-th call (disk_trouble.c); Redis stalls, ends, loses its disk. Meanwhile clients
submit batches of all sizes and priorities, some of them twice, and cancel, pause, resume, retry, remove and fetch them.
The seed fixes the plan of the troubles and what each client draws. Connections are Unix sockets, through a proxy.

Then the trouble ends, all that was accepted must end, and the judge looks at the clients' journal, at Redis' records byte
by byte, at the files and their SHA-256, and at what `kiln fetch` and `kiln verify` say. Its summary is printed; where
something is wrong, so are the seed, the journal and the folder, which then stay. Status 1 then.

--plant NAME runs coordinators with a fault in them (base/planted.h), --lie CALL has a disk that says of every 50th call
of that kind that it did what it did not do: the judge must see it.
"""
import argparse
import collections
import errno
import hashlib
import json
import os
import pathlib
import random
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from farm import BIN, Redis, alive, wait_for

RECORD = 80 # bytes; the last one is not 0 when the image is committed
RECORD_STATE = {"active": b"1", "paused": b"2", "done": b"3", "cancelled": b"4"}
DISK_CALLS = ("create", "open", "write", "sync", "rename") # as in disk_trouble.c
CLIENTS, WORKERS = 3, 3
BATCHES_MAX = 40 # of one client: the oldest are removed then
ANSWER_S = 90    # a command that has said nothing for so long is killed: nobody knows what became of it
END_S = 400      # for all that was accepted to end, once the trouble is over
ENGINE = "sim:ms={ms},nan=0.003,crash=0.002,seed=5"
CRASHES = {-s for s in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)}
SHIM = os.environ.get("KILN_DISK_TROUBLE", str(BIN / "libdisk-trouble.so"))


# ---- connections

class Proxy:
    """Unix sockets that forward to others: control to the coordinator that leads, each data socket to its own."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.lock, self.over = threading.RLock(), False
        self.pairs, self.frozen = {}, []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def listen(self, path, kind, target):
        """Each connection to `path` goes to the socket that target() names; kind is "control" or "data"."""
        with self.lock:
            pathlib.Path(path).unlink(missing_ok=True)
            s = socket.socket(socket.AF_UNIX)
            s.bind(str(path))
            s.listen(128)
            s.setblocking(False)
            self.selector.register(s, selectors.EVENT_READ, (kind, target))
            return s

    def unlisten(self, s):
        with self.lock:
            self.selector.unregister(s)
            s.close()

    def cut(self, kinds):
        """Ends what there is of such connections."""
        with self.lock:
            for s, (_, kind) in list(self.pairs.items()):
                if kind in kinds:
                    self.drop(s)

    def freeze(self, kinds):
        """What there is of such connections forwards no more, and nobody is told."""
        with self.lock:
            for s, (other, kind) in list(self.pairs.items()):
                if kind in kinds:
                    self.selector.unregister(s)
                    del self.pairs[s]
                    self.frozen.append(s)

    def thaw(self):
        with self.lock:
            for s in self.frozen:
                s.close()
            self.frozen.clear()

    def close(self):
        self.over = True
        self.thread.join()
        with self.lock:
            self.cut({"control", "data"})
            self.thaw()

    def drop(self, s):
        if s in self.pairs:
            other = self.pairs.pop(s)[0]
            self.selector.unregister(s)
            s.close()
            self.drop(other)

    def run(self):
        while not self.over:
            for key, events in self.selector.select(0.05):
                with self.lock:
                    if key.data:
                        self.accept(key.fileobj, *key.data)
                    elif key.fileobj in self.pairs:
                        self.forward(key.fileobj)

    def accept(self, listener, kind, target):
        try:
            near, _ = listener.accept()
        except OSError:
            return
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(target() or "")
        except OSError:
            near.close()
            far.close()
            return
        for s, other in ((near, far), (far, near)):
            s.settimeout(2) # a peer that does not read holds up the others for so long, and is cut off
            self.pairs[s] = (other, kind)
            self.selector.register(s, selectors.EVENT_READ)

    def forward(self, s):
        try:
            data = s.recv(1 << 18)
            if data:
                self.pairs[s][0].sendall(data)
                return
        except OSError:
            pass
        self.drop(s)


# ---- processes

class Process:
    """A program that is started again whenever it has ended, unless it is held down."""

    def __init__(self, storm, name, words, env=None):
        self.storm, self.name, self.words = storm, name, [str(w) for w in words]
        self.env = dict(storm.env, **(env or {}))
        self.p, self.down_until, self.starts, self.stopped = None, 0, 0, False
        self.before = lambda: None # called at each start

    def tend(self):
        if self.p and self.p.poll() is not None:
            if self.p.returncode in CRASHES:
                self.storm.wrong(f"{self.name} was ended by {signal.Signals(-self.p.returncode).name}: see log/{self.name}.log")
            self.p, self.down_until = None, max(self.down_until, time.monotonic() + 0.2)
        if not self.p and time.monotonic() >= self.down_until:
            self.before()
            with open(self.storm.tmp / "log" / f"{self.name}.log", "ab") as log:
                self.p = subprocess.Popen(self.words, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.storm.tmp)
            self.starts += 1

    def send(self, number):
        if self.p and self.p.poll() is None:
            self.p.send_signal(number)
            self.stopped = number == signal.SIGSTOP

    def end(self):
        if self.p:
            self.p.kill()
            self.p.wait()


class Coordinator(Process):
    """Listens where only the proxy looks; `ready` once it leads and its data socket is behind the proxy."""

    def __init__(self, storm, name):
        self.path, self.ready_file = storm.tmp / f"{name}.sock", storm.tmp / f"{name}.ready"
        self.data, self.ready = pathlib.Path(f"{self.path}-data"), 0
        self.listener = None
        planted = storm.options.plant
        env = {"KILN_TROUBLE": storm.disk_file, "KILN_PLANT": planted or ""}
        if storm.shim:
            env["LD_PRELOAD"] = storm.shim
        super().__init__(storm, name, [BIN / ("kiln-coordinator-planted" if planted else "kiln-coordinator"), "--dir",
                                       storm.dir, "--redis", f"unix:{storm.redis_path}", "--listen", f"ipc://{self.path}",
                                       "--ready-file", self.ready_file, "--default-model", "sim", "--standby"], env)
        self.before = self.forget

    def forget(self):
        self.ready_file.unlink(missing_ok=True)
        self.ready = 0
        if self.listener:
            self.storm.proxy.unlisten(self.listener)
            self.listener = None

    def tend(self):
        super().tend()
        if self.p and not self.ready and self.ready_file.exists() and self.data.exists():
            real = self.storm.tmp / f"{self.name}.real"
            os.replace(self.data, real)
            self.listener = self.storm.proxy.listen(self.data, "data", lambda: str(real))
            self.ready = time.monotonic()


class Clients:
    """People at work, each a thread with batches of its own. Whatever they asked and were told is in the journal."""

    def __init__(self, storm):
        self.storm, self.lock, self.over = storm, threading.Lock(), threading.Event()
        self.journal = open(storm.tmp / "journal.jsonl", "w")
        self.batches, self.serial, self.files = {}, 0, {}
        self.counts = collections.Counter()
        self.threads = [threading.Thread(target=self.work, args=(n,)) for n in range(CLIENTS)]

    def note(self, **what):
        with self.lock:
            self.journal.write(json.dumps(dict(at=round(time.monotonic() - self.storm.begun, 3), **what)) + "\n")
            self.journal.flush()

    def kiln(self, *words, name=None):
        """Status (None: killed without an answer) and output; journalled before and after."""
        words = [str(w) for w in words]
        self.note(ask=words, batch=name)
        p = subprocess.Popen([str(BIN / "kiln"), *words, "--farm", self.storm.url], env=self.storm.env, cwd=self.storm.tmp,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = p.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            p.kill()
            out, err = p.communicate()
            p.returncode = None
        self.note(told=p.returncode, out=out[-2000:], err=err[-500:], of=words, batch=name)
        self.counts[words[0], p.returncode] += 1
        return p.returncode, out, err

    def prompts(self, number, count):
        """The prompts of a file are its number's, so that the same file is the same pictures."""
        path = self.storm.tmp / f"prompts-{number}-{count}.txt"
        if not path.exists():
            path.write_text("".join(f"storm {number} picture {i}\n" for i in range(count)))
        return path

    def submit(self, draw, mine, n):
        with self.lock:
            self.serial += 1
            name = f"batch-{self.serial}-end"
        count = draw.choice([1, 2, 5, 17, 40, 40, 120, 300])
        number = draw.randrange(12) # few: many batches ask for pictures that others have asked for
        priority = draw.choice([0, 0, 0, 5, -3])
        b = dict(name=name, file=number, count=count, priority=priority, id=None, wishes=[], owner=n)
        with self.lock:
            self.batches[name] = b
        words = ["submit", self.prompts(number, count), "--seed", 1000, "--name", name, "--priority", priority, "--steps",
                 draw.choice([1, 2])]
        b["steps"] = words[-1]
        status, out, _ = self.kiln(*words, name=name)
        b["accepted"] = status == 0
        if status == 0:
            b["id"] = out.strip()
            mine.append(b)

    def wish(self, b, *words):
        """A command about a batch: what was answered counts; what was not may have been done or not."""
        done, _, _ = self.kiln(words[0], b["id"], *words[1:], *(["--timeout", 8]), name=b["name"])
        b["wishes"].append((words[0], words[1:], done))
        return done

    def work(self, n):
        draw = random.Random(f"{self.storm.options.seed} client {n}")
        mine, fetched = [], 0
        while not self.over.is_set():
            live = [b for b in mine if not any(w[0] == "rm" for w in b["wishes"])]
            what = draw.choices(["submit", "cancel", "pause", "priority", "retry", "rm", "fetch", "status"],
                                [30, 6, 5, 6, 6, 6 if len(live) < BATCHES_MAX else 100, 5, 5])[0]
            if what == "submit" and len(live) < BATCHES_MAX:
                self.submit(draw, mine, n)
            elif what == "status":
                self.kiln("status", "--json")
            elif live:
                b = live[0] if what == "rm" and draw.random() < 0.5 else draw.choice(live)
                if what == "pause":
                    self.wish(b, "pause")
                    self.over.wait(draw.random())
                    self.wish(b, "resume")
                elif what == "priority":
                    self.wish(b, "priority", draw.choice([1, 7, 20]))
                elif what == "rm":
                    self.wish(b, "rm", *draw.choice([[], ["--now"]]))
                elif what == "fetch":
                    fetched += 1
                    out = self.storm.tmp / f"early-{n}-{fetched}"
                    self.kiln("fetch", b["id"], "-o", out, name=b["name"])
                    self.early(b, out)
                else:
                    self.wish(b, what)
            self.over.wait(draw.random() * 0.6)

    def early(self, b, out):
        """What a person had in hands while the storm went on: the same pictures must be there at the end."""
        try:
            lines = [json.loads(l) for l in (out / "manifest.jsonl").read_text().splitlines()]
        except OSError:
            lines = []
        seen = b.setdefault("seen", {})
        for l in lines:
            if l["status"] == "done" and l["file"]:
                if hashlib.sha256((out / l["file"]).read_bytes()).hexdigest() != l["sha256"]:
                    self.storm.wrong(f"{b['name']}: fetch brought image {l['index']} with other bytes than its manifest says")
                seen[l["index"]] = l["sha256"]
        shutil.rmtree(out, ignore_errors=True)


class Watcher:
    """Reads the records in Redis again and again while the storm goes on: what was committed once stays, byte by byte."""

    def __init__(self, storm):
        self.storm, self.over, self.seen, self.looks = storm, threading.Event(), {}, 0
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.over.wait(0.5):
            redis = None
            try:
                redis = Redis(self.storm.redis_path)
                self.look(redis)
            except OSError:
                pass # it is down, stopped or loading
            if redis:
                redis.close()

    def look(self, redis):
        for batch in redis.ask("ZRANGE", "kiln:batches", 0, -1):
            records = redis.ask("GET", b"kiln:b:%s:r" % batch) or b""
            before = self.seen.get(batch, b"")
            if records != before and redis.ask("ZSCORE", "kiln:batches", batch) is not None: # not removed meanwhile
                for at in range(0, len(before), RECORD):
                    old = before[at:at + RECORD]
                    if old[-1:] != b"\0" and records[at:at + RECORD] != old:
                        self.storm.wrong(f"batch {batch.decode()}: the record of image {at // RECORD} was committed and is another now")
            self.seen[batch] = records
        self.looks += 1


# ---- the storm

class Storm:
    def __init__(self, options):
        self.options = options
        self.tmp = pathlib.Path(tempfile.mkdtemp(prefix="kiln-storm-"))
        self.dir, self.redis_path = self.tmp / "farm", self.tmp / "redis.sock"
        for path in (self.dir, self.tmp / "log", self.tmp / "redis"):
            path.mkdir()
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("KILN_")}
        self.env.update(KILN_HOME=str(self.tmp / "home"), HOME=str(self.tmp), LC_ALL="C.UTF-8")
        self.shim = SHIM if os.path.exists(SHIM) else ""
        self.disk_file, self.redis_disk_file = (str(self.tmp / n) for n in ("disk", "redis-disk"))
        for path in (self.disk_file, self.redis_disk_file):
            pathlib.Path(path).write_bytes(bytes(8 * len(DISK_CALLS)))
        self.begun, self.faults, self.troubles = time.monotonic(), [], collections.Counter()
        self.proxy = Proxy()
        self.control = self.tmp / "control.sock"
        self.url = f"ipc://{self.control}"
        self.proxy.listen(self.control, "control", self.leader_path)
        redis_env = {"KILN_TROUBLE": self.redis_disk_file}
        if self.shim:
            redis_env["LD_PRELOAD"] = self.shim
        self.redis = Process(self, "redis", [
            "redis-server", "--port", "0", "--unixsocket", self.redis_path, "--dir", self.tmp / "redis", "--appendonly", "yes",
            "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no", "--maxmemory-policy", "noeviction", "--save", ""], redis_env)
        self.coordinators = [Coordinator(self, "a"), Coordinator(self, "b")]
        ms = {False: 4, True: 12}
        self.workers = [Process(self, f"worker{n}", [BIN / "kiln-worker", "--join", self.url, "--name", f"w{n}", "--engine",
                                                     ENGINE.format(ms=ms[n == 1])]) for n in range(WORKERS)]
        self.processes = [self.redis, *self.coordinators, *self.workers]
        self.over = threading.Event()
        self.tending = threading.Thread(target=self.tend)
        self.lock = threading.Lock()

    def wrong(self, what):
        with self.lock:
            self.faults.append(what)
            print(f"WRONG: {what}", flush=True)

    def tend(self):
        while not self.over.wait(0.03):
            for p in self.processes:
                p.tend()

    def leader(self):
        ready = [c for c in self.coordinators if c.ready]
        return max(ready, key=lambda c: c.ready) if ready else None

    def leader_path(self):
        c = self.leader()
        return str(c.path) if c else None

    # ---- troubles

    def plan(self, seconds):
        """When, for how long, and what: from the seed alone. Every twenty seconds there are some without any."""
        draw = random.Random(f"{self.options.seed} troubles")
        at, plan = 1.0, []
        while at < seconds:
            kind = draw.choices(["kill", "stop", "cut", "freeze", "disk", "redis disk", "redis end", "redis pause", "redis kill"],
                                [8, 5, 5, 2, 6, 1, 2, 2, 2])[0]
            lasts = draw.choice([0.3, 1, 2, 4])
            if kind == "kill":
                args = (draw.choice(["worker", "worker", "leader", "leader", "other"]), draw.randrange(WORKERS))
            elif kind == "stop":
                args = (draw.choice(["worker", "leader", "other", "redis"]), draw.randrange(WORKERS))
                lasts = draw.choice([0.5, 2, 5, 13]) # the lead runs out after 10
            elif kind in ("cut", "freeze"):
                args = (draw.choice([("control",), ("data",), ("control", "data")]),)
                lasts = 9
            elif kind == "disk":
                error = draw.choice([errno.ENOSPC, errno.EROFS, errno.EIO, errno.EIO])
                calls = {errno.ENOSPC: ("create", "write"), errno.EROFS: ("create", "rename"),
                         errno.EIO: (draw.choice(DISK_CALLS),)}[error]
                args = (calls, error, draw.choice([1, 1, 2, 3, 7]))
            elif kind == "redis disk":
                args = ((draw.choice(["write", "sync"]),), draw.choice([errno.ENOSPC, errno.EIO]), draw.choice([5, 50]))
            else:
                args = ()
            plan.append((at, lasts, kind, args))
            at += draw.choice([0.2, 0.5, 1, 2]) + (5 if at % 20 > 17 else 0)
        return plan

    def disk(self, path, calls, error, every):
        data = b"".join(struct.pack("Ii", every if c in calls else 0, error) for c in DISK_CALLS)
        with open(path, "r+b") as f:
            f.write(data)

    def victim(self, who, number):
        if who == "worker":
            return self.workers[number]
        if who == "redis":
            return self.redis
        leader = self.leader() or self.coordinators[0]
        return leader if who == "leader" else next(c for c in self.coordinators if c is not leader)

    def begin(self, kind, args):
        """Begins a trouble; what ends it, or None."""
        self.troubles[kind] += 1
        if kind == "kill":
            self.victim(*args).send(signal.SIGKILL)
        elif kind == "stop":
            v = self.victim(*args)
            v.send(signal.SIGSTOP)
            return lambda: v.send(signal.SIGCONT)
        elif kind == "cut":
            self.proxy.cut(args[0])
        elif kind == "freeze":
            self.proxy.freeze(args[0])
            return self.proxy.thaw
        elif kind in ("disk", "redis disk"):
            path = self.disk_file if kind == "disk" else self.redis_disk_file
            self.disk(path, *args)
            return lambda: self.disk(path, (), 0, 0)
        elif kind == "redis pause":
            try:
                redis = Redis(self.redis_path)
                redis.ask("CLIENT", "PAUSE", 2500)
                redis.close()
            except OSError:
                pass
        else:
            self.redis.send(signal.SIGTERM if kind == "redis end" else signal.SIGKILL)
        return None

    def rage(self, seconds):
        plan = self.plan(seconds)
        (self.tmp / "plan.txt").write_text("".join(f"{at:8.1f} {lasts:4} {kind} {args}\n" for at, lasts, kind, args in plan))
        ends, begun = [], time.monotonic()
        clock = lambda: time.monotonic() - begun
        while (plan or ends) and not self.faults:
            if plan and plan[0][0] <= clock():
                _, lasts, kind, args = plan.pop(0)
                end = self.begin(kind, args)
                if end:
                    ends.append((clock() + lasts, end))
            for item in [e for e in ends if e[0] <= clock()]:
                ends.remove(item)
                item[1]()
            time.sleep(0.02)
        for _, end in ends:
            end()

    def calm(self):
        """No trouble any more: everything runs, and is reached."""
        for path in (self.disk_file, self.redis_disk_file):
            self.disk(path, (), 0, 0)
        self.proxy.thaw()
        for p in self.processes:
            p.send(signal.SIGCONT)

    # ---- its course

    def run(self, seconds):
        self.tending.start()
        wait_for("a coordinator leads", self.leader)
        self.clients, self.watcher = Clients(self), Watcher(self)
        self.watcher.thread.start()
        for t in self.clients.threads:
            t.start()
        if self.options.lie:
            self.disk(self.disk_file, (self.options.lie,), 0, 50)
            time.sleep(seconds)
        else:
            self.rage(seconds)
        self.calm()
        self.clients.over.set()
        for t in self.clients.threads:
            t.join()
        calm_at = time.monotonic()
        judge = Judge(self)
        judge.await_the_end()
        took = time.monotonic() - calm_at
        # The one that leads at the end began after the last trouble: so it had to clear away what the others left.
        for c in self.coordinators:
            c.send(signal.SIGKILL)
        wait_for("a coordinator leads again", lambda: all(c.ready == 0 or alive(c.p.pid) for c in self.coordinators if c.p) and self.leader())
        wait_for("it answers", lambda: self.clients.kiln("status")[0] == 0)
        self.watcher.over.set()
        self.watcher.thread.join()
        judge.judge()
        judge.summary(seconds, took)

    def close(self):
        self.over.set()
        if self.tending.is_alive():
            self.tending.join()
        for p in self.processes:
            p.send(signal.SIGCONT)
            p.end()
        self.proxy.close()
        if self.faults or self.options.keep:
            print(f"seed {self.options.seed}: journal.jsonl, plan.txt, logs and all files stay in {self.tmp}")
        else:
            shutil.rmtree(self.tmp, ignore_errors=True)


# ---- the judge

class Judge:
    def __init__(self, storm):
        self.storm, self.clients = storm, storm.clients
        self.counts = collections.Counter()

    def connect(self):
        try:
            return Redis(self.storm.redis_path)
        except OSError:
            return None

    def say(self, what):
        self.storm.wrong(what)

    def last_wish(self, b, kinds):
        """The last command of these kinds: its words, and whether it was done for sure. One that was refused may have been
        done as well: the answer was lost, and it was asked again."""
        last = [w for w in b["wishes"] if w[0] in kinds][-1:]
        return (last[0][0], last[0][1], last[0][2] == 0) if last else None

    def await_the_end(self):
        """Until every batch has ended; what was left paused is resumed."""
        self.redis = wait_for("Redis answers", self.connect)
        def open_batches():
            try:
                return {i: self.redis.ask("HGET", b"kiln:b:" + i, "state") for i in self.redis.ask("ZRANGE", "kiln:batches", 0, -1)}
            except OSError:
                self.redis = wait_for("Redis answers", self.connect)
                return {b"": b"1"}
        end = time.monotonic() + self.storm.options.patience
        while True:
            left = {i: s for i, s in open_batches().items() if s not in (RECORD_STATE["done"], RECORD_STATE["cancelled"])}
            if not left:
                return
            for i, state in left.items():
                if state == RECORD_STATE["paused"]:
                    self.clients.kiln("resume", i.decode(), "--timeout", 8)
            if time.monotonic() > end:
                for i in left:
                    said = self.clients.kiln("explain", i.decode())[1]
                    self.say(f"batch {i.decode()} does not end:\n{said[-600:]}")
                return
            time.sleep(0.2)

    def judge(self):
        self.redis.close()
        self.redis = wait_for("Redis answers", self.connect)
        stored = {i.decode(): self.redis.hash(b"kiln:b:" + i) for i in self.redis.ask("ZRANGE", "kiln:batches", 0, -1)}
        by_name = collections.defaultdict(list)
        for i, h in stored.items():
            for name in self.clients.batches:
                if name.encode() in h[b"begin"]:
                    by_name[name].append(i)
        unknown = set(stored) - {i for ids in by_name.values() for i in ids}
        if unknown:
            self.say(f"batches that nobody submitted: {sorted(unknown)}")
        digests = {}
        for name, b in self.clients.batches.items():
            self.batch(b, by_name[name], stored, digests)
        self.folder()

    def batch(self, b, ids, stored, digests):
        removal = self.last_wish(b, {"rm"})
        if len(ids) > 1:
            self.say(f"{b['name']} was submitted once and is there {len(ids)} times")
        if removal and removal[2]:
            self.counts["removed"] += 1
            if ids:
                self.say(f"{b['name']}: its removal was answered, and it is there")
            return
        if not ids:
            if b.get("accepted") and not removal:
                self.say(f"{b['name']} ({b['id']}) was accepted and is not there")
            return
        self.counts["batches"] += 1
        i, h = ids[0], stored[ids[0]]
        count = int(h[b"tasks"])
        if count != b["count"]:
            self.say(f"{b['name']} has {count} images, not {b['count']}")
        cancel = self.last_wish(b, {"cancel", "retry"})
        cancelled = h[b"state"] == RECORD_STATE["cancelled"]
        if cancel and cancel[2] and cancel[0] == "cancel" and not cancelled:
            self.say(f"{b['name']}: its cancelling was answered, and its state is {h[b'state']}")
        if cancelled and not any(w[0] == "cancel" for w in b["wishes"]):
            self.say(f"{b['name']} is cancelled, and nobody asked for that")
        priority = self.last_wish(b, {"priority"})
        want = priority[1][0] if priority else b["priority"]
        if (not priority or priority[2]) and int(h[b"priority"]) != want:
            self.say(f"{b['name']}: its priority is {h[b'priority']}, and {want} was answered")
        self.images(b, i, count, cancelled, digests)

    def images(self, b, i, count, cancelled, digests):
        records = self.redis.ask("GET", f"kiln:b:{i}:r") or b""
        failures = self.redis.hash(f"kiln:b:{i}:f")
        ends, objects = collections.Counter(), self.storm.dir / "objects"
        shas = {}
        for n in range(count):
            record, failure = records[n * RECORD:(n + 1) * RECORD], failures.get(str(n).encode())
            done = len(record) == RECORD and record[-1] != 0
            ends["done" if done else "failed" if failure else "cancelled"] += 1
            if done and failure:
                self.say(f"{b['name']}: image {n} is done and failed")
            if failure and len(failure.split(b" ", 4)) < 5:
                self.say(f"{b['name']}: image {n} failed without a reason")
            if not done and not failure and not cancelled:
                self.say(f"{b['name']}: image {n} has neither a picture nor a reason")
            if done:
                shas[n] = record[:32].hex()
                path = objects / shas[n][:2] / f"{shas[n]}.png"
                try:
                    if hashlib.sha256(path.read_bytes()).hexdigest() != shas[n]:
                        self.say(f"{b['name']}: the file of image {n} has other bytes than its record tells")
                except OSError as e:
                    self.say(f"{b['name']}: the file of image {n} is not there: {e}")
                # The same prompt with the same seed is the same picture, whoever rendered it and when.
                asked = (b["file"], b["steps"], n)
                if digests.setdefault(asked, shas[n]) != shas[n]:
                    self.say(f"{b['name']}: image {n} differs from the same image of another batch")
        for n, sha in b.get("seen", {}).items():
            if shas.get(n) != sha:
                self.say(f"{b['name']}: a person fetched image {n}, and now it is another, or none")
        orders = [records[n * RECORD + 64:n * RECORD + 68] for n in shas]
        if len(set(orders)) != len(orders):
            self.say(f"{b['name']}: two images have the same place in the order of ends")
        self.counts.update(ends)
        out = self.storm.tmp / "fetched"
        status, _, said = self.clients.kiln("fetch", i, "-o", out)
        if status not in (0, 2):
            self.say(f"{b['name']}: fetch ends with {status}: {said}")
            return
        lines = [json.loads(l) for l in (out / "manifest.jsonl").read_text().splitlines()]
        if [l["index"] for l in lines] != list(range(count)):
            self.say(f"{b['name']}: the manifest has not each image once")
        for l in lines:
            if l["prompt"] != f"storm {b['file']} picture {l['index']}" or l["seed"] != 1000:
                self.say(f"{b['name']}: image {l['index']} has the prompt {l['prompt']} and the seed {l['seed']}")
        if {l["index"]: l["sha256"] for l in lines if l["status"] == "done"} != shas:
            self.say(f"{b['name']}: the manifest tells of other pictures than the records")
        p = subprocess.run([str(BIN / "kiln"), "verify", str(out)], env=self.storm.env, capture_output=True, text=True)
        if p.returncode != (0 if len(shas) == count else 2) and p.returncode != 0:
            self.say(f"{b['name']}: verify: {p.stdout[-300:]}{p.stderr[-300:]}")
        shutil.rmtree(out)

    def folder(self):
        """Nothing half-written is left, and nothing was taken for damaged."""
        for pattern in ("objects/incoming/*", "objects/damaged/*", "**/*.tmp.*"):
            left = sorted(str(p) for p in self.storm.dir.glob(pattern))
            if left:
                self.say(f"left: {left[:5]}{' …' if len(left) > 5 else ''}")

    def summary(self, seconds, took):
        s, c = self.storm, self.counts
        unanswered = sum(n for (_, status), n in self.clients.counts.items() if status in (5, None))
        print(f"storm of {seconds:.0f} s, seed {s.options.seed}: "
              + ", ".join(f"{n} {k}" for k, n in sorted(s.troubles.items())) + ("" if s.shim else " (no disk trouble: not preloaded)"))
        print(f"  processes started: " + ", ".join(f"{p.name} {p.starts}" for p in s.processes))
        print(f"  commands: {sum(self.clients.counts.values())}, of them {unanswered} without an answer; the records were read {s.watcher.looks} times")
        print(f"  batches: {c['batches']} there, {c['removed']} removed; images: {c['done']} done, {c['failed']} failed, {c['cancelled']} cancelled")
        print(f"  all had ended {took:.1f} s after the last trouble")
        print(f"  judge: {len(s.faults)} faults" if s.faults else "  judge: nothing lost, nothing doubled, nothing forgotten")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=0)
    p.add_argument("--minutes", type=float, default=0)
    p.add_argument("--hours", type=float, default=0)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--patience", type=float, default=END_S, help="seconds for all that was accepted to end after the last trouble")
    p.add_argument("--keep", action="store_true", help="keep the folder")
    p.add_argument("--plant", help="a fault of base/planted.h")
    p.add_argument("--lie", choices=DISK_CALLS, help="a kind of call that is not always made")
    options = p.parse_args()
    seconds = options.seconds + 60 * options.minutes + 3600 * options.hours or 30
    storm = Storm(options)
    try:
        storm.run(seconds)
    except AssertionError as e:
        storm.wrong(str(e))
    finally:
        storm.close()
    return 1 if storm.faults else 0


if __name__ == "__main__":
    sys.exit(main())

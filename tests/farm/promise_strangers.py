#!/usr/bin/env python3
"""Connections that say nothing, beside workers: no worker is dropped, and who comes later is let in.

    promise_strangers.py                                    a slice: 60 workers, 400 strangers, 400 open files
    promise_strangers.py --full [--hard N]                  500 workers, 2,000 strangers, 2,048 (N) open files

The workers are connections that speak the protocol (ZMTP and a few messages, in Python): they join, and send pings
and heartbeats on two sockets each, as kiln-worker does, but render nothing. They come through the Unix socket,
since over TCP they would need keys. The coordinator starts with the usual soft limit of 1,024 open files, or fewer.
"""
import os
import selectors
import socket
import struct
import sys
import threading
import time

from farm import BIN, FarmTest, main, wait_for

FULL = "--full" in sys.argv
WORKERS, STRANGERS, HARD = (500, 2000, 2048) if FULL else (60, 400, 400)
if "--hard" in sys.argv:
    HARD = int(sys.argv[sys.argv.index("--hard") + 1])
SOFT = min(1024, HARD)
PATIENCE = 60
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


# ---- protobuf and ZMTP, as little of them as is needed

def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def number(field, n):
    return varint(field << 3) + varint(n)


def text(field, data):
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def fields(data):
    """The fields of a message: numbers and bytes."""
    at, out = 0, {}

    def take():
        nonlocal at
        n = shift = 0
        while True:
            b = data[at]
            at += 1
            n |= (b & 127) << shift
            shift += 7
            if b < 128:
                return n
    while at < len(data):
        tag = take()
        if tag & 7 == 0:
            out[tag >> 3] = take()
        elif tag & 7 == 2:
            size = take()
            out[tag >> 3] = data[at:at + size]
            at += size
        else:
            at += 4 if tag & 7 == 5 else 8
    return out


def envelope(kind, body):
    return number(1, 1) + text(kind, body)


def frame(flags, data):
    return bytes([flags, len(data)]) + data if len(data) < 256 else bytes([flags | 2]) + struct.pack(">Q", len(data)) + data


def command(name, body):
    return frame(4, bytes([len(name)]) + name + body)


HELLO, HEARTBEAT, WELCOME, STILL_THERE = 10, 11, 20, 26 # numbers in Envelope


class Connection:
    def __init__(self, peers, where, worker, data):
        self.peers, self.worker, self.is_data = peers, worker, data
        self.s = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        self.s.connect(where)
        self.buffer, self.greeted, self.pongs = b"", False, 0
        ready = bytes([11]) + b"Socket-Type" + struct.pack(">I", 6) + b"DEALER" + bytes([8]) + b"Identity" + struct.pack(">I", 8) + b"\x01" + os.urandom(7)
        self.ready = command(b"READY", ready)
        self.s.sendall(GREETING)
        self.s.setblocking(False)
        peers.selector.register(self.s, selectors.EVENT_READ, self)

    def send(self, body):
        self.s.sendall(frame(0, body))

    def hear(self):
        try:
            data = self.s.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.peers.selector.unregister(self.s)
            self.s.close()
            self.peers.lost.append((self.worker.name, "data" if self.is_data else "control"))
            return
        self.buffer += data
        if not self.greeted and len(self.buffer) >= 64:
            self.greeted, self.buffer = True, self.buffer[64:]
            self.s.sendall(self.ready)
        while self.greeted and len(self.buffer) >= 2:
            head = 9 if self.buffer[0] & 2 else 2
            if len(self.buffer) < head:
                return
            size = struct.unpack(">Q", self.buffer[1:9])[0] if head == 9 else self.buffer[1]
            if len(self.buffer) < head + size:
                return
            flags, body, self.buffer = self.buffer[0], self.buffer[head:head + size], self.buffer[head + size:]
            if flags & 4:
                if body.startswith(b"\5READY") and not self.is_data:
                    w = self.worker
                    self.send(envelope(HELLO, text(1, w.name) + text(2, os.urandom(16)) + text(3, "here") + text(6, "cpu-none-000000")
                                       + text(7, "none") + number(8, 1) + number(9, 1) + number(16, 1)))
                elif body.startswith(b"\4PONG"):
                    self.pongs += 1
            else:
                self.worker.message(fields(body))


class Worker:
    """Two connections and a heartbeat."""

    def __init__(self, peers, n, where):
        self.peers, self.name, self.where, self.heartbeat_at, self.heartbeat_s, self.data = peers, f"many-{n}", where, 0, 0, None
        self.control = Connection(peers, where, self, False)

    def message(self, m):
        if WELCOME in m:
            w = fields(m[WELCOME])
            self.heartbeat_s = w[2] / 1000
            where = w[4].decode().removeprefix("ipc://") if isinstance(self.where, str) else (self.where[0], w[3])
            if not self.data:
                self.data = Connection(self.peers, where, self, True)
        elif STILL_THERE in m:
            self.beat(number(12, fields(m[STILL_THERE])[1]))

    def beat(self, more=b""):
        self.heartbeat_at = time.monotonic()
        self.control.send(envelope(HEARTBEAT, more))
        for c in (self.control, self.data):
            if c and c.greeted:
                c.s.sendall(command(b"PING", b"\0\0"))


class Peers:
    def __init__(self):
        self.selector, self.workers, self.lost, self.over, self.failed = selectors.DefaultSelector(), [], [], False, None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.lock = threading.Lock()
        self.thread.start()

    def join(self, n, where):
        with self.lock:
            self.workers.append(Worker(self, n, where))

    def run(self):
        try:
            while not self.over:
                for key, _ in self.selector.select(0.05):
                    with self.lock:
                        key.data.hear()
                now = time.monotonic()
                with self.lock:
                    for w in self.workers:
                        if w.heartbeat_s and now - w.heartbeat_at > w.heartbeat_s:
                            w.beat()
        except Exception as e: # told by the test
            self.failed = e

    def pongs(self):
        """How often each connection's ping was answered at least."""
        with self.lock:
            if self.failed:
                raise self.failed
            return min((c.pongs for w in self.workers for c in (w.control, w.data) if c), default=0)

    def close(self):
        self.over = True
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()


class Strangers(FarmTest):
    def up(self):
        """The endpoints of a farm without workers whose coordinator has few files: TCP's address, the Unix socket's path."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        words = [BIN / "kiln", "up", "--workers", "0", "--model", "sim", "--listen", f"tcp://127.0.0.1:{port}"]
        out, _ = self.finish(self.farm.start("/usr/bin/prlimit", f"--nofile={SOFT}:{HARD}", *words))
        return ("127.0.0.1", port), out.strip().removeprefix("ipc://")

    def there(self):
        return [w for w in self.farm.json("workers") if w["state"] != "lost"]

    def test_silent_strangers_put_no_worker_out_and_keep_nobody_out(self):
        tcp, unix = self.up()
        peers = Peers()
        self.addCleanup(peers.close)
        begun = time.monotonic()
        for n in range(WORKERS):
            peers.join(n, unix)
            if n % 20 == 19: # before they have spoken they are strangers themselves
                wait_for("these have joined", lambda: all(w.data and w.data.greeted for w in peers.workers), PATIENCE)
        wait_for("all workers have joined", lambda: len(self.there()) == WORKERS, PATIENCE)
        joined = time.monotonic() - begun
        wait_for("they are answered on both sockets", lambda: peers.pongs() >= 1, PATIENCE)
        strangers = []
        self.addCleanup(lambda: [s.close() for s in strangers])
        begun = time.monotonic()
        for _ in range(STRANGERS):
            s = socket.create_connection(tcp, 10)
            s.setblocking(False)
            strangers.append(s)
        came, pongs = time.monotonic() - begun, peers.pongs()
        # A real worker and commands come later than all strangers, over TCP as well.
        url = f"tcp://127.0.0.1:{tcp[1]}"
        late = self.farm.start(BIN / "kiln-worker", "--join", url, "--name", "late", "--engine", "sim:ms=5",
                               "--token", self.farm.token("--worker"))
        batch = self.farm.ok("submit", self.farm.prompts(50), "--farm", url, "--token", self.farm.token("--client"), timeout=PATIENCE).strip()
        self.farm.ok("wait", batch, "--farm", url, timeout=PATIENCE)
        wait_for("all workers are answered five times more", lambda: peers.pongs() >= pongs + 5, PATIENCE)
        self.assertEqual(peers.lost, [])
        self.assertEqual(len(self.there()), WORKERS + 1)
        put_out = sum(1 for s in strangers if self.is_closed(s))
        print(f"  {WORKERS} workers (Unix socket) joined in {joined:.1f} s; {STRANGERS} strangers came in {came:.1f} s, "
              f"{put_out} of them put out, at {SOFT}:{HARD} open files; workers dropped: {len(peers.lost)}", file=sys.stderr)
        self.assertIsNone(late.poll())

    def is_closed(self, s):
        try:
            while s.recv(256):
                pass
            return True
        except BlockingIOError:
            return False
        except OSError:
            return True


if __name__ == "__main__":
    sys.argv[1:] = []
    sys.exit(main())

#!/usr/bin/env python3
"""A connection over which nothing comes any more, and which nobody closes: a router that forgot it, a cable that was
pulled, a firewall. A proxy between worker and coordinator stops forwarding; connections that are made anew go through.
"""
import selectors
import socket
import sys
import threading
import time

from farm import BIN, FarmTest, main, wait_for

HERE, PROXY = "127.0.0.1", "127.0.0.2" # the same ports on two addresses of this machine
BOUND_S = 20 # 41 s without what is tested, 7 s with it; the rest is for a busy machine
BUF = 1 << 16


def free_port():
    with socket.socket() as s:
        s.bind((HERE, 0))
        return s.getsockname()[1]


class Proxy:
    """Forwards PROXY:port to HERE:port for each of the ports."""

    def __init__(self, ports):
        self.selector = selectors.DefaultSelector()
        self.pairs, self.frozen, self.lock, self.over = {}, {}, threading.Lock(), False
        self.accepted = 0
        for port in ports:
            s = socket.create_server((PROXY, port))
            self.selector.register(s, selectors.EVENT_READ, port)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def freeze(self, ports, directions):
        """What there is of connections to these ports forwards no more in these directions ("up": to the coordinator)."""
        with self.lock:
            for s, (other, port, direction) in list(self.pairs.items()):
                if port in ports and direction in directions:
                    self.selector.unregister(s)
                    self.frozen[s] = self.pairs.pop(s)

    def close(self):
        self.over = True
        self.thread.join()

    def run(self):
        while not self.over:
            for key, _ in self.selector.select(0.05):
                with self.lock:
                    if key.data:
                        self.accept(key.fileobj, key.data)
                    elif key.fileobj in self.pairs:
                        self.forward(key.fileobj)

    def accept(self, listener, port):
        near, _ = listener.accept()
        self.accepted += 1
        try:
            far = socket.create_connection((HERE, port), 5)
        except OSError:
            near.close()
            return
        for s, other, direction in ((near, far, "up"), (far, near, "down")):
            self.pairs[s] = (other, port, direction)
            self.selector.register(s, selectors.EVENT_READ)

    def forward(self, s):
        other = self.pairs[s][0]
        try:
            data = s.recv(BUF)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        del self.pairs[s]
        self.selector.unregister(s)
        try:
            other.shutdown(socket.SHUT_RDWR) # its own side is told, too, where it is forwarded still
        except OSError:
            pass


class HalfOpen(FarmTest):
    def begin(self):
        self.control, self.data = free_port(), free_port()
        self.farm.ok("up", "--workers", "0", "--listen", f"tcp://{HERE}:{self.control}", "--data-port", self.data,
                     "--model", "sim")
        self.proxy = Proxy([self.control, self.data])
        self.addCleanup(self.proxy.close)
        self.farm.start(BIN / "kiln-worker", "--join", f"tcp://{PROXY}:{self.control}", "--name", "far", "--engine",
                        "sim:ms=20", "--token", self.farm.token())
        wait_for("the worker has joined", lambda: self.farm.json("workers"))
        self.batch = self.farm.ok("submit", self.farm.prompts(20000)).strip()
        wait_for("it renders", lambda: self.done() > 10)

    def done(self):
        return self.farm.json("status", self.batch)["done"]

    def check(self, what, ports, directions):
        before = self.proxy.accepted
        self.proxy.freeze(ports, directions)
        begun = time.monotonic()
        wait_for(f"a connection anew ({what})", lambda: self.proxy.accepted > before, BOUND_S)
        done = self.done()
        wait_for(f"pictures come again ({what})", lambda: self.done() > done + 5, BOUND_S)
        print(f"  {what}: went on after {time.monotonic() - begun:.1f} s", file=sys.stderr)
        return time.monotonic() - begun

    def test_a_worker_behind_a_dead_connection_is_back_within_seconds(self):
        self.begin()
        both = [self.control, self.data]
        self.check("both directions", both, ["up", "down"])
        self.check("from the coordinator", both, ["down"])
        self.check("to the coordinator", both, ["up"])

    def test_pictures_of_a_dead_data_connection_are_sent_again_within_seconds(self):
        self.begin()
        self.check("pictures alone, both directions", [self.data], ["up", "down"])
        self.check("pictures alone, from the coordinator", [self.data], ["down"])


if __name__ == "__main__":
    sys.exit(main())

"""What the tests of the whole farm share: a farm in a folder of its own, its programs, its files.

The programs are those in $KILN_BIN. Every test has temporary folders, sockets and ports of its own, so that
tests may run side by side. Python's standard library only.
"""
import concurrent.futures
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

BIN = pathlib.Path(os.environ.get("KILN_BIN", "build/bin")).resolve()
SKIPPED = 77
AT_ONCE = 4
PATIENCE = 60


def wait_for(what, condition, timeout=PATIENCE):
    """Until condition() is true; what names it when it does not become so."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.02)


def alive(pid):
    """Whether the process is there and no zombie."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def children(pid):
    """The processes that this one has started."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


class Farm:
    """A farm's folder (it need not be up), beside it room for prompts and pictures."""

    def __init__(self):
        self.tmp = pathlib.Path(tempfile.mkdtemp(prefix="kiln-farm-test-"))
        self.dir = self.tmp / "farm"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("KILN_")}
        self.env.update(KILN_HOME=str(self.dir), HOME=str(self.tmp), LC_ALL="C.UTF-8")
        self.started = []

    def prompts(self, count, name="prompts.txt", extra=""):
        path = self.tmp / name
        path.write_text("".join(f"picture number {i}{extra}\n" for i in range(count)))
        return path

    def start(self, *args, **more):
        """A kiln command (or another program's path) that goes on by itself."""
        program = args[0] if str(args[0]).startswith("/") else None
        words = [str(a) for a in (args if program else (BIN / "kiln", *args))]
        p = subprocess.Popen(words, env=more.pop("env", self.env), cwd=self.tmp, stdin=more.pop("stdin", subprocess.DEVNULL),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
        self.started.append(p)
        return p

    def run(self, *args, timeout=PATIENCE, input=None):
        words = [str(a) for a in (BIN / "kiln", *args)]
        return subprocess.run(words, env=self.env, cwd=self.tmp, input=input, stdin=None if input is not None else subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=timeout)

    def ok(self, *args, status=0, **more):
        """Runs, wants that exit status, gives standard output."""
        p = self.run(*args, **more)
        if p.returncode != status:
            raise AssertionError(f"kiln {' '.join(map(str, args))}: status {p.returncode}, not {status}\n{p.stdout}{p.stderr}{self.logs()}")
        return p.stdout

    def up(self, engine="sim:ms=5", workers=2, *more):
        self.endpoint = self.ok("up", "--engine", engine, "--workers", workers, *more).strip()
        return self.endpoint

    def json(self, *args, **more):
        return json.loads(self.ok(*args, "--json", **more))

    def token(self, *more):
        """A new token in a file of its own, as --token takes it."""
        self.tokens = getattr(self, "tokens", 0) + 1
        path = self.tmp / f"token-{self.tokens}"
        path.write_text(self.ok("token", "new", *more))
        return f"@{path}"

    def runs(self):
        """The folders of the private farms of renders."""
        return sorted(self.dir.glob("runs/*"))

    def run_of(self, out):
        """The folder of the private farm that works for that output folder, or None."""
        try:
            path = pathlib.Path((out / ".kiln-farm" / "run").read_text().strip())
        except OSError:
            return None
        return path if path.is_dir() else None

    def pid(self, process, of=None):
        """Of the private farm whose folder is `of`; else of the farm that stays, or of the only private one."""
        path = (of or self.dir) / "run" / f"{process}.pid"
        if not of and not path.exists() and len(self.runs()) == 1:
            path = self.runs()[0] / "run" / f"{process}.pid"
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return 0

    def kill(self, process, sig=signal.SIGKILL, of=None):
        pid = wait_for(f"{process} runs", lambda: self.pid(process, of))
        os.kill(pid, sig)
        return pid

    def kill_and_await(self, process, of=None):
        """kill -9, and until another one is there."""
        old = self.kill(process, of=of)
        wait_for(f"{process} is started again", lambda: self.pid(process, of) not in (0, old))

    def kill_all(self, of=None):
        """kill -9 of every process of a farm, and of what watches over it."""
        supervisor = wait_for("supervisor runs", lambda: self.pid("supervisor", of))
        guard = int(pathlib.Path(f"/proc/{supervisor}/stat").read_text().rsplit(")", 1)[1].split()[1])
        pids = [guard, supervisor, *(self.pid(f.stem, of) for f in (of or self.dir).glob("run/*.pid") if f.stem != "supervisor")]
        os.kill(guard, signal.SIGSTOP) # it starts no other supervisor meanwhile
        for pid in [*pids[1:], guard]:
            if pid:
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            wait_for(f"{pid} ends", lambda p=pid: not alive(p))

    def logs(self, lines=12):
        text = ""
        for log in sorted([*self.dir.glob("log/*"), *self.dir.glob("runs/*/log/*")]):
            tail = log.read_text(errors="replace").splitlines()[-lines:]
            text += f"--- {log.name}\n" + "\n".join(tail) + "\n"
        return text

    def close(self):
        for p in self.started:
            if p.poll() is None:
                p.kill()
            p.wait()
            for stream in (p.stdout, p.stderr):
                if stream:
                    stream.close()
        pids = [self.pid(f.stem) for f in self.dir.glob("run/*.pid")]
        if self.pid("supervisor"):
            self.run("down", "--now", timeout=PATIENCE)
        for run in self.runs(): # of renders that were killed
            pids += [self.pid(f.stem, run) for f in run.glob("run/*.pid")]
            if alive(self.pid("supervisor", run)):
                os.kill(self.pid("supervisor", run), signal.SIGQUIT)
        pids = [p for p in pids if p]
        for pid in pids:
            wait_for(f"process {pid} of the farm ends with it", lambda p=pid: not alive(p), 30)
        shutil.rmtree(self.tmp, ignore_errors=True)


class Redis:
    """Asked directly; answers are bytes, numbers or lists."""

    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(3)
        self.s.connect(str(path))
        self.f = self.s.makefile("rb")

    def ask(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        return self.answer()

    def answer(self):
        line = self.f.readline()[:-2]
        if not line or line[:1] == b"-":
            raise OSError(line.decode() or "no answer")
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else self.f.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest

    def hash(self, key):
        flat = self.ask("HGETALL", key)
        return dict(zip(flat[::2], flat[1::2]))

    def close(self):
        self.f.close()
        self.s.close()


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def pictures(folder):
    return sorted(p.name for p in (folder / "images").glob("*.png"))


class FarmTest(unittest.TestCase):
    """Each test has self.farm, which is down at first and gone afterwards."""

    def setUp(self):
        self.farm = Farm()
        self.addCleanup(self.farm.close)

    def check_folder(self, folder, count, failed=0, cancelled=0):
        """Each image once: a line each in order, a file for each that is done, nothing else. The lines."""
        lines = manifest(folder)
        self.assertEqual([l["index"] for l in lines], list(range(count)))
        done = [l for l in lines if l["status"] == "done"]
        self.assertEqual(pictures(folder), sorted(pathlib.Path(l["file"]).name for l in done))
        for l in done:
            self.assertEqual(hashlib.sha256((folder / l["file"]).read_bytes()).hexdigest(), l["sha256"], l["file"])
        self.assertEqual(len({l["key"] for l in lines}), count)
        self.assertEqual(sum(l["status"] == "cancelled" for l in lines), cancelled)
        bad = [l for l in lines if l["status"] == "failed"]
        self.assertEqual(len(bad), failed, [l["error"] for l in bad])
        for l in bad:
            self.assertTrue(l["error"])
        about = json.loads((folder / "batch.json").read_text())
        self.assertEqual(about["count"], count)
        return lines

    def await_pictures(self, folder, count, timeout=PATIENCE):
        wait_for(f"{count} pictures in {folder.name}", lambda: folder.is_dir() and len(pictures(folder)) >= count, timeout)

    def finish(self, process, status=0, timeout=PATIENCE):
        """Waits for it, wants that exit status; its standard output and error."""
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {timeout} s\n{self.farm.logs()}")
        self.assertEqual(process.returncode, status, f"{out}{err}{self.farm.logs()}")
        return out, err


def each(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from each(test)
        else:
            yield test


def run_one(test):
    out = io.StringIO()
    result = unittest.TextTestRunner(stream=out, verbosity=0).run(test)
    return test, result, out.getvalue()


def main():
    """Runs the tests of the program; several at once, for they mostly wait. A word picks those whose name holds it."""
    if not (BIN / "kiln").exists():
        print(f"no programs in {BIN}: set KILN_BIN", file=sys.stderr)
        return 1
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    tests = [t for t in each(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])) if word in t.id()]
    passed = failed = skipped = 0
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        begun = time.monotonic()
        for future in concurrent.futures.as_completed([pool.submit(run_one, t) for t in tests]):
            test, result, text = future.result()
            name = test.id().split(".")[-1]
            if not result.wasSuccessful():
                failed += 1
                print(f"FAILED: {name}\n{text}", flush=True)
            elif result.skipped:
                skipped += 1
                print(f"skipped: {name}: {result.skipped[0][1]}", flush=True)
            else:
                passed += 1
                print(f"{time.monotonic() - begun:6.1f} s  {name}", flush=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    if failed or not tests:
        return 1
    return 0 if passed else SKIPPED

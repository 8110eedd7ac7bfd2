#!/usr/bin/env python3
"""The slowest tests of a run, and whether the run as a whole is short enough to be run often.

    slowest.py REPORT SECONDS [--limit N]   REPORT is what ctest --output-junit wrote, SECONDS what the run took; exits 1
                                            when that is more than N
    slowest.py --self-test

check.sh calls it. A limit is for two quiet cores: a busy machine is no reason to make tests shorter.
"""
import sys
import xml.etree.ElementTree as ElementTree

COUNT = 10


def report(text, seconds, limit):
    """The lines to print, and the exit status."""
    times = sorted(((float(case.get("time", 0)), case.get("name")) for case in ElementTree.fromstring(text).iter("testcase")),
                   reverse=True)
    lines = [f"the slowest {min(COUNT, len(times))} of {len(times)} tests, which took {seconds:.0f} s:"]
    lines += [f"{took:8.1f} s  {name}" for took, name in times[:COUNT]]
    if limit and seconds > limit:
        lines.append(f"that is more than {limit:.0f} s: make tests shorter, or set KILN_CHECK_SECONDS on a busy machine")
        return lines, 1
    return lines, 0


def self_test():
    cases = "".join(f'<testcase name="t{i}" time="{i}.5" status="run"/>' for i in range(12))
    text = f'<?xml version="1.0"?><testsuite name="x" tests="12">{cases}</testsuite>'
    lines, status = report(text, 60, 90)
    wrong = 0
    if len(lines) != 11 or not lines[1].endswith("11.5 s  t11") or not lines[10].endswith("2.5 s  t2") or status:
        wrong += 1
        print("\n".join(lines))
    lines, status = report(text, 91, 90)
    if status != 1 or "more than 90 s" not in lines[-1]:
        wrong += 1
        print("\n".join(lines))
    if report(text, 91, 0)[1]:
        wrong += 1
        print("without a limit it must not fail")
    print(f"3 cases, {wrong} failed")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) not in (3, 5):
        print(__doc__.split("\n\n")[1])
        return 2
    with open(sys.argv[1], encoding="utf-8", errors="replace") as f:
        lines, status = report(f.read(), float(sys.argv[2]), float(sys.argv[4]) if len(sys.argv) == 5 else 0)
    print("\n".join(lines))
    return status


sys.exit(main())

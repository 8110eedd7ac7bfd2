#!/bin/bash
# run.sh itself, without a GPU: programs that pass, fail, skip and hang each end up in the report as what they are, and the rest goes on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
place=$(mktemp -d /tmp/kiln-run-test-XXXXXX)
trap 'rm -rf "$place"' EXIT
fail() { echo "run_test: $*" >&2; [ ! -f "$place/out/report.json" ] || cat "$place/out/report.json" >&2; exit 1; }

mkdir -p "$place/build/bin"
touch "$place/build/CMakeCache.txt"
program() { printf '#!/bin/sh\n%s\n' "$2" >"$place/build/bin/$1"; chmod +x "$place/build/bin/$1"; }
program good-shim 'echo "a \"quoted\" | line	with a \\ and a tab: 3 passed, 0 failed"'
program bad-shim 'echo "1 passed, 2 failed"; exit 1'
program none-shim 'exit 77'
program hung-shim 'sleep 60'
program killed-shim 'kill -SEGV $$'
program conv-versions-shim 'exit 1' # not a test by itself
program bench-gpu-engine 'echo "{\"bench\": \"engine\", \"model\": \"tiny\", \"width\": 8, \"batch\": 2, \"images_per_s\": 1.5, \"mode\": \"reproducible\"}"'

run() { "$here/run.sh" --shim --cpu --build "$place/build" --out "$place/out" --most 2 "$@" >"$place/log" 2>&1; }
status=0
run || status=$?
[ $status -eq 1 ] || fail "status $status with programs that fail"
python3 - "$place/out/report.json" <<'PY' || fail "the report is wrong"
import json, sys
report = json.load(open(sys.argv[1]))
got = {r["name"]: r["result"] for r in report["results"] if r["part"] == "tests"}
assert got == {"good-shim": "passed", "bad-shim": "failed", "none-shim": "skipped", "hung-shim": "timed out", "killed-shim": "failed"}, got
assert next(r for r in report["results"] if r["name"] == "good-shim")["words"].endswith('a "quoted" | line with a \\ and a tab: 3 passed, 0 failed')
assert report["trial"] is True and [b["images_per_s"] for b in report["benches"]] == [1.5], report
PY
grep -q '^| tests | hung-shim | timed out |' "$place/out/report.md" || fail "report.md lacks the one that hung"
grep -q '^| kiln | tiny | 8x.* | 2 | 1.5 |' "$place/out/report.md" || fail "report.md lacks the benchmark's row"

rm "$place"/build/bin/{bad,hung,killed}-shim
run --parts tests || fail "status $? with programs that pass or skip: $(cat "$place/log")"
for words in "--parts nothing" "--limit x" "--models sd9" "--zzz" "--out"; do
  status=0
  "$here/run.sh" $words >/dev/null 2>&1 || status=$?
  [ $status -eq 2 ] || fail "$words: status $status"
done
echo "run_test: passed"

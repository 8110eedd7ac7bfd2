#!/usr/bin/env bash
# Installs what is needed, builds everything with warnings as errors, runs all tests, and says which were the slowest.
# Fails when a test fails, or when all of them took more than 13 minutes (KILN_CHECK_SECONDS sets another limit, 0 none).
# Usage: ./check.sh [arguments for ctest, for example -R core]
set -euo pipefail
cd "$(dirname "$0")"
deploy/packages.sh build test
cmake -S . -B build -G Ninja -DKILN_TESTS=ON -DKILN_WERROR=ON
cmake --build build
report=$PWD/build/check.xml
rm -f "$report"
status=0
began=$SECONDS
ctest --test-dir build --output-on-failure -j "$(nproc)" --output-junit "$report" "$@" || status=$?
took=$((SECONDS - began))
# without a report ctest ran no test: an option such as -N, or one that it did not understand
if [ -s "$report" ]; then
  limit=${KILN_CHECK_SECONDS:-780}
  python3 tests/lint/slowest.py "$report" "$took" --limit "$limit" || [ "$status" -ne 0 ] || status=1
fi
exit "$status"

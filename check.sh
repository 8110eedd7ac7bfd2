#!/usr/bin/env bash
# Installs what is needed, builds everything with warnings as errors, runs all tests. Ends with ctest's summary.
# Usage: ./check.sh [arguments for ctest, for example -R core]
set -euo pipefail
cd "$(dirname "$0")"
deploy/packages.sh build test
cmake -S . -B build -G Ninja -DKILN_TESTS=ON -DKILN_WERROR=ON
cmake --build build
exec ctest --test-dir build --output-on-failure -j "$(nproc)" "$@"

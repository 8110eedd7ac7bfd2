#!/usr/bin/env bash
# Installs what is needed, builds kiln, and renders examples/prompts.txt on a private farm with two workers.
# A second run rebuilds nothing and renders nothing again.
set -euo pipefail
cd "$(dirname "$0")"
deploy/packages.sh build
[ -f build/build.ninja ] || cmake -S . -B build -G Ninja -DKILN_TESTS=OFF >/dev/null
cmake --build build --target programs
exec build/bin/kiln render examples/prompts.txt -o kiln-out --model models/tiny --workers 2

#!/usr/bin/env bash
# Installs what is needed, builds kiln, and renders examples/prompts.txt on a private farm.
# A second run rebuilds nothing and renders nothing again.
set -euo pipefail
cd "$(dirname "$0")"
deploy/packages.sh build
if [ ! -f build/build.ninja ]; then
  # The CUDA backend is built where a GPU is (and nvcc), for that GPU.
  cuda=(-DKILN_CUDA=OFF)
  if nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -q '^[0-9]'; then
    cuda=(-DKILN_CUDA=AUTO -DKILN_CUDA_ARCHITECTURES=native)
  elif [ -e /dev/nvidiactl ]; then
    cuda=(-DKILN_CUDA=AUTO)
  fi
  cmake -S . -B build -G Ninja -DKILN_TESTS=OFF "${cuda[@]}" >/dev/null
fi
cmake --build build --target programs
exec build/bin/kiln render examples/prompts.txt -o kiln-out --model models/tiny

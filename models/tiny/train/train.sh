#!/bin/sh
# The whole recipe, from nothing to a model folder: train.sh OUT [MODEL]
#   OUT    checkpoints and logs; a run that was stopped goes on from there
#   MODEL  the folder to write, models/tiny by default
# Minutes: VAE_MINUTES (20), MINUTES (120). PYTHON names an interpreter with requirements.txt installed.
# On a CPU it runs a process for each core (PROCESSES); with CUDA one process on the GPU.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?train.sh OUT [MODEL]}
model=${2:-$here/..}
export PYTHON="${PYTHON:-python3}"
mkdir -p "$out"
[ -e "$out/tokenizer/vocab.json" ] || "$PYTHON" "$here/words.py" "$out/tokenizer"
if [ ! -e "$out/vae_final.pt" ]; then
    "$here/launch.sh" vae.py --out "$out" --minutes "${VAE_MINUTES:-20}"
    "$PYTHON" "$here/normalise.py" "$out"
fi
"$here/launch.sh" diffusion.py --out "$out" --minutes "${MINUTES:-120}"
"$PYTHON" "$here/export.py" "$out" "$model"

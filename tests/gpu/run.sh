#!/bin/bash
# Everything that a GPU can be asked about kiln, in one command: tests against the CPU backend, compute-sanitizer, benchmarks, a farm with
# a worker killed in the middle; one report, in Markdown and JSON. Needs bash, coreutils, CUDA's driver, and either nvcc, CMake and the
# engine's libraries (it builds the engine alone), or a tree that was made elsewhere and brought along; no network, no Redis, no ZeroMQ.
#
#   tests/gpu/run.sh                          builds, runs all but the farm, writes gpu-report/report.md and report.json
#   tests/gpu/run.sh --make-tree DIR          on a machine with the libraries and nvcc: makes the tree (whole farm and GPU tests)
#   DIR/share/kiln/tests/gpu/run.sh --farm    on the GPU machine: everything, from that tree (or run.sh --tree DIR)
#
#   --parts LIST        of tests, sanitizer, bench, diffusers, farm (default: all, the farm with --farm only)
#   --farm              the farm too: 2,000 prompts of the small model, kill -9 of a worker, kiln verify (--prompts N for another number)
#   --out DIR           where the report and every log go (default: gpu-report)
#   --tree DIR          programs of this installed tree       --build DIR   of this build folder, which is built when it is not there
#   --cuda-libs DIR     cuBLASLt and cuDNN (default: the dynamic loader's, CUDA's, or those of PyTorch's pip packages)
#   --python PROGRAM    for diffusers beside it and for models of full size (default: python3; what lacks is skipped)
#   --models LIST       of sd15, sd21, sdxl for the benchmarks (default: sd15,sdxl)
#   --batches LIST      batch sizes (default: 1,2,4,8,16,32,64,max; of SDXL 1,4,16,32)
#   --limit FACTOR      every part's time limit times this (default: 1)    --most SECONDS   and none longer than this
#   --shim, --cpu       a trial without a GPU: tests on the shim; benchmarks and farm with the CPU engine
#
# Each part has a time limit of its own: one that hangs is ended and named, and the rest goes on. Exit: 0 all passed; 1 something failed;
# 2 bad usage or nothing to run; 77 there is no GPU.
set -uo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
root=$(cd "$here/../.." && pwd) # the repository, or share/kiln of a tree
say() { printf '%s\n' "run.sh: $*" >&2; }
die() { say "$*"; exit 2; }

# ---- options

parts= farm= out=gpu-report tree= build= cuda_libs=${KILN_CUDA_LIBS:-} python=python3 models=sd15,sdxl batches=
limit=1 most= shim= cpu= prompts=2000 make_tree= farm_part=
while [ $# -gt 0 ]; do
  case $1 in
    --parts|--out|--tree|--build|--cuda-libs|--python|--models|--batches|--limit|--most|--prompts|--make-tree|--farm-part)
      [ $# -gt 1 ] || die "$1: expects a value"
      name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;
    --farm|--shim|--cpu) printf -v "${1#--}" 1; shift ;;
    -h|--help) sed -n '2,/^set -uo/p' "$here/run.sh" | sed '$d; s/^# \?//'; exit 0 ;;
    *) die "$1: unknown option; --help lists them" ;;
  esac
done
[[ $limit =~ ^[1-9][0-9]*$ && $prompts =~ ^[1-9][0-9]*$ && $most =~ ^([1-9][0-9]*)?$ ]] || die "--limit, --most and --prompts expect a number"
known=" tests sanitizer bench diffusers farm "
[ -n "$parts" ] || parts=tests,sanitizer,bench,diffusers
[ -z "$farm" ] || [[ ,$parts, == *,farm,* ]] || parts+=,farm
for part in ${parts//,/ }; do [[ $known == *" $part "* ]] || die "--parts: $part: expected some of$known"; done
for model in ${models//,/ }; do [[ $model =~ ^sd(15|21|xl)$ ]] || die "--models: $model: expected sd15, sd21, sdxl"; done
wanted() { [[ ,$parts, == *,$1,* ]]; }

# ---- the farm: by itself in a process of its own, under a time limit

if [ -n "$farm_part" ]; then # the folder of the programs
  bin=$farm_part
  place=$(mktemp -d /tmp/kiln-gpu-XXXXXX)
  export KILN_HOME=$place/farm
  worker=
  leave() {
    [ -z "$worker" ] || kill "$worker" 2>/dev/null
    "$bin/kiln" down --now >/dev/null 2>&1
    cp "$place"/farm/log/*.log "$out/" 2>/dev/null
    rm -rf "$place"
  }
  trap leave EXIT
  trap 'exit 1' TERM INT
  colours=(red green blue yellow black white orange purple) shapes=(circle square triangle star cross ring)
  for ((i = 0; i < prompts; i++)); do
    echo "a ${colours[i % 8]} ${shapes[i / 8 % 6]} above a ${colours[i / 48 % 8]} ${shapes[i / 384 % 6]}"
  done >"$place/prompts.txt"
  set -e
  if [ -n "$cpu" ]; then
    "$bin/kiln" up --workers 1 --model "$root/models/tiny" >/dev/null
  else
    "$bin/kiln" up --workers 0 >/dev/null
    "$bin/kiln-worker" --join "$KILN_HOME" --name gpu --device all --model "$root/models/tiny" 2>"$out/farm-worker.log" &
    worker=$!
    for ((i = 0; i < 600; i++)); do
      "$bin/kiln" workers --json | grep -q '"idle"' && break
      kill -0 "$worker" || { echo "no worker could be started:"; tail -n 3 "$out/farm-worker.log"; exit 1; }
      sleep 0.2
    done
  fi
  begun=$(date +%s%N)
  id=$("$bin/kiln" submit "$place/prompts.txt" --seed 1)
  number() { "$bin/kiln" "$1" "${@:3}" --json | grep -o "\"$2\": *[0-9]*" | head -n 1 | grep -o '[0-9]*$'; }
  while [ "$(number status done "$id")" -lt $((prompts / 5)) ]; do sleep 0.1; done
  victim=$(number workers pid)
  kill -9 "$victim"
  echo "worker $victim killed at $(number status done "$id") of $prompts"
  "$bin/kiln" wait "$id" >/dev/null 2>&1
  seconds=$((($(date +%s%N) - begun) / 1000000))
  "$bin/kiln" fetch "$id" -o "$place/pictures" >/dev/null 2>&1
  "$bin/kiln" verify "$place/pictures"
  [ "$(find "$place/pictures/images" -name '*.png' | wc -l)" -eq "$prompts" ] || { echo "not $prompts pictures"; exit 1; }
  [ -n "$("$bin/kiln" workers --json | grep -o "\"pid\": *[0-9]*" | grep -v "[^0-9]$victim\$")" ] || { echo "it was not started again"; exit 1; }
  echo "$prompts pictures in $((seconds / 1000)).$(printf %03d $((seconds % 1000))) s, verified"
  exit 0
fi

# ---- building

configure() { # folder, options
  command -v cmake >/dev/null || die "cmake is not there; bring a tree along (--make-tree elsewhere, --tree here)"
  local generator=()
  if command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S "$root" -B "$@" "${generator[@]}" || die "the build cannot be configured; what is missing stands above. A tree can be brought along instead: --make-tree elsewhere"
}
if [ -n "$make_tree" ]; then
  : "${build:=$root/build-gpu-tree}"
  configure "$build" -DCMAKE_BUILD_TYPE=Release -DKILN_TESTS=ON -DKILN_CUDA=ON ${KILN_CUDA_ARCHITECTURES:+-DKILN_CUDA_ARCHITECTURES="$KILN_CUDA_ARCHITECTURES"} >/dev/null
  cmake --build "$build" --target gpu-programs programs || die "the build failed"
  cmake --install "$build" --strip --prefix "$make_tree" >/dev/null && cmake --install "$build" --strip --component gpu --prefix "$make_tree" >/dev/null ||
    die "installing failed"
  say "made $make_tree ($(du -sh "$make_tree" | cut -f1)): take it to the GPU machine, and run $make_tree/share/kiln/tests/gpu/run.sh --farm there"
  exit 0
fi

gpu=
if nvidia-smi -L >/dev/null 2>&1 || [ -e /dev/nvidiactl ]; then gpu=1; fi
if [ -z "$gpu" ] && [ -z "$shim$cpu" ]; then
  say "there is no GPU here (no nvidia-smi that answers, no /dev/nvidiactl); --shim and --cpu try without one"
  exit 77
fi

if [ -z "$tree" ] && [ -z "$build" ] && [ -x "$root/../../bin/kiln-render" ]; then tree=$root/../..; fi
if [ -n "$tree" ]; then
  tree=$(cd "$tree" && pwd) || die "--tree: no such folder"
  bin=$tree/bin tests=$tree/libexec/kiln/gpu
  [ -d "$tree/share/kiln" ] && root=$tree/share/kiln
  [ -d "$tests" ] || die "$tree has no libexec/kiln/gpu: it was not made by run.sh --make-tree"
else
  : "${build:=$root/build-gpu}"
  if [ ! -f "$build/CMakeCache.txt" ]; then
    configure "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DKILN_FARM=OFF -DKILN_TESTS=ON \
      $([ -n "$gpu" ] && echo "-DKILN_CUDA=ON -DKILN_CUDA_ARCHITECTURES=native")
    if [ -n "$gpu" ]; then cmake --build "$build" --target gpu-programs programs || die "the build failed"
    else cmake --build "$build" || die "the build failed"; fi
  fi
  bin=$build/bin tests=$build/bin
fi

mkdir -p "$out" && out=$(cd "$out" && pwd) || die "--out: cannot be made"
scratch=$(mktemp -d "${TMPDIR:-/tmp}/kiln-gpu-scratch-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
rm -f "$out"/{results,benches}.jsonl

# ---- cuBLASLt and cuDNN: one folder of links, because they may lie in two

if [ -z "$cuda_libs" ] && [ -z "$shim" ]; then
  found=()
  while read -r folder; do
    for libraries in "$folder"/nvidia/cudnn/lib "$folder"/nvidia/cublas/lib "$folder"/nvidia/cu1[0-9]/lib; do
      for file in "$libraries"/lib{cudnn,cublas,nvrtc}*.so*; do [ ! -e "$file" ] || found+=("$file"); done
    done
  done < <("$python" -c 'import site, sys; print("\n".join(dict.fromkeys(site.getsitepackages() + [site.getusersitepackages()] + sys.path)))' 2>/dev/null)
  if [ ${#found[@]} -gt 0 ]; then
    mkdir -p "$scratch/libs"
    ln -sf "${found[@]}" "$scratch/libs/"
    cuda_libs=$scratch/libs
  fi
fi
if [ -n "$cuda_libs" ]; then
  export KILN_CUDA_LIBS=$cuda_libs
  export LD_LIBRARY_PATH=$cuda_libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} # cuDNN's own parts, which it opens by name
fi

# ---- what is kept of each thing that ran

escape() { tr '\n\t' '  ' | tr -cd '\40-\176' | sed 's/[\\"]/\\&/g'; }
failures=0
# part, name, seconds it may take, command…: its log is OUT/PART-NAME.log, its last line is what is said of it.
attempt() {
  local part=$1 name=$2 seconds=$(($3 * limit)) log rc begun result words
  shift 3
  if [ -n "$most" ] && [ "$seconds" -gt "$most" ]; then seconds=$most; fi
  log=$out/$part-$name.log
  begun=$(date +%s%N)
  (cd "$root" && timeout -k 20 "$seconds" "$@") >"$log" 2>&1 </dev/null
  rc=$?
  case $rc in
    0) result=passed ;;
    77) result=skipped ;;
    124|137) result="timed out" ;;
    *) result=failed ;;
  esac
  [[ $result == passed || $result == skipped ]] || failures=$((failures + 1))
  words=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-200 | tr -d '\n' | escape)
  [[ $words != "{"* ]] || words="$(grep -c '^{"bench"' "$log") rows"
  printf '{"part": "%s", "name": "%s", "result": "%s", "status": %d, "seconds": %d.%03d, "words": "%s"}\n' "$part" "$name" "$result" "$rc" \
    $((($(date +%s%N) - begun) / 1000000000)) $((($(date +%s%N) - begun) / 1000000 % 1000)) "$words" >>"$out/results.jsonl"
  say "$part $name: $result${words:+ ($words)}"
  return "$rc"
}
note() { # part, name, result, why
  printf '{"part": "%s", "name": "%s", "result": "%s", "status": null, "seconds": 0, "words": "%s"}\n' "$1" "$2" "$3" "$(printf %s "$4" | escape)" >>"$out/results.jsonl"
  say "$1 $2: $3 ($4)"
}
skip() { note "$1" "$2" skipped "$3"; }
# The JSON lines of a log become rows of the report.
keep_rows() { grep -h '^{"bench"' "$1" >>"$out/benches.jsonl" 2>/dev/null || true; }

programs() { # the tests' names
  local file
  for file in "$tests"/${shim:+}$([ -n "$shim" ] && echo '*-shim' || echo 'gpu-*'); do
    [ -x "$file" ] && [ ! -d "$file" ] || continue
    file=${file##*/}
    [[ $file == *-versions-shim || $file == *-bench-shim || $file == gpu-programs ]] || echo "$file"
  done
}

# ---- the parts

if wanted tests; then
  list=$(programs)
  [ -n "$list" ] || skip tests all "there are no test programs in $tests"
  for program in $list; do attempt tests "$program" 900 "$tests/$program"; done
  if [ -n "$gpu" ] && [ -z "$shim$cpu" ] && ! grep -q '"part": "tests".*"result": "[pft]' "$out/results.jsonl" 2>/dev/null; then
    failures=$((failures + 1))
    note tests device failed "there is a GPU and no test could use it (CUDA 13 wants driver 580 or newer)"
  fi
fi

if wanted sanitizer; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
  if [ -n "$shim$cpu" ] && [ -z "$gpu" ]; then
    skip sanitizer all "there is no GPU"
  elif [ -z "$sanitizer" ]; then
    skip sanitizer all "compute-sanitizer is not there"
  else
    for tool in memcheck racecheck initcheck synccheck; do
      for program in gpu-norm gpu-small gpu-sample gpu-attention gpu-conv gpu-parity gpu-engine; do
        [ -x "$tests/$program" ] || continue
        attempt sanitizer "$tool-$program" 600 env KILN_PARITY_ROUNDS=1 "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 "$tests/$program"
      done
    done
  fi
fi

device=cuda
[ -z "$cpu" ] || device=cpu
folder_of() { # a model's folder, made at first
  [ -f "$scratch/$1/model_index.json" ] || timeout -k 20 $((1200 * limit)) "$python" "$root/tests/bench/random_model.py" "$1" "$scratch/$1" >"$out/model-$1.log" 2>&1 || return 1
  echo "$scratch/$1"
}
if wanted bench; then
  engine=$tests/bench-gpu-engine
  if [ ! -x "$engine" ]; then
    skip bench all "bench-gpu-engine was not built"
  else
    attempt bench tiny 600 "$engine" --model models/tiny --device $device --batch "${batches:-1,2,4,8,16,32,64,max}"
    keep_rows "$out/bench-tiny.log"
    for model in ${models//,/ }; do
      [ -z "$cpu" ] || { skip bench "$model" "too much for a CPU"; continue; }
      folder=$(folder_of "$model") || { skip bench "$model" "its folder could not be made (python3 is needed): see model-$model.log"; continue; }
      cfg=7.5 precisions="f16 bf16" sizes=${batches:-1,2,4,8,16,32,64,max}
      if [ "$model" = sdxl ]; then cfg=8 precisions=bf16 sizes=${batches:-1,4,16,32}; fi
      for precision in $precisions; do
        for mode in reproducible fastest; do
          attempt bench "$model-$precision-$mode" 1200 "$engine" --model "$folder" --device cuda --cfg $cfg --precision $precision --batch "$sizes" \
            --batches 2 $([ $mode = fastest ] && echo --fastest)
          keep_rows "$out/bench-$model-$precision-$mode.log"
        done
      done
      ops=16
      if [ "$model" = sdxl ]; then ops=8; fi
      if [ -x "$tests/bench-gpu-ops" ]; then
        attempt bench "$model-ops" 600 "$tests/bench-gpu-ops" --model "$folder" --cfg $cfg --precision bf16 --batch $ops
        keep_rows "$out/bench-$model-ops.log"
      fi
      if [ "$model" = sdxl ]; then # the scales are found with a few of the prompts that are timed, and so is the pictures' distance
        printf 'a red circle above %d blue squares\n' 1 2 3 4 >"$scratch/calibration.txt"
        attempt bench "$model-calibration" 900 "$bin/kiln-render" --model "$folder" --device cuda --precision bf16 --calibrate "$scratch/calibration.txt" \
          --seed 1 --sampler Euler --cfg $cfg --json
        attempt bench "$model-fp8" 1200 "$engine" --model "$folder" --device cuda --cfg $cfg --precision fp8 --batch "$sizes" --batches 2
        keep_rows "$out/bench-$model-fp8.log"
        rm -f "$folder/kiln-fp8.json" # another model with it
      fi
      attempt bench "$model-own-kernels" 1200 "$engine" --model "$folder" --device cuda --cfg $cfg --precision bf16 --own-kernels --batch 1,8 --batches 2
      keep_rows "$out/bench-$model-own-kernels.log"
    done
  fi
  for program in "$tests"/bench-cuda-*; do
    [ -z "$shim$cpu" ] && [ -x "$program" ] && attempt bench "${program##*/}" 600 "$program"
  done
fi

if wanted diffusers; then
  script=$root/tests/bench/gpu_vs_diffusers.py
  if [ -n "$shim$cpu" ] && [ -z "$gpu" ]; then
    skip diffusers all "there is no GPU"
  else
    attempt diffusers ceiling 300 "$python" "$script" --ceiling
    keep_rows "$out/diffusers-ceiling.log"
    for model in ${models//,/ }; do
      folder=$(folder_of "$model") || { skip diffusers "$model" "its folder could not be made: see model-$model.log"; continue; }
      attempt diffusers "$model" 3000 "$python" "$script" "$model" "$folder"
      keep_rows "$out/diffusers-$model.log"
    done
  fi
fi

if wanted farm; then
  if [ ! -x "$bin/kiln" ] || [ ! -x "$bin/kiln-coordinator" ]; then
    skip farm all "$bin has no farm: make a tree (--make-tree) where its libraries are"
  else
    attempt farm killed-worker 1800 "$here/run.sh" --farm-part "$bin" --out "$out" --prompts "$prompts" ${cpu:+--cpu}
  fi
fi

# ---- the report

query() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || cat "$root/commit" 2>/dev/null || echo unknown)
[ -z "$(git -C "$root" status --porcelain --untracked-files=no 2>/dev/null)" ] || commit+="+changes"
name=$(query name) driver=$(query driver_version) clock=$(query clocks.max.sm) memory=$(query memory.total)
: "${name:=none}" "${driver:=none}"
cuda=$( (nvcc --version || /usr/local/cuda/bin/nvcc --version) 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' | head -n 1)
cudnn=$(ls "${cuda_libs:-/usr/local/cuda/lib64}"/libcudnn.so.* 2>/dev/null | head -n 1)
torch=$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null)
touch "$out/results.jsonl" "$out/benches.jsonl"
field() { sed -n 's/.*"'"$1"'": \("\([^"]*\)"\|\([^,}]*\)\).*/\2\3/p' <<<"$2" | head -n 1; }
{
  printf '{"date": "%s", "commit": "%s", "device": "%s", "driver": "%s", "memory": "%s", "max_sm_clock": "%s", "cuda": "%s", "cudnn": "%s", "torch": "%s", "trial": %s,\n"results": [\n' \
    "$(date -u +%FT%TZ)" "$commit" "$name" "$driver" "$memory" "$clock" "${cuda:-none}" "${cudnn##*/}" "${torch:-none}" "$([ -n "$shim$cpu" ] && echo true || echo false)"
  sed '$!s/$/,/' "$out/results.jsonl"
  printf '],\n"benches": [\n'
  sed '$!s/$/,/' "$out/benches.jsonl"
  printf ']}\n'
} >"$out/report.json"
{
  echo "# kiln on $name"
  echo
  [ -z "$shim$cpu" ] || printf 'A trial without a GPU: nothing here is a measurement of one.\n\n'
  printf '| | |\n|---|---|\n| date | %s |\n| commit | %s |\n| device | %s, %s, up to %s |\n| driver | %s |\n| CUDA, cuDNN | %s, %s |\n| PyTorch | %s |\n\n' \
    "$(date -u +%F)" "$commit" "$name" "${memory:-?}" "${clock:-?}" "$driver" "${cuda:-none}" "${cudnn##*/}" "${torch:-none}"
  printf '## Results\n\n| part | name | result | seconds | |\n|---|---|---|---|---|\n'
  while IFS= read -r line; do
    words=$(field words "$line")
    printf '| %s | %s | %s | %s | %s |\n' "$(field part "$line")" "$(field name "$line")" "$(field result "$line")" "$(field seconds "$line")" "${words//|/\\|}"
  done <"$out/results.jsonl"
  printf '\n## Benchmarks\n\nEnd to end, texts to pixels. `it/s`: steps of the whole batch in the loop. `idle`: the share of the time without work on the device.\n\n'
  printf '| who | model | size | steps | precision | mode | batch | images/s | it/s | idle | |\n|---|---|---|---|---|---|---|---|---|---|---|\n'
  while IFS= read -r line; do
    case $(field bench "$line") in ceiling|op|ops) continue ;; esac
    [ "$(field own_kernels "$line")" = true ] && own="own kernels" || own=$(field error "$line")
    printf '| %s | %s | %sx%s | %s | %s | %s | %s | %s | %s | %s | %s |\n' "$(field bench "$line" | sed 's/^engine$/kiln/')" "$(field model "$line")" "$(field width "$line")" \
      "$(field height "$line")" "$(field steps "$line")" "$(field precision "$line")" "$(field mode "$line")" "$(field batch "$line")" \
      "$(field images_per_s "$line")" "$(field steps_per_s "$line")" "$(field idle "$line")" "$own"
  done <"$out/benches.jsonl"
  ceiling=$(grep '"bench": "ceiling"' "$out/benches.jsonl" | head -n 1)
  if grep -q '"bench": "ops"' "$out/benches.jsonl"; then
    printf '\n## Where the time goes\n\nOp by op, nothing recorded, with launches and gaps: shares count, sums are more than a step takes. `of ceiling`: of the large matrix product below.\n\n'
    printf '| stage | op | batch | calls | ms | share | TFLOP/s | of ceiling |\n|---|---|---|---|---|---|---|---|\n'
    grep -E '"bench": "ops?"' "$out/benches.jsonl" | while IFS= read -r line; do
      tflops=$(field tflops "$line")
      printf '| %s | %s | %s | %s | %s | %s | %s | %s |\n' "$(field stage "$line")" "$(field name "$line")" "$(field batch "$line")" "$(field calls "$line")" \
        "$(field ms "$line")" "$(field share "$line")" "$tflops" \
        "$([ -n "$ceiling" ] && [ -n "$tflops" ] && awk -v a="$tflops" -v b="$(field tflops "$ceiling")" 'BEGIN {printf "%.2f", a / b}')"
    done
  fi
  # the best batch of each, and the ratio that the goal is about
  best() { grep "\"bench\": \"$1\"" "$out/benches.jsonl" | grep "\"model\": \"$2\"" | grep -v -e '"mode": "fastest"' -e '"precision": "fp8"' | grep -o '"images_per_s": [0-9.]*' | grep -o '[0-9.]*$' | sort -g | tail -n 1; }
  for model in ${models//,/ }; do
    ours=$(best engine "$model") theirs=$(best diffusers "$model")
    [ -n "$ours" ] && [ -n "$theirs" ] && printf '\n%s, best batch of each: kiln (reproducible) %s images/s, diffusers with torch.compile %s: %s times.\n' "$model" "$ours" "$theirs" \
      "$(awk -v a="$ours" -v b="$theirs" 'BEGIN {printf "%.2f", a / b}')"
  done
  if [ -n "$ceiling" ]; then printf '\nCeiling, a large bf16 matrix product: %s TFLOP/s.\n' "$(field tflops "$ceiling")"; else printf '\nThe ceiling of a large matrix product was not measured.\n'; fi
} >"$out/report.md"

say "$failures failed; the report is $out/report.md"
[ "$failures" -eq 0 ]

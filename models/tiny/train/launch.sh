#!/bin/sh
# launch.sh SCRIPT ARGUMENTS: runs a training script in one process for each core (PROCESSES), or in one with a GPU.
here=$(dirname "$0")
python=${PYTHON:-python3}
n=${PROCESSES:-$(nproc)}
export MASTER_ADDR=127.0.0.1 MASTER_PORT="${MASTER_PORT:-29531}"
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || [ "$n" -le 1 ]; then
    exec "$python" "$here/$@"
fi
export WORLD_SIZE="$n" OMP_NUM_THREADS=1
pids=
rank=1
trap 'kill $pids 2>/dev/null' EXIT INT TERM
while [ "$rank" -lt "$n" ]; do
    RANK=$rank "$python" "$here/$@" &
    pids="$pids $!"
    rank=$((rank + 1))
done
RANK=0 "$python" "$here/$@"
status=$?
[ $status -eq 0 ] && wait $pids
exit $status

#!/usr/bin/env bash
# Each fault that is planted in the simulator's copy of the core, or in its own shell around it (base/planted.h), with
# the history that finds it. A history that finds nothing shows nothing: so the same one must pass without the fault.
#
#     planted.sh BIN                each planted fault is found by its seed, and what the judge said (BIN: build/bin)
#     planted.sh BIN --search N     looks for the first seed up to N that finds each fault, to write the table anew
#
# A change of the world or of the core's decisions may move seeds: --search says where to.
set -u
bin=$1
simulator=$bin/sim-planted
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# fault, mode, seed
table="
ACK_BEFORE_COMMIT      --hostile 1
CHARGE_TWICE           --sick    11
CHARGE_UNACQUITTED     --sick    28
SICK_BLAMES_TASK       --sick    3
LOST_RETRACT           --hostile 1
RESEND_LOST            --hostile 3
TERM_NOT_HEEDED        --hostile 8
VOID_LOST_AT_END       --hostile 10
RETRY_OVERTAKEN        --hostile 7
RETRY_FORGOTTEN        --hostile 360
WISH_DROPPED           --hostile 1
SILENCE_IGNORED        --hostile 2
PIN_IGNORED            --hostile 17
DEATH_BLAMES_ALL       --sick    244
ACK_BEFORE_FSYNC       --hostile 2
NO_DIRECTORY_FSYNC     --hostile 2
ANSWER_BEFORE_DURABLE  --hostile 1
TERM_NOT_CHECKED       --hostile 2
DELETION_WITHOUT_TERM  --hostile 15
ADMISSION_AFTER_COMMIT --hostile 1
"

# play FAULT MODE SEED..SEED: the status; what was said is in $work/said. An abort, not any other end, is a find.
play() {
  local plant=()
  [ "$1" = - ] || plant=(--plant "$1")
  { (ulimit -c 0; exec timeout 240 "$simulator" "$2" --once "${plant[@]}" --seeds "$3") >"$work/said" 2>&1; } 2>/dev/null
}

said() { grep -m1 -oE 'not so: .*|Assertion .*' "$work/said"; }

if [ "${2:-}" = --search ]; then
  while read -r fault _; do
    for mode in --hostile --sick; do
      play "$fault" "$mode" "1..${3:-200}"
      [ $? -eq 134 ] || continue
      printf '%-22s %-9s %s\n' "$fault" "$mode" "$(grep -oE '^seed [0-9]+' "$work/said" | cut -d' ' -f2)"
    done
  done < <("$simulator" --planted)
  exit 0
fi

status=0
while read -r fault what; do
  read -r mode seed < <(awk -v f="$fault" '$1 == f {print $2, $3}' <<<"$table")
  if [ -z "${seed:-}" ]; then
    echo "$fault: no seed is listed"
    status=1
    continue
  fi
  play - "$mode" "$seed..$seed"
  if [ $? -ne 0 ]; then
    echo "$fault: seed $seed ($mode) ends badly without the fault: $(said)"
    status=1
    continue
  fi
  play "$fault" "$mode" "$seed..$seed"
  if [ $? -eq 134 ]; then
    printf '%-22s seed %-4s %-9s %s\n%25s%s\n' "$fault" "$seed" "$mode" "$what" "" "$(said)"
  else
    echo "$fault: seed $seed ($mode) does not find it any more"
    status=1
  fi
  seed=
done < <("$simulator" --planted)
exit $status

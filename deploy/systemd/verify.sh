#!/usr/bin/env bash
# verify.sh BINDIR: systemd-analyze verify on the units, with the programs of a build in the place of installed ones. It
# exits 0 on unknown keys, so any output is a failure. Exit 77: there is no systemd-analyze.
set -euo pipefail
command -v systemd-analyze >/dev/null || { echo "skipped: systemd-analyze is not installed"; exit 77; }
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
check() { # check FOLDER: what systemd-analyze says about its units
  (cd "$1" && SYSTEMD_UNIT_PATH="$1:" systemd-analyze verify --man=no ./*.service 2>&1) || true
}
redis=$(command -v redis-server || command -v true)
for unit in "$here"/*.service; do
  name=$(basename "$unit")
  sed "s#/usr/local/bin/#$bin/#; s#/usr/bin/redis-server#$redis#" "$unit" >"$dir/${name/@./@0.}"
done
said=$(check "$dir")
if [ -n "$said" ]; then
  echo "$said"
  exit 1
fi
# And it can fail: a key that does not exist must be noticed.
sed -i 's/^NoNewPrivileges=/NoNewPrivilegez=/' "$dir/kiln-redis.service"
[ -n "$(check "$dir")" ] || { echo "a wrong key was not noticed"; exit 1; }
for key in "appendonly yes" "appendfsync always" "no-appendfsync-on-rewrite no" "maxmemory-policy noeviction"; do
  grep -qx "$key" "$here/redis.conf" || { echo "redis.conf: $key is missing"; exit 1; }
done

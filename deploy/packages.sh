#!/usr/bin/env bash
# Installs the Debian packages that kiln builds with and runs on; says nothing and does nothing when they are there.
# Usage: deploy/packages.sh build [test]    Debian 12 and 13, Ubuntu 24.04; as root, or with sudo.
set -euo pipefail

build=(build-essential cmake ninja-build pkg-config protobuf-c-compiler libprotobuf-c-dev libzmq3-dev libuv1-dev
       libhiredis-dev libdnnl-dev libpng-dev libjson-c-dev libssl-dev libutf8proc-dev zlib1g-dev libncurses-dev
       redis-server)
test=(python3 iproute2 systemd)

wanted=()
for set in "$@"; do
  case $set in
    build) wanted+=("${build[@]}") ;;
    test) wanted+=("${test[@]}") ;;
    *) echo "packages.sh: $set: no such set; there are build and test" >&2; exit 1 ;;
  esac
done

missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "packages.sh: needs root or sudo to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "installing ${#missing[@]} packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 "$@"; }
# Debian starts a Redis of its own when its package is installed; kiln starts its own, so that one is kept from starting.
policy=/usr/sbin/policy-rc.d
own_policy=
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
  "${as_root[@]}" chmod 755 $policy
  own_policy=1
fi
trap '[ -z "$own_policy" ] || "${as_root[@]}" rm -f $policy' EXIT
log=$(mktemp)
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "packages.sh: installing failed; the whole log is $log" >&2
  exit 1
fi
rm -f "$log"

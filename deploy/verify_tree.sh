#!/bin/bash
# Proves that an installed tree runs from any folder, with nothing of this machine but glibc's family: copies or unpacks it to another
# place, looks at what its programs load, renders a few pictures on a private farm with an empty environment, and audits them.
# Needs bash, coreutils and tar. Usage: verify_tree.sh TREE|TARBALL|--build BUILD [GLIBC_MAX]
#   --build BUILD   installs that build folder first
#   GLIBC_MAX       the newest version of glibc whose symbols may be wanted (2.35); needs objdump
set -euo pipefail
fail() { echo "verify_tree: $*" >&2; exit 1; }

place=$(mktemp -d /tmp/kiln-tree-XXXXXX)
tree=$place/somewhere/else
clean() {
  [ ! -x "$tree/bin/kiln" ] || clean_env "$tree/bin/kiln" down --now >/dev/null 2>&1 || true
  rm -rf "$place"
}
# No variable but these; no program on PATH, so that a Redis of this machine is not found.
clean_env() { env -i HOME="$place/home" PATH="$place/empty" KILN_HOME="$place/farm" "$@"; }
trap clean EXIT
mkdir -p "$place/empty" "$place/home" "$place/somewhere"

if [ "$1" = --build ]; then
  cmake --install "$2" --prefix "$place/first" >"$place/log" 2>&1 || { cat "$place/log" >&2; fail "cmake --install $2 failed"; }
  mv "$place/first" "$tree" # nothing may remember where it was put first
  shift 2
elif [ -d "$1" ]; then
  cp -a "$1" "$tree"
  shift
else
  mkdir "$tree"
  tar -xzf "$1" -C "$tree" --strip-components=1
  shift
fi
glibc_max=${1:-}

own='^(linux-vdso\.so\.1|.*/?ld-linux-x86-64\.so\.2|.*/lib(c|m|dl|rt|pthread|resolv|util|mvec|nss_[a-z]+)\.so\.[0-9]+|.*/lib(stdc\+\+|gcc_s)\.so\.[0-9.]+)$'
stray() { # of the paths on standard input, those that are neither the tree's nor glibc's family
  while read -r path; do
    [[ $path =~ $own ]] && continue
    [[ $(readlink -f -- "$path" || echo "$path") == "$(readlink -f "$tree")"/* ]] || echo "$path"
  done
}

programs=("$tree"/bin/*)
for program in "${programs[@]}" "$tree/lib/kiln/redis-server"; do
  [ "$(head -c 4 "$program" | tr -d '\0')" = $'\x7fELF' ] || continue
  libraries=
  [[ $program != */lib/kiln/* ]] || libraries=$tree/lib/kiln
  loaded=$(clean_env LD_TRACE_LOADED_OBJECTS=1 ${libraries:+LD_LIBRARY_PATH="$libraries"} "$program")
  ! grep 'not found' <<<"$loaded" || fail "${program##*/}: a library is missing"
  bad=$(sed -n 's/^\t\(.* => \)\?\([^ ]*\).*/\2/p' <<<"$loaded" | stray)
  [ -z "$bad" ] || fail "${program##*/} loads from outside of the tree: $bad"
done

if [ -n "$glibc_max" ]; then
  while read -r -d '' file; do
    newest=$({ objdump -T "$file" 2>/dev/null || true; } | sed -n 's/.*(\?GLIBC_\([0-9.]*\).*/\1/p' | sort -V | tail -n 1)
    [ "$(printf '%s\n' "$glibc_max" "${newest:-2}" | sort -V | tail -n 1)" = "$glibc_max" ] ||
      fail "${file##*/} wants glibc $newest; the oldest that it must run on has $glibc_max"
  done < <(find "$tree/bin" "$tree/lib" -type f -print0)
fi

for program in "${programs[@]}"; do
  clean_env "$program" --version >/dev/null || fail "${program##*/} does not start"
done
if [ ! -x "$tree/bin/kiln" ]; then # an engine alone
  clean_env "$tree/bin/kiln-render" --model "$tree/share/kiln/models/tiny" -p "a red circle" --seed 1 --steps 2 -q -o "$place/one.png" ||
    fail "kiln-render failed"
  [ -s "$place/one.png" ] || fail "kiln-render wrote nothing"
  echo "verify_tree: the engine runs from $tree"
  exit 0
fi

clean_env "$tree/bin/kiln" render -p "a red circle" --images 3 --seed 1 --steps 2 --workers 1 -o "$place/private" 2>"$place/log" ||
  { cat "$place/log" >&2; fail "kiln render failed"; }
clean_env "$tree/bin/kiln" verify "$place/private" >/dev/null || fail "kiln verify found faults"

# What a farm that runs has in memory, libraries loaded later too.
clean_env "$tree/bin/kiln" up --workers 1 >/dev/null 2>"$place/log" || { cat "$place/log" >&2; fail "kiln up failed"; }
clean_env "$tree/bin/kiln" render -p "a blue square" --images 3 --seed 2 --steps 2 -o "$place/farmed" 2>"$place/log" ||
  { cat "$place/log" >&2; fail "kiln render failed on a farm that is up"; }
clean_env "$tree/bin/kiln" verify "$place/farmed" >/dev/null || fail "kiln verify found faults"
for process in redis coordinator worker-0; do
  pid=$(cat "$place/farm/run/$process.pid")
  bad=$(awk '$6 ~ /\.so(\.|$)/ {print $6}' "/proc/$pid/maps" 2>/dev/null | sort -u | stray)
  [ -z "$bad" ] || fail "$process has mapped from outside of the tree: $bad"
done
[[ $(readlink "/proc/$(cat "$place/farm/run/redis.pid")/exe") == "$(readlink -f "$tree")"/lib/kiln/redis-server ]] ||
  fail "the farm's Redis is not the tree's"
clean_env "$tree/bin/kiln" down >/dev/null 2>&1 || fail "kiln down failed"
echo "verify_tree: 6 pictures by $(basename "$(readlink -f "$tree/bin/kiln")") on $(. /etc/os-release; echo "$PRETTY_NAME"), everything from the tree"

#!/bin/sh
# Prepare the project's Python environment and print the path of uv, which every target of the Makefile runs.
# Needs nothing but a POSIX shell: what is missing is installed (on Debian and Ubuntu), into a cache folder where possible.
set -eu
cd "$(dirname "$0")/.."

say() { echo "$*" >&2; }

# Through sudo, the environment still belongs to the person: made by root, it would lock them out of their own checkout.
owner=$(stat -c %U .)
if [ "$(id -u)" = 0 ] && [ "${SUDO_USER:-root}" != root ] && [ "$owner" = "$SUDO_USER" ]; then
  home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
  cache=$home/.cache/user-data-security
  as_owner() { runuser -u "$SUDO_USER" -- env -u XDG_CACHE_HOME HOME="$home" "$@"; }
else
  home=$HOME
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/user-data-security
  as_owner() { "$@"; }
fi

find_uv() {
  command -v uv && return
  # sudo's PATH leaves a person's own folders out.
  for candidate in "$home/.local/bin/uv" "$home/.cargo/bin/uv" "$cache/uv/bin/uv"; do
    if [ -x "$candidate" ]; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

install_uv() {
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
      say "Neither uv nor Python with venv is here. Install one: https://docs.astral.sh/uv/getting-started/installation/"
      say "or, on Debian and Ubuntu: sudo apt-get install python3 python3-venv"
      exit 1
    fi
    say "installing python3 and python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=120 update >&2
    apt-get -qq -o DPkg::Lock::Timeout=120 install --no-install-recommends python3 python3-venv >&2
  fi
  say "installing uv in $cache/uv"
  as_owner mkdir -p "$cache"
  # Made aside and moved into place: one that was interrupted half-way is never taken for a good one.
  new=$(as_owner mktemp -d "$cache/.uv-XXXXXX")
  as_owner python3 -m venv "$new" >&2
  as_owner "$new/bin/pip" install --quiet --disable-pip-version-check uv >&2
  as_owner rm -rf "$cache/uv"
  as_owner mv "$new" "$cache/uv"
}

uv=$(find_uv) || {
  install_uv
  uv=$cache/uv/bin/uv
}
as_owner "$uv" sync --frozen --quiet >&2
echo "$uv"

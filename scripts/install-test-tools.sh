#!/usr/bin/env bash
# Installs what only the tests need: Python, and the published Python client of Ash (pinned in e2e/python-client.version) in a
# folder of its own, where nothing else of this machine uses it. Does nothing when all is there; says what to do where it cannot.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
version=$(cat "$top/e2e/python-client.version")
target=$HOME/.cache/ash/python-client-$version

if ! command -v python3 >/dev/null; then
  if [ "$(id -u)" = 0 ]; then sudo=(); elif sudo -n true 2>/dev/null; then sudo=(sudo -n); else
    echo "Missing: python3. Install it first: sudo apt-get install -y python3 python3-venv" >&2
    exit 1
  fi
  command -v apt-get >/dev/null || { echo "Missing: python3. Install it with your system's package manager." >&2; exit 1; }
  echo "Installing python3 ..." >&2
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null
fi

if [ ! -d "$target" ]; then
  mkdir -p "$(dirname "$target")"
  work=$(mktemp -d "$target.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # A pip of its own where Python can make one, else that of the system.
  if python3 -m venv "$work/venv" >/dev/null 2>&1; then pip=("$work/venv/bin/python" -m pip)
  elif python3 -m pip --version >/dev/null 2>&1; then pip=(python3 -m pip)
  else
    echo "Python has neither venv nor pip: sudo apt-get install -y python3-venv, then run this again." >&2
    exit 1
  fi
  echo "Fetching the Python client $version ..." >&2
  "${pip[@]}" install --quiet --disable-pip-version-check --no-compile --target "$work/packages" "ash-ai-sdk==$version" >&2
  # Two runs at once may both have fetched it: the second finds it in place.
  mkdir "$work/whole" && mv "$work/packages" "$work/whole/packages"
  mv -T "$work/whole" "$target" 2>/dev/null || [ -d "$target/packages" ]
fi

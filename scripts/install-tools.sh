#!/usr/bin/env bash
# Installs what Ash needs beside Rust: bubblewrap, a C compiler and (for the tests) Postgres from the distribution, and the
# pinned Claude Code.
# Does nothing when all is there; says what to do where it cannot.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)

command -v cargo >/dev/null || { echo "Rust is missing: install it from https://rustup.rs, then run this again." >&2; exit 1; }

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v npm >/dev/null || [ -x "$HOME/.cache/ash/claude-code-$(cat "$top/bridge-image/claude-code.version")/package/claude" ] || missing+=(npm)
# Debian keeps its programs off the PATH. A DATABASE_URL names a server that the tests use instead.
[ -n "${DATABASE_URL:-}" ] || command -v postgres >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || missing+=(postgresql)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ]; then sudo=(); elif sudo -n true 2>/dev/null; then sudo=(sudo -n); else
    echo "Missing: ${missing[*]}. Install them first: sudo apt-get install -y ${missing[*]}" >&2
    exit 1
  fi
  command -v apt-get >/dev/null || { echo "Missing: ${missing[*]}. Install them with your system's package manager." >&2; exit 1; }
  echo "Installing ${missing[*]} ..." >&2
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

"$top/bridge-image/install-claude-code.sh" >/dev/null

if ! bwrap --unshare-all --ro-bind / / true 2>/dev/null; then
  if [ "$(cat /proc/sys/kernel/apparmor_restrict_unprivileged_userns 2>/dev/null || echo 0)" = 1 ]; then
    echo "AppArmor refuses bubblewrap its user namespaces. This allows it, until the next start of the machine:" >&2
    echo "  sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0" >&2
  elif [ "$(cat /proc/sys/kernel/unprivileged_userns_clone 2>/dev/null || echo 1)" = 0 ]; then
    echo "This system refuses user namespaces to ordinary users. This allows them, until the next start of the machine:" >&2
    echo "  sudo sysctl -w kernel.unprivileged_userns_clone=1" >&2
  elif [ "$(cat /proc/sys/user/max_user_namespaces 2>/dev/null || echo 1)" = 0 ]; then
    echo "This system allows no user namespaces. This allows them, until the next start of the machine:" >&2
    echo "  sudo sysctl -w user.max_user_namespaces=15000" >&2
  else
    echo "bubblewrap cannot make a sandbox here: $(bwrap --unshare-all --ro-bind / / true 2>&1 || true)" >&2
    echo "Inside of a container, start it so that it may make user namespaces (Docker: --security-opt seccomp=unconfined" >&2
    echo "--security-opt apparmor=unconfined --security-opt systempaths=unconfined), or run this outside of it." >&2
  fi
  exit 1
fi

#!/usr/bin/env bash
# Installs what Ash needs beside Rust: bubblewrap and a C compiler from the distribution, and the pinned Claude Code.
# Does nothing when all is there; says what to do where it cannot.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
. "$top/scripts/apt-install.sh"

command -v cargo >/dev/null || { echo "Rust is missing: install it from https://rustup.rs, then run this again." >&2; exit 1; }

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v npm >/dev/null || [ -x "$HOME/.cache/ash/claude-code-$(cat "$top/bridge-image/claude-code.version")/package/claude" ] || missing+=(npm)
if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi

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

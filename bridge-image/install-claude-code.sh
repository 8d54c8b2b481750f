#!/usr/bin/env bash
# Installs the pinned Claude Code where `ash serve` looks for it, and says where that is. Does nothing when it is there.
# Its licence is Anthropic's; it is fetched from npm and never part of this repository.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=$(cat "$here/claude-code.version")
target=$HOME/.cache/ash/claude-code-$version

case "$(uname -m)" in
  x86_64) platform=linux-x64 ;;
  aarch64) platform=linux-arm64 ;;
  *) echo "There is no Claude Code for $(uname -m)." >&2; exit 1 ;;
esac

if [ ! -x "$target/package/claude" ]; then
  command -v npm >/dev/null || { echo "npm is missing: install it (Debian, Ubuntu: apt-get install npm), then run this again." >&2; exit 1; }
  mkdir -p "$(dirname "$target")"
  work=$(mktemp -d "$target.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "Fetching Claude Code $version (about 170 MB) ..." >&2
  (cd "$work" && npm pack --silent "@anthropic-ai/claude-code-$platform@$version" >/dev/null && tar xzf ./*.tgz && rm ./*.tgz)
  chmod -R go+rX "$work"
  # Two runs at once may both have fetched it: the second finds it in place.
  mv -T "$work" "$target" 2>/dev/null || [ -x "$target/package/claude" ]
fi
echo "$target/package/claude"

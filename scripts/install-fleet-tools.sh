#!/usr/bin/env bash
# Installs what a fleet on one machine needs beside Ash: Postgres and HAProxy from the distribution, and an object storage from
# its Go module where there is Go. Does nothing when all are there; says what to do where it cannot. Servers that their packages
# may start are not used.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
. "$top/scripts/apt-install.sh"

missing=()
# Debian keeps its programs off the PATH. A DATABASE_URL names a server that the tests use instead.
[ -n "${DATABASE_URL:-}" ] || command -v postgres >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null ||
  missing+=(postgresql)
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi
if command -v go >/dev/null; then
  "$top/e2e/storage/build.sh" "$HOME/.cache/ash/versitygw-$(cat "$top/e2e/storage/versitygw.version")"
fi

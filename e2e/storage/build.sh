#!/usr/bin/env bash
# build.sh FOLDER: builds versitygw, a server that speaks S3, from its Go module into FOLDER, unless it is there already.
# Needs Go 1.26; five minutes on two cores when nothing is there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
version=$(cat "$here/versitygw.version")

bound=30m
# Two runs at once build it one after the other, so that the second finds it.
if [ -z "${ASH_BUILD_BOUNDED:-}" ]; then
  status=0
  ASH_BUILD_BOUNDED=yes timeout --foreground "$bound" flock "$folder/.lock" "$0" "$@" || status=$?
  [ "$status" != 124 ] || echo "The build took more than $bound and was stopped; another run goes on where it ended." >&2
  exit "$status"
fi

[ ! -x "$folder/versitygw" ] || exit 0
echo "Building versitygw $version ..." >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 GOFLAGS="" GOWORK=off GOBIN=$work go install -trimpath -ldflags "-s -w" \
  "github.com/versity/versitygw/cmd/versitygw@v$version"
# Beside its place until it is whole.
mv "$work/versitygw" "$folder/.building"
mv "$folder/.building" "$folder/versitygw"

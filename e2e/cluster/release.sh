#!/usr/bin/env bash
# release.sh COMMIT BUILD: makes ~/.cache/ash/releases/COMMIT with the programs `ash` and `ash-bridge` and the chart of an
# earlier commit of this repository, once, and says where that is. BUILD is the folder that this tree was built in: what
# both need of crates.io is taken from there. Exit code 3: this is a clone without the commit's history.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
commit=$1 build=$2
release=$HOME/.cache/ash/releases/$commit

mkdir -p "$(dirname "$release")"
# One run at a time: two would build the same.
exec 9>"$release.lock"
flock 9
if [ ! -e "$release/complete" ]; then
  if ! git -C "$top" cat-file -e "$commit^{commit}" 2>/dev/null; then
    # A clone without its history cannot have it, and fetches nothing by itself.
    if [ "$(git -C "$top" rev-parse --is-shallow-repository 2>/dev/null)" != false ]; then exit 3; fi
    echo "The commit $commit, from which the upgrade starts, is not in this clone. Fetch it:" >&2
    echo "  git fetch --unshallow     (or: git fetch origin $commit)" >&2
    exit 1
  fi
  echo "Building the release of $commit, once ..." >&2
  rm -rf "$release"
  mkdir -p "$release/source"
  git -C "$top" archive "$commit" | tar -x -C "$release/source"
  # What cargo tells the test that runs this is of another package; build scripts that look at it would run again, and
  # all that depends on them be compiled again, here and then in the tree.
  for name in $(compgen -e CARGO_ || true); do
    case $name in CARGO_MANIFEST_* | CARGO_PKG_* | CARGO_BIN_* | CARGO_CRATE_NAME | CARGO_PRIMARY_PACKAGE) unset "$name" ;; esac
  done
  # Copied, without what is of this repository: cargo does not tell crates of two checkouts apart that share a folder.
  if [ -d "$build/debug/deps" ]; then
    mkdir -p "$release/target/debug"
    (cd "$build/debug" && find deps build .fingerprint \( -name 'ash-*' -o -name 'ash_*' -o -name 'libash_*' \) -prune \
      -o -path 'deps/*' ! -name 'lib*' -prune -o -type f -print0 | tar -c --null -T -) | tar -x -C "$release/target/debug"
  fi
  # Of the whole workspace, so that what crates.io gives has the features that it has in this tree's build.
  (cd "$release/source" && CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=$release/target \
    cargo build --quiet --locked --workspace --bin ash --bin ash-bridge) >&2
  mkdir "$release/programs"
  for program in ash ash-bridge; do strip -o "$release/programs/$program" "$release/target/debug/$program"; done
  mv "$release/source/charts/ash" "$release/chart"
  rm -rf "$release/source" "$release/target"
  touch "$release/complete"
fi
echo "$release"

#!/usr/bin/env bash
# images.sh FOLDER PROGRAMS [TAG]: makes FOLDER/ash.tar and FOLDER/ash-bridge.tar, OCI archives of localhost/ash:TAG and
# localhost/ash-bridge:TAG (dev where there is none), from the Containerfiles that people use, without a registry or a container engine. PROGRAMS
# is where cargo put `ash` and `ash-bridge`. Needs root, mmdebstrap and buildah.
#
# The base is made from the packages of this machine's distribution, once: the programs were linked against its C
# library. It is kept in ~/.cache/ash/images, and so are the layers that have not changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
programs=$(cd "$2" && pwd)
tag=${3:-dev}
store=$HOME/.cache/ash/images
# Layers of earlier builds are found again; beyond this all are dropped but those of the images with a name.
bound_gib=4
mkdir -p "$store"

buildah() { command buildah --root "$store/root" --runroot "$store/run" "$@"; }
# The packages that a Containerfile asks for.
packages() { sed -n 's/^ARG PACKAGES="\(.*\)"/\1/p' "$1"; }

# One run at a time: two would make the same layers twice.
exec 9>"$store/.lock"
flock 9

# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
wanted=$(for part in bridge-image operator; do packages "$top/$part/Containerfile"; done | tr ' ' '\n' | sort -u | paste -sd,)
base=localhost/ash-base:$suite-$(sha256sum <<<"$wanted" | cut -c1-12)
# shellcheck disable=SC2016 # mmdebstrap hands the folder to the hook as $1
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
  echo "Making the base image from the packages of $suite ..." >&2
  work=$(mktemp -d)
  mmdebstrap --quiet --variant=apt --include="$wanted" --aptopt='APT::Sandbox::User "root"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' "$suite" "$work/base.tar"
  container=$(buildah from scratch)
  buildah add -q "$container" "$work/base.tar" / >/dev/null
  buildah commit -q --rm "$container" "$base" >/dev/null
  rm -rf "$work"
fi

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir "$context/prebuilt"

# image NAME CONTAINERFILE: builds one from the prebuilt programs, and writes its archive where it is another than
# before.
image() {
  local name=localhost/$1:$tag before after
  before=$(buildah images -q "$name" 2>/dev/null || true)
  buildah bud -q --isolation chroot --pull-never --layers --build-arg "BASE=$base" --build-arg PACKAGES= \
    --build-arg PROGRAMS=prebuilt -t "$name" -f "$2" "$context" >/dev/null
  after=$(buildah images -q "$name")
  if [ "$(cat "$folder/$1.id" 2>/dev/null)" != "$after" ] || [ ! -e "$folder/$1.tar" ]; then
    rm -f "$folder/$1.tar" "$folder/$1.id"
    buildah push -q --disable-compression "$name" "oci-archive:$folder/$1.tar:$name"
    echo "$after" >"$folder/$1.id"
  fi
  # The image that had this name, with the layers that only it had.
  if [ -n "$before" ] && [ "$before" != "$after" ]; then buildah rmi "$before" >/dev/null 2>&1 || true; fi
}

# Without symbols: they are most of a debug build. The same input gives the same bytes, so that layers are found again.
for program in ash ash-bridge; do strip -o "$context/prebuilt/$program" "$programs/$program"; done
claude=$("$top/bridge-image/install-claude-code.sh")
ln "$claude" "$context/prebuilt/claude" 2>/dev/null || cp "$claude" "$context/prebuilt/claude"
image ash-bridge "$top/bridge-image/Containerfile"
image ash "$top/operator/Containerfile"
if [ "$(du -s --block-size=1G "$store" | cut -f1)" -gt $bound_gib ]; then buildah rmi --prune --force >/dev/null 2>&1 || true; fi

#!/usr/bin/env bash
# Installs what only the tests need: Postgres, HAProxy and Python from the distribution, the published Python client of Ash
# (pinned in e2e/python-client.version) and, where there is Go, the programs of a local Kubernetes (e2e/cluster), each
# in a folder of its own where nothing else of this machine uses it. Does nothing when all is there; says what to do
# where it cannot.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
. "$top/scripts/apt-install.sh"
version=$(cat "$top/e2e/python-client.version")
target=$HOME/.cache/ash/python-client-$version

"$top/scripts/install-fleet-tools.sh"
missing=()
command -v python3 >/dev/null || missing+=(python3 python3-venv)
if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi

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

# Without Go the tests that need Kubernetes say that they are skipped; in CI they fail. Of root, who may make the nodes
# of a cluster, everything that one needs; of others, what the tests of the definitions need.
if command -v go >/dev/null; then
  what=server
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    what=cluster
    missing=()
    for tool in iptables ipset conntrack openssl gcc mmdebstrap buildah; do
      command -v $tool >/dev/null || missing+=("$tool")
    done
    command -v ip >/dev/null || missing+=(iproute2)
    command -v strip >/dev/null || missing+=(binutils)
    # Git over SSH: a server that is only a program, and keys for it.
    command -v dropbear >/dev/null || missing+=(dropbear-bin)
    command -v ssh-keygen >/dev/null || missing+=(openssh-client)
    command -v git >/dev/null || missing+=(git)
    [ -e /usr/include/seccomp.h ] || missing+=(libseccomp-dev)
    if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi
  fi
  "$top/e2e/cluster/build.sh" "$HOME/.cache/ash/k8s-$(cat "$top/e2e/cluster/kubernetes.version")" $what
  "$top/scripts/install-chart-tools.sh"
else
  echo "Go is missing (https://go.dev/dl): the tests that need Kubernetes or Helm will be skipped." >&2
fi

# Sourced: `install_packages NAME...` installs packages of the distribution, or says what to do where it cannot.
install_packages() {
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then sudo=(sudo -n); else
      echo "Missing: $*. Install them first: sudo apt-get install -y $*" >&2
      exit 1
    fi
  fi
  command -v apt-get >/dev/null || { echo "Missing: $*. Install them with your system's package manager." >&2; exit 1; }
  echo "Installing $* ..." >&2
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

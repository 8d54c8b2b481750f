# shellcheck shell=bash
# Sourced by cluster.sh: what its parts share.

milliseconds() { date +%s%3N; }
took() { printf '%-12s %6d ms\n' "$1" $(($(milliseconds) - begun)); }

# until_ok SECONDS COMMAND...: repeats a command until it succeeds.
until_ok() {
  local end=$(($(milliseconds) + $1 * 1000))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$(milliseconds)" -lt $end ] || { echo "waited in vain for: $*" >&2; return 1; }
    sleep .1
  done
}

# A process and when it started: a number alone may be another process by now.
process_key() { echo "$1 $(sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20)"; }
# Whether the process that a file names still runs.
is_alive() {
  local pid start
  read -r pid start 2>/dev/null <"$1" && [ "$(process_key "$pid" 2>/dev/null)" = "$pid $start" ]
}

# The nodes that were started, also those that have been killed.
node_numbers() {
  local file
  for file in "$cluster"/node*/pid1; do
    [ ! -e "$file" ] || basename "$(dirname "$file")" | cut -c5-
  done
}
is_up() { is_alive "$cluster/node$1/pid1"; }
first_process() { cut -d' ' -f1 "$cluster/$1/pid1"; }
inside() { nsenter -t "$(first_process "$1")" -m -n -p -i -u -- "${@:2}"; }
kubectl() { inside node1 "$programs/kubectl" --kubeconfig "$pki/admin.kubeconfig" --cache-dir "$cluster/kubectl-cache" "$@"; }

# start NODE NAME COMMAND...: a daemon of a node. Its parent stays outside: its process is the parent's only child.
start() {
  setsid nsenter -t "$(first_process "$1")" -m -n -p -i -u -- "${@:3}" >>"$cluster/$1/$2.log" 2>&1 </dev/null &
  process_key $! >"$cluster/$1/$2.parent"
  disown
}
# keep NODE NAME COMMAND...: the same for a daemon that starts again whenever it ends, as a service manager has it: a
# kubelet ends where its containerd is not ready yet.
keep() {
  # shellcheck disable=SC2016 # the shell inside expands it
  start "$1" "$2" sh -c 'while :; do "$@"; echo "ended with $?; starts again"; sleep 1; done' keep "${@:3}"
}
# stop NODE NAME: kills a daemon and waits until it is gone.
stop() {
  local parent
  is_alive "$cluster/$1/$2.parent" || { echo "$2 of $1 does not run" >&2; return 1; }
  parent=$(cut -d' ' -f1 "$cluster/$1/$2.parent")
  kill -9 "$(children_of "$parent")"
  until_ok 10 test ! -d "/proc/$parent"
}
# The process of a parent that has one.
children_of() { tr -d ' ' <"/proc/$1/task/$1/children"; }

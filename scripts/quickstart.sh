#!/usr/bin/env bash
# A first conversation with an agent: builds Ash, starts a server on ./data, deploys the sample agent, talks to it, and ends.
# With ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN) it talks to the real model; without, to the scripted one of e2e/, so that the
# real Claude Code runs the same path offline.
set -euo pipefail
cd "$(dirname "$0")/.."

listen=${ASH_LISTEN:-127.0.0.1:4100}
data=${ASH_DATA_DIR:-./data}
bin=target/release
work=$(mktemp -d)
server= model=

clean_up() {
  trap '' INT TERM
  for process in $server $model; do kill "$process" 2>/dev/null || true; done
  for process in $server $model; do wait "$process" 2>/dev/null || true; done
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "Building Ash (the first time takes 18 minutes of processor time; the last crate is the longest) ..."
cargo build --release --locked -p ash -p ash-bridge -p ash-e2e --bin ash --bin ash-bridge --bin scripted-model

if [ -z "${ANTHROPIC_API_KEY:-}${ANTHROPIC_AUTH_TOKEN:-}" ]; then
  say "No ANTHROPIC_API_KEY is set: the scripted model answers, offline. Set the key to talk to the real model."
  $bin/scripted-model --port-file "$work/port" >"$work/model.log" 2>&1 &
  model=$!
  for _ in $(seq 100); do [ -s "$work/port" ] && break; sleep 0.05; done
  [ -s "$work/port" ] || { cat "$work/model.log" >&2; exit 1; }
  export ANTHROPIC_BASE_URL="http://127.0.0.1:$(cat "$work/port")" ANTHROPIC_API_KEY=offline
fi

say "Starting \`ash serve\` on $listen, with its data in $data ..."
# In a process group of its own, so that Ctrl-C reaches this script first, which then stops it in order.
setsid $bin/ash serve --listen "$listen" --data-dir "$data" >"$work/server.log" 2>&1 &
server=$!
export ASH_URL=http://$listen
ash() { $bin/ash --data-dir "$data" "$@"; }
for _ in $(seq 600); do
  ash health >/dev/null 2>&1 && break
  kill -0 $server 2>/dev/null || { echo "The server did not start:" >&2; tail -n 20 "$work/server.log" >&2
    echo "Another address or data directory: ASH_LISTEN=127.0.0.1:4200 ASH_DATA_DIR=./data2 make quickstart" >&2; exit 1; }
  sleep 0.05
done
sed -nE 's/^.*NOT in force protection="([^"]*)" detail="(.*)"$/  not in force: \1: \2/p' "$work/server.log"

say "Deploying the sample agent of config/samples/assistant ..."
ash deploy config/samples/assistant --name assistant

say "A conversation of two turns:"
session=$(ash session create assistant --json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -n 1)
for message in "Which files are here? Look with your tools." "What did I say before?"; do
  printf '\n> %s\n' "$message"
  ash session send "$session" "$message"
done
ash session end "$session" >/dev/null

say "It works. To go on by hand:"
cat <<EOF
  export ANTHROPIC_API_KEY=...            # your key; it never enters a sandbox. Without one, in another terminal:
                                          #   $bin/scripted-model --listen 127.0.0.1:4101
                                          # and here: export ANTHROPIC_BASE_URL=http://127.0.0.1:4101 ANTHROPIC_API_KEY=offline
  $bin/ash serve                 # the server, on ${ASH_LISTEN:-127.0.0.1:4100}, with ${ASH_DATA_DIR:-./data}
  $bin/ash chat assistant        # in another terminal: talk to the agent
  $bin/ash deploy ./my-agent --name mine    # any folder with a CLAUDE.md
  $bin/ash --help
EOF

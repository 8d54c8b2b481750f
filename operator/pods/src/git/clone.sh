set -u
# The termination message keeps 4096 bytes.
end() { printf '%s' "$1" | head -c 3000 > /dev/termination-log; exit "$2"; }
failed() {
  text=$(tail -c 2000 /tmp/error)
  case "$text" in
    *"uthentication failed"*|*"could not read Username"*|*"could not read Password"*|*"ermission denied"*|*"returned error: 403"*|*"Host key verification"*) end "denied: $text" 1 ;;
    *"find remote ref"*|*"not our ref"*|*"unadvertised object"*|*"epository not found"*|*"does not appear to be a git repository"*|*"' not found"*) end "not-found: $text" 1 ;;
    *"returned error: 30"*) end "unreachable: the server sends Git to another address, where it does not take the credential: put that address into spec.source.git.url: $text" 1 ;;
    *) end "unreachable: $text" 1 ;;
  esac
}
wrong() { end "invalid: $1" 1; }
export GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1
if [ -f /credential/password ]; then
  printf '#!/bin/sh\ncase "$1" in Username*) cat /credential/username 2>/dev/null || echo git ;; *) cat /credential/password ;; esac\n' > /tmp/ask
  chmod 700 /tmp/ask
  export GIT_ASKPASS=/tmp/ask
  # Whoever answers Git's question is the server of the URL: it is followed nowhere else, and not to where everybody reads along.
  git config --global http.followRedirects false
  git config --global protocol.http.allow never
fi
if [ -f /credential/ssh-privatekey ]; then
  [ -f /credential/known_hosts ] || end "denied: the Secret has ssh-privatekey, but no known_hosts to know the server by: add that key with what ssh-keyscan prints, once you have compared it" 1
  # A key whose last line has no end is none for ssh.
  (umask 077 && { cat /credential/ssh-privatekey; echo; } > /tmp/key)
  known="-o StrictHostKeyChecking=yes -o UserKnownHostsFile=/credential/known_hosts"
  export GIT_SSH_COMMAND="ssh -i /tmp/key -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=30 $known"
fi
# Authorities of the installation and of the Secret, beside the image's own.
: > /tmp/authorities
part=1
while eval "text=\${ASH_GIT_CA_$part-}" && [ -n "$text" ]; do
  printf '%s' "$text" >> /tmp/authorities
  part=$((part + 1))
done
if [ -f /credential/ca.crt ]; then { echo; cat /credential/ca.crt; } >> /tmp/authorities; fi
if [ -s /tmp/authorities ]; then
  { echo; cat /etc/ssl/certs/ca-certificates.crt; } >> /tmp/authorities
  export GIT_SSL_CAINFO=/tmp/authorities
fi
git init -q /tmp/repository 2> /tmp/error || failed
cd /tmp/repository || exit 1
git -c protocol.file.allow=never fetch -q --depth 1 -- "$ASH_GIT_URL" "$ASH_GIT_REVISION" 2> /tmp/error || failed
git -c advice.detachedHead=false checkout -q FETCH_HEAD 2> /tmp/error || failed
commit=$(git rev-parse HEAD)
cd "./$ASH_GIT_FOLDER" 2> /dev/null || end "not-found: the repository has no folder $ASH_GIT_FOLDER at this revision" 1
# Whoever writes to the repository has no say over files outside of it: the credential is one.
ASH_GIT_HERE=$(pwd -P)
export ASH_GIT_HERE
case "$ASH_GIT_HERE/" in /tmp/repository/.git/*) wrong "the folder $ASH_GIT_FOLDER is Git's own" ;; /tmp/repository/*) ;; *) wrong "the folder $ASH_GIT_FOLDER is a link that leaves the repository" ;; esac
find . -path ./.git -prune -o -type l -exec sh -c '
  for link; do
    target=$(readlink -e -- "$link") || { printf "\"%s\" is a link to nothing: remove it" "$link"; continue; }
    case "$target" in
      "$ASH_GIT_HERE"/.git|"$ASH_GIT_HERE"/.git/*) ;;
      "$ASH_GIT_HERE"/*) continue ;;
    esac
    printf "\"%s\" is a link that leaves the folder: put a copy of its target there instead" "$link"
  done' sh {} + > /tmp/wrong
[ ! -s /tmp/wrong ] || wrong "$(cat /tmp/wrong)"
# Links that stay inside are read through, as ash deploy does.
tar --create --dereference --hard-dereference --exclude=./.git --file=/tmp/archive . 2> /tmp/error || failed
zstd -q -9 --rm /tmp/archive -o /tmp/packed 2> /tmp/error || failed
[ "$(stat -c %s /tmp/packed)" -le "$ASH_GIT_MAX_BYTES" ] || wrong "the folder has more than $((ASH_GIT_MAX_BYTES >> 20)) MiB, compressed: upload it with ash deploy instead, or name a smaller folder in spec.source.git.path"
# In one line: a node puts its own beginning before each.
base64 -w 0 /tmp/packed
echo
end "ok $commit $(sha256sum /tmp/packed | cut -d' ' -f1)" 0

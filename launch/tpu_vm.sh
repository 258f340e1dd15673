#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one queued resource of one or several slices, one command on all workers.
# docs/cloud.md has a walkthrough. Needs gcloud, git and tar; bash 3.2 (macOS) is enough.
set -euo pipefail

usage() {
  cat <<'END'
launch/tpu_vm.sh SUBCOMMAND --name=NAME --zone=ZONE [options] [-- COMMAND ...]

  create    request the TPUs; returns at once, the request waits in the queue
  wait      wait until the TPUs are ready
  install   copy this checkout (tracked and new files) to all workers and install it there
  run       start COMMAND on all workers; it keeps running if the connection is lost
  tail      follow the output of one worker
  status    state of the request and, if it is active, of the run on each worker
  stop      send SIGTERM to the run on all workers: it saves a checkpoint and ends
  resume    create the TPUs again if they were preempted; install; run COMMAND
  delete    delete the TPUs and the request, which ends the billing

  --name=NAME             name of the queued resource; its nodes are named after it
  --zone=ZONE             such as us-east5-a
  --project=ID            default: that of gcloud
  --type=TYPE             accelerator type: v5litepod-16, v5p-16 (default), v6e-16, ...
  --slices=N              number of slices of that type (default 1)
  --tier=TIER             on-demand (default), spot or reserved
  --network=NAME          default: default
  --service-account=MAIL  default: that of Compute Engine
  --node=K --worker=K     worker whose output tail follows (default 0 and 0)
  --dry-run               print the commands only
END
}

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# quotes a word for a shell; bash 3.2 does not have ${x@Q}
quote() {
  case $1 in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf '%s' "$1" ;;
  esac
}

quote_all() {
  local word line=''
  for word in "$@"; do line+="${line:+ }$(quote "$word")"; done
  printf '%s' "$line"
}

do_or_print() {
  if [ "$dry_run" = yes ]; then
    quote_all "$@"
    echo
  else
    "$@"
  fi
}

[ $# -gt 0 ] || { usage; exit 2; }
case $1 in
  create | wait | install | run | tail | status | stop | resume | delete) subcommand=$1 ;;
  -h | --help | help) usage; exit 0 ;;
  *) fail "$1 is not a subcommand: give create, wait, install, run, tail, status, stop, resume or delete." ;;
esac
shift

name='' zone='' project='' type=v5p-16 slices=1 tier=on-demand network=default service_account=''
node=0 worker=0 dry_run=no
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --tier=*) tier=${1#*=} ;;
    --network=*) network=${1#*=} ;;
    --service-account=*) service_account=${1#*=} ;;
    --node=*) node=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --) shift; break ;;
    *) fail "$1 is not an option: see launch/tpu_vm.sh --help." ;;
  esac
  shift
done

[ -n "$name" ] || fail '--name is missing: give the queued resource a name, e.g. --name=radd.'
[ -n "$zone" ] || fail '--zone is missing: give one that has your TPUs, e.g. --zone=us-east5-a.'
case $slices in
  '' | *[!0-9]* | 0*) fail "--slices=$slices is out of range: give a whole number of at least 1." ;;
esac
# https://cloud.google.com/tpu/docs/runtimes
case $type in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) fail "--type=$type is not supported: give v5litepod-N, v5p-N or v6e-N." ;;
esac
case $tier in
  on-demand | spot | reserved) ;;
  *) fail "--tier=$tier is not a tier: give on-demand, spot or reserved." ;;
esac
case $subcommand in
  run | resume) [ $# -gt 0 ] || fail 'The command is missing: give it after --.' ;;
  *) [ $# -eq 0 ] || fail "$subcommand takes no command: only run and resume do." ;;
esac

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
gcloud_qr=(gcloud compute tpus queued-resources)

on_workers() { # NODES WORKERS SCRIPT
  do_or_print "${gcloud_qr[@]}" ssh "$name" "${where[@]}" "--node=$1" "--worker=$2" "--command=$3"
}

state() {
  "${gcloud_qr[@]}" describe "$name" "${where[@]}" '--format=value(state.state)' 2>/dev/null || true
}

create() {
  local words=(create "$name" "${where[@]}" "--accelerator-type=$type")
  words+=("--runtime-version=$runtime" "--network=$network")
  if [ "$slices" = 1 ]; then
    words+=("--node-id=$name")
  else
    words+=("--node-count=$slices" "--node-prefix=$name")
  fi
  [ "$tier" = on-demand ] || words+=("--$tier")
  [ -z "$service_account" ] || words+=("--service-account=$service_account")
  do_or_print "${gcloud_qr[@]}" "${words[@]}"
}

wait_until_active() {
  if [ "$dry_run" = yes ]; then
    echo "# every 30 s, until the state is ACTIVE:"
    do_or_print "${gcloud_qr[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
    return
  fi
  local now last=''
  while now=$(state); [ "$now" != ACTIVE ]; do
    [ "$now" = "$last" ] || printf '%s: %s\n' "$(date +%T)" "$now"
    last=$now
    case $now in
      '') fail "$name does not exist, or gcloud cannot see it: try status." ;;
      FAILED | SUSPENDING | SUSPENDED)
        printf 'error: %s is %s: see status, and resume or delete it.\n' "$name" "$now" >&2
        exit 1
        ;;
    esac
    sleep "${DDM_POLL:-30}"
  done
}

install() {
  local root archive
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=${TMPDIR:-/tmp}/ddm_jax-$name.tar.gz
  # git still lists a file whose deletion is not committed
  # shellcheck disable=SC2016 # the inner shell expands it
  do_or_print bash -c 'set -eo pipefail; cd "$1"
git ls-files -co --exclude-standard |
  while IFS= read -r file; do [ ! -e "$file" ] || printf "%s\n" "$file"; done |
  tar -czf "$2" -T -' pack "$root" "$archive"
  do_or_print "${gcloud_qr[@]}" scp "$archive" "$name:ddm_jax.tar.gz" "${where[@]}" \
    --node=all --worker=all
  # the image's Python is older than ddm_jax needs; uv installs another
  on_workers all all "set -e
mkdir -p ddm_jax && tar -xzf ddm_jax.tar.gz -C ddm_jax && cd ddm_jax
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
PATH=\$HOME/.local/bin:\$PATH
[ -d .venv ] || uv venv --quiet --python 3.12 .venv
uv pip install --quiet --python .venv/bin/python -e '.[tpu]'"
}

run() {
  # setsid and nohup: it outlives this connection; the inner shell stays to log how it ended
  on_workers all all "cd ddm_jax || exit 1
if [ -e run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then
  echo 'error: a run is in progress: stop it first.' >&2
  exit 1
fi
PATH=\$PWD/.venv/bin:\$PATH PYTHONUNBUFFERED=1 nohup setsid bash -c '
  \"\$@\" &
  echo \$! >run.pid
  wait \$!
  echo \"[ended with code \$?, \$(date)]\"
' run $(quote_all "$@") >>run.log 2>&1 </dev/null &
echo started"
}

stop() {
  # shellcheck disable=SC2016 # the worker's shell expands it
  on_workers all all 'cd ddm_jax && kill -TERM "$(cat run.pid)" && echo asked to save and stop'
}

status() {
  do_or_print "${gcloud_qr[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
  [ "$dry_run" = yes ] || [ "$(state)" = ACTIVE ] || return 0
  # shellcheck disable=SC2016 # the worker's shell expands it
  on_workers all all 'cd ddm_jax 2>/dev/null && [ -e run.pid ] || { echo "$(hostname): no run"; exit; }
if kill -0 "$(cat run.pid)" 2>/dev/null; then word=running; else word=ended; fi
echo "$(hostname): $word; $(tail -n 1 run.log)"'
}

delete() {
  do_or_print "${gcloud_qr[@]}" delete "$name" "${where[@]}" --force --quiet
}

resume() {
  if [ "$dry_run" = yes ]; then
    echo '# unless the state is ACTIVE:'
    delete
    create
  else
    case $(state) in
      ACTIVE) ;;
      '') create ;;
      FAILED | SUSPENDING | SUSPENDED) delete && create ;;
      *) ;; # it is already in the queue
    esac
  fi
  wait_until_active
  install
  run "$@"
}

case $subcommand in
  wait) wait_until_active ;;
  tail) on_workers "$node" "$worker" 'tail -n 100 -F ddm_jax/run.log' ;;
  *) "$subcommand" "$@" ;;
esac

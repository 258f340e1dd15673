#!/usr/bin/env bash
# Runs a command, passes SIGTERM on to it, and exits with 75 ("temporary failure" of sysexits.h)
# where the command stopped before its end: a scheduler that takes 0 for "done" would not start it
# again. Slurm and Kubernetes are told to start again after 75; ddm_jax.main says "Stopped and
# saved" in process 0, and its exit code is 0.
set -uo pipefail

log=$(mktemp)
export PYTHONUNBUFFERED=1 # a pipe would hold lines back
exec 3> >(exec tee "$log")
shown=$!
"$@" >&3 2>&1 3>&- &
child=$!
exec 3>&-
trap 'kill -TERM "$child" 2>/dev/null' TERM
# a signal ends `wait`, not the command
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
wait "$child"
code=$?
wait "$shown"
if [ "$code" -eq 0 ] && grep -q '^Stopped and saved' "$log"; then code=75; fi
rm -f "$log"
exit "$code"

#!/usr/bin/env bash
# Runs a command, passes SIGTERM on to it, and exits with 75 ("temporary failure" of sysexits.h) if
# the command stopped before its end. ddm_jax.main then prints "Stopped and saved" in process 0 and
# exits with 0, which a scheduler takes for "done"; launch/slurm.sbatch and launch/gke.py restart
# the job after 75.
set -uo pipefail

log=$(mktemp)
export PYTHONUNBUFFERED=1 # a pipe would delay lines
exec 3> >(exec tee "$log")
shown=$!
"$@" >&3 2>&1 3>&- &
child=$!
exec 3>&-
trap 'kill -TERM "$child" 2>/dev/null' TERM
# a signal ends `wait`, but not the command
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
wait "$child"
code=$?
wait "$shown"
if [ "$code" -eq 0 ] && grep -q '^Stopped and saved' "$log"; then code=75; fi
rm -f "$log"
exit "$code"

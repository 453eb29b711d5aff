#!/usr/bin/env bash
# Trains as N processes on this machine, which talk over loopback; the same command goes on.
#
#   launch/local_multiprocess.sh 2                                       the quickstart
#   launch/local_multiprocess.sh 4 --config=configs/beauty.py --workdir=runs/beauty
#
# Needs Linux. ARGS and BBQREC_EXTRAS are those of launch/run. Process I takes GPU I and no other
# (one process, launch/run, takes all of them); JAX_PLATFORMS=cpu leaves the GPUs alone. Process 0
# prints as if it were the only one; the lines of the others begin with their number: [1].
#
# Ctrl-C and SIGTERM go to all processes, which save and end; a second Ctrl-C does not wait. Where
# one process fails, the others are stopped, and killed if they are still there after 60 seconds
# (BBQREC_GRACE_SECONDS). The exit status is that of the first that failed (130 and 143: stopped and
# saved), or 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "launch/local_multiprocess.sh: the first argument is the number of processes, 1 or more;" \
    "got '${1:-}'." >&2
  exit 1
fi
num_processes="$1"
shift
if [[ $# -eq 0 ]]; then
  set -- --config=configs/quickstart.py --workdir=runs/quickstart
fi

launch/setup
port="$(.venv/bin/python -c 'import socket
with socket.create_server(("127.0.0.1", 0)) as server:
  print(server.getsockname()[1])')"
export JAX_COORDINATOR_BIND_ADDRESS="127.0.0.1:$port"  # JAX's default is every network.

# Only noted here and passed on below, so that none gets lost while processes are being started.
signal=""
trap 'signal=INT' INT
trap 'signal=TERM' TERM HUP

prefix() {
  trap '' INT TERM HUP  # Ends with the process, of which it prints the last lines.
  local line
  while IFS= read -r line || [[ -n "$line" ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

# A session of its own, so that the terminal's Ctrl-C reaches a process once: through this script.
run_process() {
  trap - INT  # Which a command behind "&" would ignore.
  export JAX_LOCAL_DEVICE_IDS="$1"
  exec setsid launch/run "${@:2}" "--coordinator=127.0.0.1:$port" \
    "--num_processes=$num_processes" "--process_id=$1"
}

pids=()
for ((i = 0; i < num_processes; i++)); do
  if ((i == 0)); then
    run_process "$i" "$@" &
  else
    run_process "$i" "$@" > >(prefix "$i") 2> >(prefix "$i" >&2) &
  fi
  pids+=("$!")
done

failed=0     # The status of the first that failed.
stopping=""  # Whether the processes were told to stop.
deadline=0   # When those that are left are killed, by bash's clock.
exec 3>&2 2> /dev/null  # Where bash writes a line of its own for each process that a signal ended.
while ((${#pids[@]})); do
  if [[ -n "$signal" ]]; then
    kill -s "$signal" "${pids[@]}" || true
    signal="" stopping=1
  fi
  running="$(jobs -pr)" || continue  # Ctrl-C ended the subshell too; here it is noted by now.
  for i in "${!pids[@]}"; do
    if [[ " ${running//$'\n'/ } " != *" ${pids[i]} "* ]]; then
      status=0
      wait "${pids[i]}" || status=$?
      unset "pids[i]"
      if ((status && !failed)); then
        failed=$status first=$i
        deadline=$((SECONDS + ${BBQREC_GRACE_SECONDS:-60}))
      fi
    fi
  done
  if ((failed && ${#pids[@]})); then
    if [[ -z "$stopping" ]]; then
      echo "launch/local_multiprocess.sh: process $first ended with status $failed; stopping the" \
        "others." >&3
      kill "${pids[@]}" || true
      stopping=1
    elif ((SECONDS >= deadline)); then
      kill -KILL "${pids[@]}" || true
    fi
  fi
  sleep 0.2 || true  # The terminal's Ctrl-C ends it.
done
exit "$failed"

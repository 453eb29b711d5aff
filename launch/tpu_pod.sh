#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU VM or pod slice; the same command goes on.
#
# Needs gcloud, logged in, with a zone (gcloud config set compute/zone ZONE). Once per TPU, here for
# the 4 hosts of a v5e-16; hosts need Python 3.11 or later, and for the workdir a folder that they
# share, such as Filestore's:
#
#   gcloud compute tpus tpu-vm create NAME --accelerator-type=v5litepod-16 \
#     --version=v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command="sudo apt-get update &&
#     sudo apt-get install -y python3.11-venv nfs-common && sudo mkdir -p /mnt/runs &&
#     sudo mount ADDRESS:/SHARE /mnt/runs && sudo chmod 777 /mnt/runs"
#
# Then, as often as needed:
#
#   launch/tpu_pod.sh run NAME --config=configs/beauty.py --workdir=/mnt/runs/beauty
#   launch/tpu_pod.sh stop NAME     saves on all hosts and ends the run
#   gcloud compute tpus tpu-vm delete NAME
#
# `run` copies this working tree to ~/bbqrec_jax of every host, sets it up there and starts one
# process per host; data in a relative path lie there too, on every host. It shows what the
# processes print, and ends with their status (143: stopped and saved). Ctrl-C and a lost connection
# only end the showing: ~/bbqrec_jax/run.log of host 0 has it all. After a preemption make the TPU
# anew and give the same `run`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "launch/tpu_pod.sh: $*" >&2
  exit 1
}

on_all_hosts() {  # NAME COMMAND
  gcloud compute tpus tpu-vm ssh "$1" --worker=all --command="$2"
}

# For the shells of the hosts. The brackets keep the pattern from matching these shells themselves.
# shellcheck disable=SC2016
readonly FIND='pgrep -u "$USER" -f "[b]bqrec_jax.main"'

run_on() {  # NAME ARGS
  local name="$1" archive
  shift
  archive="$(mktemp -d)/bbqrec_jax.tar.gz"
  tar -czf "$archive" --exclude=__pycache__ \
    bbqrec_jax configs launch pyproject.toml requirements.txt README.md LICENSE
  on_all_hosts "$name" "if $FIND > /dev/null; then
    echo 'launch/tpu_pod.sh: a run is going on; launch/tpu_pod.sh stop $name ends it.' >&2
    exit 1
  fi"
  gcloud compute tpus tpu-vm scp "$archive" "$name:bbqrec_jax.tar.gz" --worker=all
  rm -r "$(dirname "$archive")"
  # A session of its own, and a file for its output, let the run outlive the connection.
  on_all_hosts "$name" "mkdir -p bbqrec_jax && cd bbqrec_jax || exit
    tar -xzf ../bbqrec_jax.tar.gz && : > run.log || exit
    BBQREC_EXTRAS=tpu setsid launch/run --distributed$(printf ' %q' "$@") > run.log 2>&1 &
    tail -n +1 -f --pid=\$! run.log
    wait \$!"
}

case "${1:-}" in
  run)
    [[ $# -ge 3 ]] || fail "say where and what to run: run NAME --config=... --workdir=..."
    run_on "${@:2}"
    ;;
  stop)
    [[ $# -eq 2 ]] || fail "say which TPU: stop NAME."
    on_all_hosts "$2" "$FIND | xargs -r kill; while $FIND > /dev/null; do sleep 1; done"
    ;;
  *) fail "the first argument is 'run' or 'stop'; got '${1:-}'." ;;
esac

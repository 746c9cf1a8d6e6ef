#!/usr/bin/env bash
# What one TPU worker does, called by run.sh over ssh in the home folder's subl_jax.
#   worker.sh install           the package and its dependencies, in an environment of its own
#   worker.sh run TOKEN ARG ... launch/sweep.py ARG ..., once for each token; its exit status is the last line
#   worker.sh stop              ends a sweep that is still running, with time to store what it has
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
state=$HOME/.subl_jax
python=$state/venv/bin/python

install() {
  stop
  mkdir -p "$state"
  # The images of TPU VMs come with an older Python than the package needs: uv brings its own.
  python3 -m pip install --quiet --user uv
  [[ -x $python ]] || "$HOME/.local/bin/uv" venv --quiet --python 3.11 "$state/venv"
  "$HOME/.local/bin/uv" pip install --quiet --python "$python" -c constraints.txt -e '.[chat,tpu]'
}

run() {
  local token=$1 status=0
  shift
  stop
  # gcloud runs the command again when a connection breaks: that must not start a second sweep beside the first.
  if mkdir "$state/started-$token" 2>/dev/null; then
    (
      echo "$BASHPID" >"$state/pid"
      exec "$python" launch/sweep.py "$@"
    ) &
    wait $! || status=$?
    rm -f "$state/pid"
  else
    status=75
  fi
  printf '\nsubl_jax %s: exit status %s\n' "$token" "$status"
}

stop() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return 0
  rm -f "$state/pid"
  for signal in TERM KILL; do
    for ((second = 0; second < 60; second++)); do
      # By its command line too: after a reboot the number may be another process's.
      grep -qa launch/sweep.py "/proc/$pid/cmdline" 2>/dev/null || return 0
      ((second)) || kill "-$signal" "$pid" 2>/dev/null || return 0
      sleep 1
    done
  done
}

"$@"

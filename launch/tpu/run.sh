#!/usr/bin/env bash
# Runs a sweep on a Cloud TPU until it is done: create, install, run on every worker, start again after a preemption,
# delete. README.md has recipes; tests/test_launch.py plays the story with a stand-in for gcloud.
set -euo pipefail

usage() {
  cat <<'END'
launch/tpu/run.sh --zone=ZONE [OPTION ...] -- --config FILE --workdir gs://BUCKET/FOLDER [SWEEP OPTION ...]

  --zone=ZONE        where; needed
  --type=TYPE        v5litepod-8 (default), v6e-8, v5litepod-256, ...
  --name=NAME        name of the TPU VM and of the queued resource; default subl-jax
  --project=PROJECT  default: gcloud's own
  --runtime=VERSION  software of the TPU VM; default: the one for its type
  --spot             cheaper, may be preempted at any time
  --queued           ask through a queued resource, and wait in the queue
  --env=NAME[=VALUE] environment of the sweep, may be repeated; without =VALUE: the value it has here, never printed
  --limit=N          starts after the first one before giving up; default 100
  --logs=DIR         one log per worker; default runs/tpu/NAME
  --poll=SECONDS     how often to look at the TPU; default 30
  --keep             leave the TPU at the end, and use one of this name that is there already
  --dry_run          print every command, run none

What follows -- goes to launch/sweep.py. Exit status: the sweep's own 0, 1 or 2 (2 also for a mistake here);
75 after --limit starts, or 130 after ctrl-C: what was computed is stored, the same command goes on.
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
name=subl-jax type=v5litepod-8 zone='' project='' runtime='' logs='' limit=100 poll=30
spot=false queued=false keep=false dry_run=false
environment=() secrets=() sweep=()

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

say() {
  # A closed terminal must not keep the end of the story from happening.
  if $dry_run; then printf '# %s\n' "$*"; else printf '%(%H:%M:%S)T %s\n' -1 "$*"; fi 2>/dev/null || true
}

# --- what is asked for ---

parse() {
  local option value
  while (($#)); do
    option=${1%%=*}
    case $1 in
      --) shift && sweep=("$@") && return ;;
      --spot | --queued | --keep | --dry_run) declare -g "${1#--}=true" && shift && continue ;;
      -h | --help) usage && exit 0 ;;
      --*=*) value=${1#*=} && shift ;;
      --*) value=${2-} && shift $(($# > 1 ? 2 : 1)) ;;
      *) fail "$1: not understood; options of the sweep follow --" ;;
    esac
    case $option in
      --zone | --type | --name | --project | --runtime | --limit | --logs | --poll)
        [[ $value && $value != --* ]] || fail "$option: expected a value, as in $option=VALUE"
        declare -g "${option#--}=$value"
        ;;
      --env) parse_environment "$value" ;;
      *) fail "$option: no such option; see --help (options of the sweep follow --)" ;;
    esac
  done
}

parse_environment() {
  local variable=${1%%=*}
  [[ $variable =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--env=$1: expected NAME or NAME=VALUE"
  if [[ $1 == *=* ]]; then
    environment+=("$1")
  else
    [[ ${!variable-} ]] || fail "--env=$variable: not set here; expected --env=$variable=VALUE"
    [[ ${!variable} != *\'* ]] || fail "--env=$variable: its value has a quote, and could be printed in pieces"
    environment+=("$variable=${!variable}")
    secrets+=("${!variable}")
  fi
}

check() {
  [[ $zone ]] || fail "--zone is needed, for example --zone=us-west4-a"
  [[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
    fail "--name=$name: expected lower-case letters, digits and dashes, a letter first"
  [[ $type =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] || fail "--type=$type: expected a TPU type such as v5litepod-8 or v6e-8"
  [[ $limit =~ ^[0-9]+$ ]] || fail "--limit=$limit: expected a whole number"
  [[ $poll =~ ^([0-9]+|[0-9]*\.[0-9]+)$ && ! $poll =~ ^[0.]*$ ]] || fail "--poll=$poll: expected seconds above 0"
  if [[ ! $runtime ]]; then
    case $type in
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v[234]-*) runtime=tpu-ubuntu2204-base ;;
      *) fail "--type=$type: its runtime version is not known here; name it with --runtime=VERSION" ;;
    esac
  fi
  check_sweep
  logs=${logs:-$root/runs/tpu/$name}
  $dry_run || [[ $(type -P gcloud) ]] || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
}

check_sweep() {
  local config='' workdir='' i
  for i in "${!sweep[@]}"; do
    case ${sweep[i]} in
      --config=* | -config=*) config=${sweep[i]#*=} ;;
      --config | -config) config=${sweep[i + 1]-} ;;
      --workdir=* | -workdir=*) workdir=${sweep[i]#*=} ;;
      --workdir | -workdir) workdir=${sweep[i + 1]-} ;;
    esac
  done
  [[ $config ]] || fail "after -- expected the sweep's options, at least --config FILE --workdir gs://BUCKET/FOLDER"
  config=${config%%.py:*}
  [[ $config != /* && -f $root/${config%.py}.py ]] ||
    fail "--config ${config%.py}.py: not a file of $root, and only that folder is copied to the TPU"
  [[ $workdir == gs://?* ]] ||
    fail "--workdir ${workdir:-is missing}: expected gs://BUCKET/FOLDER, because a TPU's own disk goes away with it"
}

# --- commands: each is shown, and waited for in the background so that ctrl-C is heard at once ---

# One line for a shell that gives back exactly these words.
quoted() {
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

show() {
  local line secret
  line=$(quoted "$@")
  for secret in "${secrets[@]}"; do line=${line//"$secret"/***}; done
  if $dry_run; then printf '%s\n' "$line"; else printf '%(%F %T)T %s\n' -1 "$line" >>"$logs/commands.log"; fi
}

# Starts a command as a process group of its own, $job: a killed gcloud would leave its ssh behind.
start() {
  set -m
  "$@" </dev/null &
  job=$!
  set +m
  running+=("$job")
}

end() {
  local group signal tenth
  for signal in TERM KILL; do
    for group in "${running[@]}"; do kill "-$signal" -- "-$group" 2>/dev/null || true; done
    for ((tenth = 0; tenth < 100; tenth++)); do if alive; then sleep 0.1; fi; done
  done
  running=()
}

alive() {
  local group
  for group in "${running[@]}"; do if kill -0 "$group" 2>/dev/null; then return 0; fi; done
  return 1
}

# tpus LOG WORD ...: one gcloud command whose output goes to $logs/LOG.
tpus() {
  local log=$1 status=0
  shift
  show gcloud compute tpus "$@"
  $dry_run && return
  start gcloud compute tpus "$@" >"$logs/$log" 2>&1
  wait "$job" || status=$?
  running=()
  return $status
}

last_line() { grep -v '^ *$' "$logs/$1" | tail -n 1 | cut -c 1-300 || true; }

pause() {
  $dry_run && return
  sleep "$poll" &
  wait $!
}

# --- the TPU ---

create() {
  local words=(tpu-vm create "$name" --accelerator-type="$type" --version="$runtime")
  if $queued; then
    words=(queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime")
  fi
  if $spot; then words+=(--spot); fi
  say "creating $name: $type in $zone"
  ours=true installed=false
  tpus create.log "${words[@]}" "${where[@]}" && return
  say "not created: $(last_line create.log)"
  if grep -qE 'PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|ALREADY_EXISTS|NOT_FOUND|unrecognized arg' \
    "$logs/create.log"; then
    ours=false
    fail "gcloud will not create $name next time either; all that it says is in $logs/create.log"
  fi
  # No capacity, or an outage: it may pass. A request that failed half-way leaves something to delete.
  delete
  return 1
}

# Sets $seen: the state that gcloud gives; GONE without such a resource; UNKNOWN without an answer.
state() {
  local words=("$1" describe "$name" "${where[@]}" "--format=value($2)")
  show gcloud compute tpus "${words[@]}"
  if $dry_run; then
    seen=READY
  elif ! seen=$(gcloud compute tpus "${words[@]}" 2>"$logs/describe.log" </dev/null); then
    seen=UNKNOWN
    if grep -qi 'not.found' "$logs/describe.log"; then seen=GONE; fi
  fi
}

# Sets $health: ready, waiting (also without an answer), or lost for good. The states are those of Node and
# QueuedResourceState in the Cloud TPU API, v2.
look() {
  if $queued; then
    state queued-resources state.state
    case $seen in
      ACTIVE | READY) ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | GONE) health=lost && return ;;
      *) health=waiting && return ;;
    esac
  fi
  state tpu-vm state
  case $seen in
    READY) health=ready ;;
    PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING | HIDING | HIDDEN | GONE) health=lost ;;
    *) health=waiting ;;
  esac
}

wait_until_ready() {
  local told=''
  look
  while [[ $health == waiting ]]; do
    [[ $seen == "$told" ]] || say "waiting: $name is $seen"
    told=$seen
    pause
    look
  done
  [[ $health == ready ]] || say "lost: $name is $seen"
  [[ $health == ready ]]
}

delete() {
  local words=(tpu-vm delete "$name")
  if $queued; then words=(queued-resources delete "$name" --force); fi
  say "deleting $name"
  for _ in 1 2 3; do
    if tpus delete.log "${words[@]}" "${where[@]}" || grep -qi 'not.found' "$logs/delete.log"; then
      ours=false
      return
    fi
    say "not deleted: $(last_line delete.log)"
    pause
  done
  say "NOT DELETED, and it may cost money: gcloud compute tpus $(quoted "${words[@]}" "${where[@]}")" >&2
}

# --- the sweep ---

pack() {
  $dry_run && say "pack the files of $root that git does not ignore" && return
  (
    cd "$root"
    git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do if [[ -f $file ]]; then printf '%s\0' "$file"; fi; done |
      tar -czf "$logs/subl_jax.tar.gz" --null -T -
  ) || fail "$root: not packed; expected a git checkout"
}

install() {
  local unpack='rm -rf subl_jax && mkdir subl_jax && tar -xzf subl_jax.tar.gz -C subl_jax'
  $installed && return
  say "installing on every worker"
  if ! tpus copy.log tpu-vm scp "$logs/subl_jax.tar.gz" "$name:" --worker=all "${where[@]}"; then
    say "not copied: $(last_line copy.log)"
    return 1
  fi
  if ! tpus install.log tpu-vm ssh "$name" --worker=all "${where[@]}" \
    --command="$unpack && bash subl_jax/launch/tpu/worker.sh install"; then
    say "not installed: $(last_line install.log)"
    return 1
  fi
  installed=true
}

# Sets $workers: how many hosts the slice has.
count_workers() {
  local words=(tpu-vm describe "$name" "${where[@]}" "--format=value(networkEndpoints.len())")
  show gcloud compute tpus "${words[@]}"
  workers=1
  $dry_run || workers=$(gcloud compute tpus "${words[@]}" 2>"$logs/describe.log" </dev/null) || return 1
  [[ $workers =~ ^[1-9][0-9]*$ ]]
}

# The sweep's exit status on a worker, as the worker wrote it: gcloud's own says 1 for a lost connection too.
status_of() { sed -n "s/^subl_jax $token: exit status \([0-9]*\)$/\1/p" "$logs/worker-$1.log" | tail -n 1; }

# One run on all workers. Sets $outcome: the exit status when it is final, else "again".
run() {
  local worker log command status lonely=0
  token=$started-$starts
  command="cd subl_jax && $(quoted env "${environment[@]}" bash launch/tpu/worker.sh run "$token" "${sweep[@]}")"
  count_workers || { outcome=again && return; }
  say "running on $workers worker(s); tail -f $logs/worker-0.log"
  for ((worker = 0; worker < workers; worker++)); do
    log=$logs/worker-$worker.log
    local words=(tpu-vm ssh "$name" --worker="$worker" "${where[@]}" --ssh-flag=-oServerAliveInterval=30)
    words+=(--command="$command")
    show gcloud compute tpus "${words[@]}"
    $dry_run || start gcloud compute tpus "${words[@]}" >>"$log" 2>&1
  done
  if $dry_run; then
    say "the same for each further worker of a slice; every $poll s until they end:"
    look
    outcome=0 && return
  fi
  while alive; do
    pause
    look
    [[ $health != lost ]] || break
    # A worker that has left alone: the others wait for it in vain, but may have something to store.
    if some_failed && ((++lonely > 4)); then break; fi
  done
  end
  outcome=0
  for ((worker = 0; worker < workers; worker++)); do
    status=$(status_of "$worker")
    say "worker $worker: ${status:-no exit status}"
    case $status in
      0 | 1 | 2) [[ $outcome == again ]] || ((status <= outcome)) || outcome=$status ;;
      *) outcome=again ;;
    esac
  done
}

some_failed() {
  local worker
  for ((worker = 0; worker < workers; worker++)); do
    kill -0 "${running[worker]}" 2>/dev/null || [[ $(status_of "$worker") == [012] ]] || return 0
  done
  return 1
}

# --- the whole story ---

# At every end: nothing is left that costs money, unless --keep.
# shellcheck disable=SC2317,SC2329 # called by a trap
leave() {
  trap - EXIT
  trap '' INT TERM HUP PIPE
  end
  if $ours && $keep; then
    say "$name is kept, and costs money until it is deleted"
    if $installed && [[ $1 != [012] ]]; then
      tpus stop.log tpu-vm ssh "$name" --worker=all "${where[@]}" \
        --command='bash subl_jax/launch/tpu/worker.sh stop' || say "not stopped: $(last_line stop.log)"
    fi
  elif $ours; then
    delete
  fi
  exit "$1"
}

# What is there already under this name is only touched with --keep.
adopt() {
  state tpu-vm state
  if $queued && ($dry_run || [[ $seen == GONE ]]); then state queued-resources state.state; fi
  $dry_run || [[ $seen != UNKNOWN ]] || fail "gcloud does not say whether $name is there: $(last_line describe.log)"
  $dry_run || [[ $seen != GONE ]] || return 0
  $dry_run || $keep || fail "$name is there already ($seen); another --name, or --keep to use it and leave it"
  $dry_run || ours=true
}

main() {
  parse "$@"
  check
  where=(--zone="$zone" --quiet)
  if [[ $project ]]; then where+=(--project="$project"); fi
  $dry_run || mkdir -p "$logs"
  trap 'leave $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP PIPE
  printf -v started '%(%Y%m%dT%H%M%S)T-%d' -1 $$
  adopt
  pack
  for ((starts = 0; starts <= limit; starts++)); do
    ((starts == 0)) || pause
    if $ours && ! wait_until_ready; then delete; fi
    if ! $ours; then
      create || continue
      wait_until_ready || continue
    fi
    install || continue
    run
    [[ $outcome == again ]] || exit "$outcome"
    say "not finished; starting again"
  done
  say "gave up after $limit further starts; the same command goes on" >&2
  exit 75
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash $BASH_VERSION is too old; expected 4.4 or newer"
ours=false installed=false running=() job='' seen='' health='' outcome='' token='' workers=1 started='' starts=0 where=()
main "$@"

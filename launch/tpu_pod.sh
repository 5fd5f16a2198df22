#!/usr/bin/env bash
# Trains on a TPU slice of any size: makes it or takes the one of that name, copies and installs this
# checkout on every worker, and starts the same command on all of them, which find each other.
set -euo pipefail

usage='usage: bash launch/tpu_pod.sh --name=NAME --zone=ZONE --type=TYPE [options] -- FLAGS OF THE TRAINING COMMAND

  bash launch/tpu_pod.sh --name=pod --zone=us-central1-a --type=v5litepod-16 \
    --setup="mkdir -p bucket && gcsfuse my-bucket bucket" -- \
    --config=configs/asvit.py:base,imagefolder=~/bucket/imagenet --workdir=~/bucket/runs/base

  --type=TYPE        v4-32, v5litepod-16, v5p-8, v6e-64, ...
  --version=VERSION  the runtime of the machines; default: the usual one of the type
  --project=PROJECT  default: that of gcloud
  --spot             cheaper, may be taken away; the same command then goes on with the run
  --queued           asks for the slice by a queued resource and waits until it is there
  --setup=COMMAND    runs on every worker, in its home, before the training: mounts, downloads
  --dry-run          prints the commands and runs none

The workdir must be one folder for all workers (a mounted bucket, a shared disk). Ctrl-C stops the
run after a last checkpoint. The slice stays until you delete it.'

fail() { echo "error: $1" >&2; exit 2; }

name="" zone="" type="" version="" project="" spot="" queued="" setup="" dry=""
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --spot) spot=--spot ;;
    --queued) queued=yes ;;
    --dry-run) dry=yes ;;
    --help) echo "$usage"; exit ;;
    *) fail "$1: no such option (--help lists them; flags of the training command come after --)" ;;
  esac
  shift
done
[ $# -gt 1 ] || fail "the flags of the training command are missing: ... -- --config=CONFIG --workdir=DIR"
shift
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
  fail "--name=$name: must be lower-case letters, digits and dashes, a letter first, 63 at most"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone=$zone: must be a zone, as us-central1-a"
[[ $type =~ ^[a-z0-9]+-[0-9]+$ ]] || fail "--type=$type: must be a TPU's name and size, as v5litepod-16"
workdir=""
for flag in "$@"; do
  case $flag in
    --workdir=*://*) fail "$flag: must be a folder of the workers; mount the bucket by --setup and name its folder" ;;
    --workdir=?*) workdir=$flag ;;
  esac
done
[ -n "$workdir" ] || fail "the training command needs --workdir=DIR, one folder for all workers"
if [ -z "$version" ]; then
  case $type in
    v2-* | v3-* | v4-*) version='tpu-ubuntu2204-base' ;;
    v5litepod-*) version='v2-alpha-tpuv5-lite' ;;
    v5p-*) version='v2-alpha-tpuv5' ;;
    v6e-*) version='v2-alpha-tpuv6e' ;;
    *) fail "--type=$type: needs a --version=RUNTIME" ;;
  esac
fi
[ -n "$dry" ] || command -v gcloud > /dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"

# quoted WORD...: the words as a shell reads them again.
quoted() {
  local word line="" apostrophe="'" escaped="'\\''"
  for word in "$@"; do
    case $word in
      "" | *[!a-zA-Z0-9_./:=,@%+-]*) line+=" '${word//$apostrophe/$escaped}'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '%s\n' "${line# }"
}

# do_it COMMAND...: runs it, or prints it as it could be pasted.
do_it() {
  if [ -n "$dry" ]; then quoted "$@"; else "$@"; fi
}

place=(--zone="$zone")
[ -z "$project" ] || place+=(--project="$project")
tpu=(gcloud compute tpus tpu-vm)
request=(gcloud compute tpus queued-resources)

# on_all COMMAND: runs a shell command on every worker.
on_all() { do_it "${tpu[@]}" ssh "$name" "${place[@]}" --worker=all --command="$1"; }

state() { "${tpu[@]}" describe "$name" "${place[@]}" --format='value(state)' 2> /dev/null || true; }

create() {
  if [ -z "$queued" ]; then
    do_it "${tpu[@]}" create "$name" "${place[@]}" --accelerator-type="$type" --version="$version" ${spot:+"$spot"}
    return
  fi
  do_it "${request[@]}" create "$name" "${place[@]}" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${spot:+"$spot"}
  [ -z "$dry" ] || return 0
  until [ "$(state)" = READY ]; do
    case $("${request[@]}" describe "$name" "${place[@]}" --format='value(state.state)') in
      FAILED | SUSPENDED) fail "the request for $name failed: ${request[*]} describe $name ${place[*]}" ;;
    esac
    echo "waiting for $name" >&2
    sleep 30
  done
}

if [ -n "$dry" ]; then
  do_it "${tpu[@]}" describe "$name" "${place[@]}" --format='value(state)'
  echo "# unless that says READY:"
  create
else
  case $(state) in
    READY) echo "taking the slice $name" >&2 ;;
    "") create ;;
    *) fail "the slice $name is $(state), not READY: wait, or delete it: ${tpu[*]} delete $name ${place[*]}" ;;
  esac
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
parts="vit_efficient configs launch"
archive=${TMPDIR:-/tmp}/vit_efficient-$name.tar.gz
# shellcheck disable=SC2086
do_it tar --exclude=__pycache__ -czf "$archive" $parts requirements.txt
do_it "${tpu[@]}" scp "$archive" "$name:vit_efficient.tar.gz" "${place[@]}" --worker=all
on_all "mkdir -p vit_efficient && cd vit_efficient && rm -rf $parts && tar -xzf ../vit_efficient.tar.gz && bash launch/tpu_worker.sh"
[ -z "$setup" ] || on_all "$setup"

# The process id lets a signal reach the workers: ending gcloud here would leave them running.
start="cd vit_efficient && echo \$\$ > run.pid && exec $(quoted .venv/bin/python -m vit_efficient.main "$@")"
if [ -n "$dry" ]; then
  on_all "$start"
  exit
fi
trap 'echo "stopping the run on every worker" >&2; on_all "kill -TERM \$(cat vit_efficient/run.pid)" || true' INT TERM
on_all "$start" &
run=$! code=0
wait "$run" || code=$?
while kill -0 "$run" 2> /dev/null; do code=0; wait "$run" || code=$?; done    # a signal ends a `wait` early
echo "the slice $name stays, and costs: ${tpu[*]} delete $name ${place[*]}" >&2
exit "$code"

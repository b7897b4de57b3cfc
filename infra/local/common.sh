# shellcheck shell=bash
# What up and down share.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # up and down read it
OVERLAY=$HERE/../k8s/overlays/local
CLUSTER=cloc

say() { printf '%s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# need COMMAND... : says of every command that is not here where it comes from, and ends if there was one.
need() {
  local missing=0 command from
  for command in "$@"; do
    command -v "$command" >/dev/null && continue
    case $command in
    docker) from=https://docs.docker.com/engine/install ;;
    kind) from=https://kind.sigs.k8s.io/docs/user/quick-start ;;
    kubectl) from=https://kubernetes.io/docs/tasks/tools ;;
    *) from="your system's packages" ;;
    esac
    printf 'error: %s is not here; install it from %s\n' "$command" "$from" >&2
    missing=1
  done
  ((missing == 0)) || exit 2
  docker info >/dev/null 2>&1 || die "the docker daemon does not answer; start it, or see what 'docker info' says"
}

has_cluster() { kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; }

#!/usr/bin/env bash
# Runs the tests of repo, roles and invariants on a server in a container.
#
# If a Docker engine is running, the tests use it. Otherwise, if this is root and apt-get exists, the
# script starts an engine and builds an image for it. This engine runs in its own namespaces. They
# end with their first process, however that ends, and with them end the engine's processes, mounts,
# networks and packet filters. If no engine can be started, the script prints why and exits with 0.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
script=$PWD/tools/containers.sh
# The tests prefer a server that one of these names to a container.
unset DATABASE_URL POSTGRES_BIN
# debootstrap does not accept a folder whose name contains a blank.
case ${TMPDIR:-} in *[[:space:]]*) export TMPDIR=/tmp ;; esac

not_run() {
    echo "containers: not run: $1" >&2
    exit 0
}

engine_answers() {
    "$python" -c 'import sys; from tools.scratch import docker_answers; sys.exit(not docker_answers())'
}

# policy-rc.d keeps the packages from starting an engine, because the tests start a different one.
install_engine() {
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap "rm -f $policy" EXIT
    fi
    # apt also uses TMPDIR as its user _apt, which must be able to write there.
    install -d -m 1777 "$1/apt"
    TMPDIR=$1/apt apt-get update -qq || true
    TMPDIR=$1/apt DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends docker.io debootstrap iproute2 procps \
        >/dev/null
}

# dockerd writes to /etc/docker, /opt and /run whatever its options are, so it gets empty ones.
start_engine() {
    unshare --net --mount sh -c '
        for hidden in /etc/docker /opt /run; do mount -t tmpfs tmpfs $hidden; done
        ip link set lo up
        exec dockerd "$@"
    ' dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" --host "$DOCKER_HOST" \
        --cgroup-parent "/${1##*/}" --exec-opt native.cgroupdriver=cgroupfs &>"$1/log" &
    engine=$!
}

# Runs as the first process of the namespaces. start_engine gives the engine another network.
in_namespaces() {
    export DOCKER_HOST=unix://$1/socket TESTCONTAINERS_RYUK_DISABLED=true
    start_engine "$1"
    SECONDS=0
    until engine_answers; do
        kill -0 "$engine" 2>/dev/null || not_run "dockerd exited: $(tail -n 1 "$1/log")"
        ((SECONDS < 60)) || not_run "dockerd did not answer within 60 seconds"
        sleep 1
    done
    POSTGRES_IMAGE=$(TMPDIR=$1 "$python" -m tools.container_image) || {
        # 75 is EX_TEMPFAIL: the packages for the image cannot be fetched.
        [ $? = 75 ] && not_run "the packages for the image cannot be fetched"
        exit 1
    }
    export POSTGRES_IMAGE
    nsenter --target "$engine" --net "$script" on-engine
}

# The cgroups do not end with a namespace.
clean_up() {
    if [ -n "${namespaces:-}" ]; then
        pkill -KILL -P "$namespaces" || true
        wait "$namespaces" || true
    fi
    find /sys/fs/cgroup -depth -type d -path "*/${1##*/}*" -exec rmdir {} \; 2>/dev/null || true
    rm -rf "$1"
}

on_own_engine() {
    command -v apt-get >/dev/null || not_run "no Docker engine is running, and apt-get is missing"
    [ "$(id -u)" = 0 ] || not_run "no Docker engine is running, and only root can start one"
    folder=$(mktemp -d -t orchestration-XXXXXXXX)
    chmod 711 "$folder"
    trap 'clean_up "$folder"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null; then
        (install_engine "$folder") || not_run "apt-get cannot install docker.io and debootstrap"
    fi
    unshare --mount --net --pid --fork --mount-proc true 2>"$folder/log" ||
        not_run "the system refuses new namespaces: $(tail -n 1 "$folder/log")"
    setpriv --pdeathsig KILL \
        unshare --mount --pid --fork --kill-child --mount-proc "$script" in-namespaces "$folder" &
    namespaces=$!
    wait "$namespaces"
}

on_engine() {
    "$python" -m pytest -n auto tests/repo tests/roles tests/invariants
}

case ${1:-} in
    in-namespaces) in_namespaces "$2" ;;
    on-engine) on_engine ;;
    *) if engine_answers; then on_engine; else on_own_engine; fi ;;
esac

#!/usr/bin/env bash
# The repo, roles and invariants tests on a server in a container: on the Docker engine that
# answers, else on one that root starts where there is apt-get, with an image made on the spot.
#
# An engine of our own lives in namespaces of its own: its processes, mounts, networks and packet
# filters end with the first process there, whatever ends it. Where no engine can be had, one
# sentence says so, and nothing fails.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
script=$PWD/tools/containers.sh
# They would be chosen before a container.
unset DATABASE_URL POSTGRES_BIN
# debootstrap takes no folder with a blank in its name.
case ${TMPDIR:-} in *[[:space:]]*) export TMPDIR=/tmp ;; esac

left_out() {
    echo "containers: left out: $1" >&2
    exit 0
}

engine_answers() {
    "$python" -c 'import sys; from tools.scratch import docker_answers; sys.exit(not docker_answers())'
}

# What the packages start is held back: the engine of the tests is another one.
install_engine() {
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap "rm -f $policy" EXIT
    fi
    # apt's own user works in TMPDIR too.
    install -d -m 1777 "$1/apt"
    TMPDIR=$1/apt apt-get update -qq || true
    TMPDIR=$1/apt DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends docker.io debootstrap iproute2 procps \
        >/dev/null
}

# dockerd writes in /etc/docker, /opt and /run, whatever it is told: it gets empty ones.
start_engine() {
    unshare --net --mount sh -c '
        for hidden in /etc/docker /opt /run; do mount -t tmpfs tmpfs $hidden; done
        ip link set lo up
        exec dockerd "$@"
    ' dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" --host "$DOCKER_HOST" \
        --cgroup-parent "/${1##*/}" --exec-opt native.cgroupdriver=cgroupfs &>"$1/log" &
    engine=$!
}

# The first process of the namespaces; the engine has a network of its own besides.
in_namespaces() {
    export DOCKER_HOST=unix://$1/socket TESTCONTAINERS_RYUK_DISABLED=true
    start_engine "$1"
    SECONDS=0
    until engine_answers; do
        kill -0 "$engine" 2>/dev/null || left_out "dockerd ended: $(tail -n 1 "$1/log")"
        ((SECONDS < 60)) || left_out "dockerd does not answer within 60 seconds"
        sleep 1
    done
    POSTGRES_IMAGE=$(TMPDIR=$1 "$python" -m tools.container_image) || {
        # EX_TEMPFAIL: there are no packages for it.
        [ $? = 75 ] && left_out "no image can be made"
        exit 1
    }
    export POSTGRES_IMAGE
    nsenter --target "$engine" --net "$script" on-engine
}

# The cgroups are the one thing that no namespace takes along.
clean_up() {
    if [ -n "${namespaces:-}" ]; then
        pkill -KILL -P "$namespaces" || true
        wait "$namespaces" || true
    fi
    find /sys/fs/cgroup -depth -type d -path "*/${1##*/}*" -exec rmdir {} \; 2>/dev/null || true
    rm -rf "$1"
}

on_engine_of_our_own() {
    command -v apt-get >/dev/null || left_out "no Docker engine answers, and there is no apt-get"
    [ "$(id -u)" = 0 ] || left_out "no Docker engine answers, and only root can start one"
    folder=$(mktemp -d -t orchestration-XXXXXXXX)
    chmod 711 "$folder"
    trap 'clean_up "$folder"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null; then
        (install_engine "$folder") || left_out "apt-get cannot install docker.io and debootstrap"
    fi
    unshare --mount --net --pid --fork --mount-proc true 2>"$folder/log" ||
        left_out "namespaces of its own are refused: $(tail -n 1 "$folder/log")"
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
    *) if engine_answers; then on_engine; else on_engine_of_our_own; fi ;;
esac

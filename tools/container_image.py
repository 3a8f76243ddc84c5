"""Builds a container image with the PostgreSQL of this Debian release, without an image registry.

The image is built from the machine's apt sources. Like the official image, it reads POSTGRES_USER,
POSTGRES_PASSWORD and POSTGRES_DB, which testcontainers sets. The program uses the engine that the
Docker client finds and prints the name of the image. If the image exists, it is not built again.
Requires root and debootstrap.

usage: python -m tools.container_image
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import docker
from docker.errors import ImageNotFound

NAME = "orchestration-postgres"
TARGETS = ("Created-By: Packages", "Origin: Debian", "Component: main")
# Caches, and the cluster that the package creates.
UNNEEDED = ("var/cache/apt/*", "var/lib/apt/lists/*", "var/lib/postgresql/*", "etc/postgresql/*")
DATA = "/var/lib/postgresql/data"
ENTRY_POINT = """\
#!/bin/sh
set -eu
if [ "$(id -u)" = 0 ]; then
    install -d -o postgres -g postgres -m 0700 "$PGDATA"
    install -d -o postgres -g postgres -m 2775 /var/run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    password=$(mktemp)
    printf '%s\\n' "$POSTGRES_PASSWORD" >"$password"
    initdb --username="$user" --pwfile="$password" --auth-local=trust --auth-host=scram-sha-256 \\
        --encoding=UTF8 --locale=C.UTF-8 --no-sync
    rm "$password"
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
    if [ "$database" != postgres ]; then
        echo "CREATE DATABASE \\"$database\\"" | postgres --single postgres
    fi
fi
exec "$@"
"""


class ImageUnavailable(RuntimeError):
    """The packages for the image cannot be fetched."""


def mirror(codename: str) -> str:
    """Return the address from which this machine gets the packages of its release."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format=$(REPO_URI)", *TARGETS, f"Codename: {codename}"],
        capture_output=True,
        text=True,
        check=True,
    )
    if not listed.stdout:
        raise ImageUnavailable(f"apt lists no packages of Debian {codename}")
    return listed.stdout.splitlines()[0]


def bootstrap(root: Path) -> None:
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    command = ("debootstrap", "--variant=minbase", "--include=postgresql", codename, str(root))
    ran = subprocess.run(
        [*command, mirror(codename)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        last = (ran.stdout.splitlines() or ["no output"])[-1]
        raise ImageUnavailable(f"debootstrap failed: {last}")


def import_root(client: docker.DockerClient, root: Path) -> None:
    [binaries] = root.glob("usr/lib/postgresql/*/bin")
    entry_point = root / "entry_point"
    entry_point.write_text(ENTRY_POINT, "utf-8")
    entry_point.chmod(0o755)
    changes = [
        f"ENV PATH=/{binaries.relative_to(root)}:/usr/sbin:/usr/bin:/sbin:/bin",
        f"ENV PGDATA={DATA}",
        f"VOLUME {DATA}",
        "EXPOSE 5432",
        'ENTRYPOINT ["/entry_point"]',
        'CMD ["postgres"]',
    ]
    excluded = [f"--exclude=./{pattern}" for pattern in UNNEEDED]
    archive = root.with_suffix(".tar")
    subprocess.run(["tar", "-C", root, *excluded, "-cf", archive, "."], check=True)
    client.api.import_image_from_file(str(archive), repository=NAME, changes=changes)


def main() -> int:
    client = docker.from_env(timeout=600)
    try:
        client.images.get(NAME)
    except ImageNotFound:
        with tempfile.TemporaryDirectory(prefix="orchestration-") as folder:
            root = Path(folder) / "root"
            try:
                bootstrap(root)
            except ImageUnavailable as error:
                print(error, file=sys.stderr)
                return os.EX_TEMPFAIL
            import_root(client, root)
        client.images.get(NAME)
    finally:
        client.close()
    print(NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())

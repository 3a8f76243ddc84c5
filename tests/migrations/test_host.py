"""A host service on an installed wheel: examples/host_service, in an environment of its own where
nothing of the checkout is importable."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, pool, text
from tools import scratch, versions
from tools.schema import CURRENT

from orchestration import schema
from tests.migrations.conftest import picture
from tests.support import connect

pytestmark = pytest.mark.own_cluster

EXAMPLE = scratch.ROOT / "examples" / "host_service"
GUIDE = scratch.ROOT / "docs" / "getting-started.md"
PAGE = scratch.ROOT / "docs" / "hosts.md"
MIGRATOR = scratch.PREFIX + "shop_migrator"
LOGINS = ("shop_web", "shop_desk", "shop_compliance")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "DATABASE_URL"} and not name.startswith("PYTEST_")
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def succeeded(ran: "subprocess.CompletedProcess[str]") -> str:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with what requirements.lock installs."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir")
    succeeded(run(*PIP, *build, folder, scratch.ROOT, cwd=folder))
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment's interpreter: the wheel is installed, and what it depends on is what the
    tests run with."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    succeeded(
        run(*PIP, "--python", interpreter, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    )
    found = run(
        interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    # A folder that a .pth names comes last, and the .pth files inside it, of the checkout, are not
    # read.
    dependencies = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    site_packages = Path(succeeded(found).strip())
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies), "utf-8")
    return interpreter


@dataclass(frozen=True)
class Host:
    """The host service in a folder of its own, with the database of its migrating login."""

    python: Path
    folder: Path
    url: URL

    def run(self, module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return run(
            *(self.python, "-m", module, *arguments),
            cwd=self.folder,
            DATABASE_URL=self.url.render_as_string(hide_password=False),
        )

    def alembic(self, *arguments: str) -> str:
        return succeeded(self.run("alembic", *arguments))

    def make_logins(self) -> None:
        with scratch.maintenance(self.url) as connection:
            connection.exec_driver_sql((self.folder / "logins.sql").read_text("utf-8"))

    def tables(self) -> set[str]:
        """The tables outside of our schema and the server's."""
        with create_engine(self.url, poolclass=pool.NullPool).connect() as connection:
            return set(
                connection.scalars(
                    text(
                        "SELECT schemaname || '.' || tablename FROM pg_catalog.pg_tables"
                        " WHERE schemaname NOT IN"
                        " ('pg_catalog', 'information_schema', 'orchestration')"
                    )
                )
            )


@pytest.fixture
def host(cluster: scratch.Server, python: Path, tmp_path: Path) -> Iterator[Host]:
    """The example, and a plain login that has what docs/hosts.md says: CREATEROLE, and CREATE on
    the database and in `public`. It owns neither."""
    folder = tmp_path / "host_service"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    url = scratch.create_database(cluster, MIGRATOR)
    with scratch.maintenance(url) as connection:
        connection.exec_driver_sql(f"CREATE ROLE {MIGRATOR} LOGIN CREATEROLE PASSWORD 'secret'")
        connection.exec_driver_sql(f"GRANT CREATE ON DATABASE {MIGRATOR} TO {MIGRATOR}")
        connection.exec_driver_sql(f"GRANT CREATE ON SCHEMA public TO {MIGRATOR}")
    yield Host(python, folder, url.set(username=MIGRATOR, password="secret"))
    scratch.drop_database(cluster, MIGRATOR)
    with scratch.maintenance(cluster.url) as connection:
        made = connection.scalars(
            text(
                "SELECT rolname FROM pg_catalog.pg_roles"
                " WHERE rolname ^@ 'symphony_' OR rolname = ANY (:logins)"
            ),
            {"logins": list(LOGINS)},
        )
        for role in [*made, MIGRATOR]:
            connection.exec_driver_sql(f"DROP ROLE {role}")


def test_the_wheel_carries_the_revisions_the_types_and_the_schema_but_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in carried} == {"orchestration"}
    assert "orchestration/py.typed" in carried
    under = {
        folder: {name for name in carried if name.startswith(f"orchestration/{folder}/")}
        for folder in ("migrations", "schema/current")
    }
    assert under["migrations"] == {
        f"orchestration/migrations/{file.name}" for file in versions.VERSIONS.glob("*.py")
    }
    assert under["schema/current"] == {
        f"orchestration/schema/current/{file.relative_to(CURRENT)}"
        for file in CURRENT.rglob("*.sql")
    }
    assert "orchestration/schema/fingerprint.json" in carried


def test_what_the_host_imports_is_the_wheel(host: Host) -> None:
    asked = "import orchestration, sqlalchemy; print(orchestration.__file__, sqlalchemy.__file__)"
    ours, theirs = succeeded(run(host.python, "-c", asked, cwd=host.folder)).split()
    assert Path(ours).is_relative_to(host.python.parents[1])
    assert Path(theirs).is_relative_to(sysconfig.get_path("purelib"))


def test_one_upgrade_of_a_plain_login_makes_both_branches(host: Host) -> None:
    host.alembic("upgrade", "heads")
    assert picture(host.url) == schema.expected()
    assert host.tables() == {"public.alembic_version", "public.orders", "public.deliveries"}
    with create_engine(host.url, poolclass=pool.NullPool).connect() as connection:
        assert (
            connection.scalar(text("SELECT to_regclass('orchestration.alembic_version')")) is None
        )
    for command in ("heads", "current"):
        said = host.alembic(command).splitlines()
        assert {line.partition(" ")[0] for line in said} == {"shop_0001", schema.REVISION}, said
    assert "(orchestration)" in host.alembic("heads")
    assert "No new upgrade operations detected." in host.alembic("check")


def test_the_host_commits_with_the_library_and_keeps_its_own_errors(host: Host) -> None:
    host.alembic("upgrade", "heads")
    host.make_logins()
    succeeded(host.run("pytest", "-q", "-p", "no:cacheprovider", "tests"))


def test_the_library_goes_and_the_host_s_tables_and_rows_stay(host: Host) -> None:
    host.alembic("upgrade", "heads")
    host.make_logins()
    succeeded(host.run("pytest", "-q", "-p", "no:cacheprovider", "-k", "commit_together", "tests"))
    refused = host.run("alembic", "downgrade", "orchestration@base")
    assert refused.returncode != 0
    assert "-x destroy-evidence=yes" in refused.stdout + refused.stderr

    host.alembic("-x", "destroy-evidence=yes", "downgrade", "orchestration@base")
    assert host.alembic("current").split() == ["shop_0001", "(head)"]
    assert host.tables() == {"public.alembic_version", "public.orders", "public.deliveries"}
    with create_engine(host.url, poolclass=pool.NullPool).connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders"))

    host.alembic("upgrade", "heads")
    assert picture(host.url) == schema.expected()


def test_the_sql_script_of_the_host_makes_both_branches(host: Host) -> None:
    script = host.alembic("upgrade", "heads", "--sql")
    with connect(host.url) as connection:
        connection.execute(script)
    assert picture(host.url) == schema.expected()
    assert "No new upgrade operations detected." in host.alembic("check")


def test_upgrades_of_one_database_at_once_all_succeed(host: Host) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: host.alembic("upgrade", "heads"), range(4)))
    assert picture(host.url) == schema.expected()


def test_a_next_revision_of_the_host_s_goes_to_its_own_branch(host: Host) -> None:
    host.alembic("upgrade", "heads")
    host.alembic("revision", "--head", "shop@head", "--rev-id", "shop_0002", "-m", "next")
    host.alembic("upgrade", "heads")
    assert set(host.alembic("current").replace("(head)", "").split()) == {
        "shop_0002",
        schema.REVISION,
    }
    assert (host.folder / "migrations" / "versions" / "shop_0002_next.py").is_file()


@pytest.mark.parametrize("document", [GUIDE, PAGE], ids=lambda path: path.name)
def test_what_the_documents_show_stands_in_the_example(document: Path) -> None:
    languages = "ini" if document == GUIDE else "ini|sql|python"
    shown = re.findall(
        rf"^```(?:{languages})\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    files = [
        path.read_text("utf-8")
        for path in EXAMPLE.rglob("*.*")
        if path.suffix in (".ini", ".py", ".sql")
    ]
    assert shown
    assert [block for block in shown if not any(block in file for file in files)] == []

"""Objects of the caller, placed first in its search_path, do not change what our functions read.

Every row contains the login that wrote it, whichever role calls.
"""

from collections.abc import Callable

import pytest
from tools import scratch

from orchestration import schema
from tests.migrations import evidence
from tests.roles.matrix import EVIDENCE, RUNTIME_ROLES
from tests.support import Connect, activate_policy, digest, refusal

Login = Callable[[str], Connect]

# Each has the name of a catalogue object, but is always true, returns nothing, or returns 1970.
SHADOWS = """
CREATE FUNCTION shadow.yes(text, text) RETURNS boolean LANGUAGE sql RETURN true;
CREATE OPERATOR shadow.= (LEFTARG = text, RIGHTARG = text, FUNCTION = shadow.yes);
CREATE FUNCTION shadow.clock_timestamp() RETURNS timestamptz LANGUAGE sql
  RETURN 'epoch'::timestamptz;
CREATE FUNCTION shadow.sha256(bytea) RETURNS bytea LANGUAGE sql RETURN 'forged'::bytea;
CREATE FUNCTION shadow.gen_random_uuid() RETURNS uuid LANGUAGE sql
  RETURN '00000000-0000-0000-0000-000000000000'::uuid;
CREATE FUNCTION shadow.raise_invariant(text, text, text, text, jsonb, text, text DEFAULT NULL)
  RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION shadow.share_gate(text) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
"""


@pytest.fixture
def shadowed(
    database: scratch.Database, superuser: Connect, login: Login
) -> Callable[[str], Connect]:
    """Log in as a role that has a schema of such objects first in its search_path, and temporary
    tables and views with the names of ours."""
    superuser.execute("CREATE SCHEMA shadow")
    superuser.execute(SHADOWS)
    for role in RUNTIME_ROLES:
        superuser.execute(f'GRANT USAGE ON SCHEMA shadow TO "{database.logins[role].username}"')
    relations = [
        name
        for (name,) in superuser.execute(
            "SELECT relname FROM pg_catalog.pg_class"
            " WHERE relnamespace = 'orchestration'::regnamespace AND relkind IN ('r', 'v')"
        )
    ]

    def log_in(role: str) -> Connect:
        connection = login(role)
        for name in relations:
            connection.execute(f'CREATE TEMP TABLE "{name}" (id text, status text, stray text)')
        connection.execute("SET search_path = shadow, pg_temp, orchestration, pg_catalog")
        return connection

    return log_in


def test_the_shadows_would_be_seen(shadowed: Login) -> None:
    row = (
        shadowed("ingest").execute("SELECT 'a' = 'b'::text, clock_timestamp() = 'epoch'").fetchone()
    )
    assert row == (True, True)


@pytest.mark.invariant("INV-ATT-008")
def test_a_forged_policy_is_not_accepted(superuser: Connect, shadowed: Login) -> None:
    activate_policy(superuser, "v1")
    ingest = shadowed("ingest")
    ingest.execute("INSERT INTO policy_versions (id, status) VALUES ('forged', 'ACTIVE')")
    ingest.execute("INSERT INTO accepted_policy_versions (id, status) VALUES ('forged', 'ACTIVE')")
    statement = "SELECT orchestration.require_policy_accepted(%s)"
    assert refusal(ingest, statement, ("forged",)).sqlstate == "P7105"
    ingest.execute(statement, ("v1",))


@pytest.mark.invariant("INV-ATT-009")
def test_a_revoked_token_stays_revoked_behind_shadows(superuser: Connect, shadowed: Login) -> None:
    evidence.fill(superuser, "0005")
    found = refusal(
        shadowed("ingest"),
        "SELECT orchestration.require_credential_not_revoked(p_token_hash => %s)",
        (digest("revoke_token"),),
    )
    assert found.sqlstate == "P7202"


def test_what_the_roles_write_lands_in_the_real_tables(superuser: Connect, shadowed: Login) -> None:
    writers = {role: shadowed(role) for role in ("control", "ingest", "executor")}
    evidence.fill(superuser, schema.REVISION, **writers)
    for table in EVIDENCE:
        for writer in writers.values():
            strays = writer.execute(f"SELECT count(*) FROM pg_temp.{table}").fetchone()
            assert strays == (0,), table
        landed = superuser.execute(
            f"SELECT count(*) > 0, bool_and(db_user <> '') FROM orchestration.{table}"
        ).fetchone()
        assert landed == (True, True), table
    times = superuser.execute(
        "SELECT min(activated_at) > '2000-01-01' FROM orchestration.policy_versions"
    )
    assert times.fetchone() == (True,)


def test_a_view_of_ours_reads_the_real_table(superuser: Connect, shadowed: Login) -> None:
    activate_policy(superuser, "v1")
    readonly = shadowed("readonly")
    readonly.execute("INSERT INTO policy_versions (id, status) VALUES ('forged', 'ACTIVE')")
    rows = readonly.execute("SELECT id FROM orchestration.accepted_policy_versions").fetchall()
    assert rows == [("v1",)]


@pytest.mark.parametrize("as_group", [False, True], ids=["as-itself", "as-the-group"])
def test_a_row_records_which_login_wrote_it(
    superuser: Connect, login: Login, *, as_group: bool
) -> None:
    """Inside a SECURITY DEFINER function current_user is the owner; SET ROLE is the caller's."""
    writers = {role: login(role) for role in ("control", "ingest", "executor")}
    if as_group:
        for role, connection in writers.items():
            connection.execute(f"SET ROLE symphony_{role}")
    migrated = superuser.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    evidence.fill(superuser, schema.REVISION, **writers)
    said = {
        table: {
            name
            for (name,) in superuser.execute(
                f"SELECT db_user FROM orchestration.{table} WHERE xact_id > %s", migrated
            )
        }
        for table in EVIDENCE
    }
    assert said == {
        table: {writers[role].info.user for role in evidence.WRITERS[table]} for table in EVIDENCE
    }

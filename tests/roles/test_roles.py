"""The roles have no attribute, no setting, no membership, and no privilege outside the schema."""

import pytest

from tests.roles.matrix import RUNTIME_ROLES
from tests.roles.reading import names, rows
from tests.support import Connect

GROUPS = [f"symphony_{role}" for role in RUNTIME_ROLES]


@pytest.mark.parametrize("role", ["symphony_owner", *GROUPS])
def test_a_role_of_ours_cannot_log_in_and_has_no_attribute(catalogue: Connect, role: str) -> None:
    assert rows(
        catalogue,
        """
        SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
        FROM pg_catalog.pg_roles WHERE rolname = %s
        """,
        role,
    ) == [(False,) * 6]


def test_a_role_of_ours_has_no_setting(catalogue: Connect) -> None:
    settings = rows(
        catalogue,
        """
        SELECT s.setrole::regrole::text, s.setconfig
        FROM pg_catalog.pg_db_role_setting s
        WHERE s.setrole = ANY (%s::regrole[])
        """,
        ["symphony_owner", *GROUPS],
    )
    assert settings == []


@pytest.mark.parametrize("role", ["symphony_owner", *GROUPS])
def test_a_role_of_ours_is_a_member_of_nothing(catalogue: Connect, role: str) -> None:
    assert (
        rows(
            catalogue,
            """
            SELECT m.roleid::regrole::text FROM pg_catalog.pg_auth_members m
            WHERE m.member = %s::regrole
            """,
            role,
        )
        == []
    )


def test_no_member_of_a_runtime_role_reaches_the_owner(catalogue: Connect) -> None:
    closure = """
        WITH RECURSIVE reached (role, through) AS (
          SELECT m.member, m.roleid FROM pg_catalog.pg_auth_members m
          UNION
          SELECT m.member, r.through
          FROM reached r JOIN pg_catalog.pg_auth_members m ON m.roleid = r.role
        )
        SELECT role::regrole::text FROM reached WHERE through = ANY (%s::regrole[])
    """
    members = names(catalogue, closure, GROUPS)
    owners = names(catalogue, closure, ["symphony_owner"])
    assert members, "the logins of the tests are members"
    # From 16 on, the login that creates the roles has ADMIN on all of them and cannot give it up.
    creator = catalogue.info.user
    assert owners & (members | set(GROUPS)) <= {creator}


def test_no_default_privileges_are_altered(catalogue: Connect) -> None:
    altered = rows(
        catalogue,
        """
        SELECT d.defaclrole::regrole::text, d.defaclobjtype
        FROM pg_catalog.pg_default_acl d
        WHERE d.defaclnamespace = 'orchestration'::regnamespace
           OR d.defaclrole = ANY (%s::regrole[])
        """,
        ["symphony_owner", *GROUPS],
    )
    assert altered == []


def test_nobody_was_granted_a_parameter(catalogue: Connect) -> None:
    granted = rows(
        catalogue,
        """
        SELECT p.parname, x.grantee::regrole::text, x.privilege_type
        FROM pg_catalog.pg_parameter_acl p, aclexplode(p.paracl) x
        WHERE x.grantee <> 10
        """,
    )
    assert granted == []

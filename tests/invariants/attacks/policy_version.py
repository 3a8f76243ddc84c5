"""Attacks on policy versions and their gate."""

from tests.invariants.attacks.base import (
    LATER,
    Attack,
    Noun,
    Row,
    changes,
    copy,
    deletes,
    insert,
    inserts,
    rotate,
    truncates,
    update,
    updates,
)

VERSIONS, GATE = "policy_versions", "policy_gate"
GUARD = "triggers/policy_versions__guard"
YEARS = "constraints/ck_policy_versions_years"
NOW = "clock_timestamp()"


def version(id: str = "v2", **changed: str) -> Row:
    """A whole row: a trigger has nothing to fill in."""
    return {
        "id": f"'{id}'",
        "description": "'forged'",
        "checksum": "repeat('0', 64)",
        "status": "'ACTIVE'",
        "activated_at": NOW,
        "grace_expires_at": "NULL",
        "retired_at": "NULL",
        "created_at": NOW,
        "created_by": "'forger'",
        "db_user": "'forger'",
        "xact_id": "1",
    } | changed


COPIED = version(checksum=f"'{'0' * 64}'", activated_at="'2020-01-01'", created_at="'2020-01-01'")
SECOND = insert(VERSIONS, version("v2"))
DEMOTED = f"status = 'GRACE', grace_expires_at = {NOW}"
DEMOTE = update(VERSIONS, DEMOTED, "id = 'v1'")


def of_v1(change: str) -> str:
    return update(VERSIONS, change, "id = 'v1'")


def change(from_: str, to: str) -> dict[str, str]:
    return {"id": "v1", "from": from_, "to": to}


def refused(number: str, detail: dict[str, str], column: str, history: str = "+v1") -> Attack:
    invariant = f"INV-POL-{number}"
    return Attack(
        "", invariant, "P7101", VERSIONS, detail, (GUARD,), column=column, history=history
    )


FROZEN = Attack(
    "", "INV-POL-001", "P7101", VERSIONS, change("ACTIVE", "ACTIVE"), (GUARD,), history="+v1"
)
FINAL = refused("002", change("RETIRED", "RETIRED"), "status", "+v1 +v2 -v1")
NEVER_BACK = refused("003", change("GRACE", "ACTIVE"), "status", "+v1 +v2")
THROUGH_GRACE = refused("004", change("ACTIVE", "RETIRED"), "status")
ONE_ACTIVE = Attack(
    *("", "INV-POL-005", "P7104", VERSIONS, {"id": "v2", "status": "ACTIVE", "active": "v1"}),
    (GUARD, "indexes/uq_policy_versions_active"),
    column="status",
    history="+v1",
)
NO_DELETE = Attack(
    *("", "INV-POL-006", "P7102", VERSIONS, {"id": "v1", "status": "GRACE"}),
    ("triggers/policy_versions__no_delete",),
    history="+v1 +v2",
)
NO_TRUNCATE = "triggers/policy_versions__no_truncate"
ACTIVE_REMAINS = Attack(
    *("", "INV-POL-007", "P7103", VERSIONS, {"id": "v1"}),
    ("triggers/policy_versions__active_remains",),
    column="status",
    history="+v1",
)
ONE_GRACE = Attack(
    *("", "INV-POL-008", "23505", VERSIONS, None, ("indexes/uq_policy_versions_grace",)),
    constraint="uq_policy_versions_grace",
    history="+v1 +v2",
)
NEWER = refused("009", {"id": "v2", "status": "ACTIVE", "activated_at": ...}, "activated_at")
ENTERS_ACTIVE = refused("010", {"id": "v2", "status": "GRACE"}, "status")
GRACE_SHRINKS = refused("011", change("GRACE", "GRACE"), "grace_expires_at", "+v1 +v2")
GATE_STAYS = Attack(
    *("", "INV-ATT-008", "P0001", GATE, {}, ("triggers/policy_gate__no_delete",)), history="+v1"
)
GATE_NO_TRUNCATE = "triggers/policy_gate__no_truncate"

POLICY_VERSION = Noun(
    (
        *FROZEN.each(
            changes(
                VERSIONS,
                "id = 'v1'",
                {
                    "id": "'v0'",
                    "description": "'forged'",
                    "checksum": "repeat('1', 64)",
                    "activated_at": "activated_at - interval '1 day'",
                    "created_at": "created_at - interval '1 day'",
                    "created_by": "'forged'",
                    "db_user": "'forged'",
                    "xact_id": "1",
                },
            )
        ),
        *FROZEN.each(
            updates(
                *("another description", VERSIONS, "description = 'forged'", "id = 'v1'"),
                *(version("v1"), "id"),
            )
        ),
        refused("001", {"id": "v2", "status": "ACTIVE"}, "created_at").by(
            "a created_at in the future", DEMOTE, insert(VERSIONS, version(created_at=LATER))
        ),
        FINAL.by(
            "RETIRED to GRACE",
            of_v1("status = 'GRACE', retired_at = NULL"),
            detail=change("RETIRED", "GRACE"),
        ),
        FINAL.by("another grace when RETIRED", of_v1("grace_expires_at = '2020-01-01'")),
        FINAL.by("another retired_at", of_v1("retired_at = '2020-01-01'")),
        NEVER_BACK.by(
            "GRACE to ACTIVE",
            DEMOTE,
            of_v1("status = 'ACTIVE', grace_expires_at = NULL"),
            history="+v1",
        ),
        THROUGH_GRACE.by(
            "ACTIVE to RETIRED",
            of_v1(f"status = 'RETIRED', grace_expires_at = {NOW}, retired_at = {NOW}"),
            SECOND,
        ),
        *ONE_ACTIVE.each(inserts("a second ACTIVE", VERSIONS, version("v2"))),
        *NO_DELETE.each(deletes(VERSIONS, "id = 'v1'")),
        *NO_DELETE.each(truncates(VERSIONS), detail={}, without=(NO_TRUNCATE,)),
        *GATE_STAYS.each(
            truncates(GATE, VERSIONS), without=(NO_TRUNCATE, GATE_NO_TRUNCATE), history="+v1 +v2"
        ),
        ACTIVE_REMAINS.by("demotion without a successor", DEMOTE),
        ONE_GRACE.by(
            "a second GRACE",
            update(VERSIONS, DEMOTED, "id = 'v2'"),
            insert(VERSIONS, version("v3")),
        ),
        NEWER.by(
            "an activated_at before the newest",
            DEMOTE,
            insert(VERSIONS, version(activated_at="'2020-01-01'")),
        ),
        NEWER.by("an activated_at before the newest by COPY", DEMOTE, copy(VERSIONS, COPIED)),
        NEWER.by(
            "an activated_at equal to the newest",
            DEMOTE,
            insert(
                VERSIONS,
                version(activated_at=f"(SELECT max(activated_at) FROM orchestration.{VERSIONS})"),
            ),
        ),
        NEWER.by(
            "an activated_at in the future", DEMOTE, insert(VERSIONS, version(activated_at=LATER))
        ),
        NEWER.by(
            "an infinite activated_at",
            DEMOTE,
            insert(VERSIONS, version(activated_at="'infinity'")),
            without=(GUARD, YEARS),
        ),
        NEWER.by(
            "a first version at minus infinity",
            insert(VERSIONS, version(activated_at="'-infinity'")),
            history="",
            without=(GUARD, YEARS),
        ),
        ENTERS_ACTIVE.by(
            "a version that enters as GRACE",
            insert(VERSIONS, version(status="'GRACE'", grace_expires_at=NOW)),
        ),
        ENTERS_ACTIVE.by(
            "a version that enters as RETIRED by COPY",
            copy(
                VERSIONS,
                {
                    **COPIED,
                    "status": "RETIRED",
                    "grace_expires_at": "2020-01-01",
                    "retired_at": "2020-01-01",
                },
            ),
            detail={"id": "v2", "status": "RETIRED"},
        ),
        GRACE_SHRINKS.by("a longer grace", of_v1(f"grace_expires_at = {LATER}")),
        GRACE_SHRINKS.by(
            "an infinite grace", of_v1("grace_expires_at = 'infinity'"), without=(GUARD, YEARS)
        ),
        GRACE_SHRINKS.by(
            "a longer grace on the way to RETIRED",
            of_v1(f"status = 'RETIRED', retired_at = {NOW}, grace_expires_at = {LATER}"),
            detail=change("GRACE", "RETIRED"),
        ),
        GRACE_SHRINKS.by(
            "an infinite grace from the start",
            of_v1("status = 'GRACE', grace_expires_at = 'infinity'"),
            SECOND,
            detail=change("ACTIVE", "GRACE"),
            history="+v1",
            without=(GUARD, YEARS),
        ),
        *GATE_STAYS.each(deletes(GATE, "singleton")),
        *GATE_STAYS.each(truncates(GATE), without=(GATE_NO_TRUNCATE,)),
    ),
    {
        "": (),
        "+v1": (rotate("v1"),),
        "+v1 +v2": (rotate("v1"), rotate("v2")),
        "+v1 +v2 -v1": (
            *(rotate("v1"), rotate("v2")),
            "SELECT FROM orchestration.retire_policy_version('v1')",
        ),
    },
    # It makes a change wait for its gate.
    sleeping=(f"triggers/{VERSIONS}__gate",),
)

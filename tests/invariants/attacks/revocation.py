"""Attacks on revocations, their gate, and attestations that go back in time."""

from collections.abc import Iterator

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

KEYS = {"revoked_client_certs": "cert_fingerprint_sha256", "revoked_tokens": "token_hash"}
TABLES = tuple(KEYS)
GATE = "revocation_gate"
OLD, NEW = "a" * 64, "b" * 64
"""The hash of a credential that is revoked already, and of one that is not."""


def revocation(table: str, **changed: str) -> Row:
    """A whole row: a trigger has nothing to fill in."""
    return {
        KEYS[table]: f"'{NEW}'",
        "revocation_no": "1",
        "revoked_at": "'2020-01-01Z'",
        "recorded_at": "'2020-01-01Z'",
        "expires_at": "NULL",
        "reason_code": "'unspecified'",
        "revoked_by": "'forger'",
        "db_user": "'forger'",
        "xact_id": "1",
    } | changed


MALFORMED = {
    "an empty hash": "",
    "a short hash": "0" * 63,
    "half a hash": "0" * 32,
    "a long hash": "0" * 65,
    "a hash in upper case": "A" * 64,
    "a hash of other letters": "g" * 64,
    "a hash with a prefix": "\\x" + "0" * 62,
    "a credential in the place of its hash": "secret",
    "a hash in other digits": "٣" * 64,
    "a hash in other digits, of 64 octets": "٣" * 32,
    "a hash and a line feed": "0" * 63 + "\n",
}


def attacks_on(table: str) -> Iterator[Attack]:
    key, guard = KEYS[table], f"triggers/{table}__guard"
    old = f"{key} = '{OLD}'"

    append_only = Attack(
        *("", "INV-REV-001", "P0001", table, {"revocation_no": 1, "revoked_at": ...}),
        (f"triggers/{table}__append_only",),
    )
    yield from append_only.each(
        changes(
            table,
            old,
            {
                "revoked_at": "revoked_at + interval '1 day'",
                "expires_at": "clock_timestamp()",
                "reason_code": "'superseded'",
                "revoked_by": "'forged'",
                "recorded_at": "'2020-01-01Z'",
                "db_user": "'forged'",
                "xact_id": "1",
                "revocation_no": "2",
                key: f"'{NEW}'",
            },
        )
    )
    yield append_only.by(
        f"{table}: an update that changes nothing", update(table, "reason_code = reason_code", old)
    )
    yield from append_only.each(
        updates(
            *(f"{table}: an end", table, "expires_at = clock_timestamp()", old),
            *(revocation(table, **{key: f"'{OLD}'"}), f"{key}, revocation_no"),
        )
    )
    yield from append_only.each(deletes(table, old))
    yield from append_only.each(
        truncates(table), detail={}, without=(f"triggers/{table}__no_truncate",)
    )

    malformed = Attack("", "INV-REV-003", "P7201", table, {}, (guard,), column=key)
    for name, hash in MALFORMED.items():
        detail = {"column": key, "octets": len(hash.encode())}
        row = revocation(table, **{key: f"'{hash}'"})
        yield malformed.by(f"{table}: {name}", insert(table, row), detail=detail)
    half = revocation(table, **{key: f"'{'0' * 32}'"})
    yield from malformed.each(
        inserts(f"{table}: half a hash", table, half) | {f"{table}: COPY": copy(table, half)},
        detail={"column": key, "octets": 32},
    )

    def constraint(invariant: str, sqlstate: str, name: str) -> Attack:
        return Attack(
            *("", invariant, sqlstate, table, None, (f"constraints/{name}",)), constraint=name
        )

    def entering(name: str, **changed: str) -> tuple[str, str]:
        return f"{table}: {name}", insert(table, revocation(table, **changed))

    yield constraint("INV-REV-002", "23514", f"ck_{table}_expiry").by(
        *entering("an expiry before the revocation", expires_at="'2019-12-31T23:59:59.999999Z'")
    )
    reason = constraint("INV-REV-004", "23514", f"ck_{table}_reason_code")
    for code in ("removeFromCRL", "", "KeyCompromise", "keyCompromise ", "1", "lost"):
        yield reason.by(*entering(f"the reason {code!r}", reason_code=f"'{code}'"))

    future = Attack(
        *("", "INV-REV-005", "P7201", table, {"revocation_no": 1, "revoked_at": ...}, (guard,)),
        column="revoked_at",
    )
    yield future.by(*entering("a revoked_at in the future", revoked_at=LATER))
    for moment in ("infinity", "-infinity"):
        yield future.by(
            *entering(f"a revoked_at of {moment}", revoked_at=f"'{moment}'"),
            detail={"revocation_no": 1, "revoked_at": moment},
            without=(guard, f"constraints/ck_{table}_years"),
        )

    again = {key: f"'{OLD}'"}
    twice = constraint("INV-REV-006", "23505", f"pk_{table}")
    yield twice.by(*entering("a second revocation", **again))
    yield twice.by(f"{table}: one revocation twice", insert(table, *[revocation(table)] * 2))
    gap = Attack(
        *("", "INV-REV-006", "P7201", table, {"revocation_no": 3, "expected": 2}, (guard,)),
        column="revocation_no",
    )
    yield gap.by(
        *entering("a gap in the revocations of one credential", revocation_no="3", **again)
    )
    yield gap.by(
        *entering("a first revocation without number 1", revocation_no="0"),
        detail={"revocation_no": 0, "expected": 1},
        without=(guard, f"constraints/ck_{table}_revocation_no"),
    )


RECORDED = "00000000-0000-0000-0000-000000000001"
ATTESTATIONS = "ingress_attestations"

BACK_IN_TIME = Attack(
    *("an attestation before the caller's newest one", "INV-REV-007", "P7301", ATTESTATIONS),
    {"caller_identity": "caller", "idempotency_key": "k", "attested_at": ..., "newest": ...},
    (f"triggers/{ATTESTATIONS}__guard",),
    column="attested_at",
)
EARLIER = {
    "id": "'00000000-0000-0000-0000-000000000002'",
    "caller_identity": "'caller'",
    "chain_seq": "2",
    "idempotency_key": "'k'",
    "payload_hash": "repeat('0', 64)",
    "policy_version_id": "'v1'",
    "attested_at": "'2019-12-31T23:59:59.999999Z'",
    "prev_hash": f"(SELECT record_hash FROM orchestration.{ATTESTATIONS} WHERE id = '{RECORDED}')",
    "record_hash": "repeat('0', 64)",
    "db_user": "'forger'",
    "xact_id": "1",
}
GATE_STAYS = Attack(
    *("", "INV-ATT-009", "P0001", GATE, {}, (f"triggers/{GATE}__no_delete",)),
)

REVOCATION = Noun(
    (
        BACK_IN_TIME.by(BACK_IN_TIME.name, insert(ATTESTATIONS, EARLIER)),
        *(attack for table in TABLES for attack in attacks_on(table)),
        *GATE_STAYS.each(deletes(GATE, "singleton")),
        *GATE_STAYS.each(truncates(GATE), without=(f"triggers/{GATE}__no_truncate",)),
        *GATE_STAYS.each(
            truncates(GATE, *TABLES),
            without=tuple(f"triggers/{table}__no_truncate" for table in (GATE, *TABLES)),
        ),
    ),
    {
        # One credential of each kind is revoked already, and one caller has attested.
        "": (
            rotate("v1"),
            f"INSERT INTO orchestration.{ATTESTATIONS} (id, caller_identity, idempotency_key,"
            " payload_hash, policy_version_id, attested_at)"
            f" VALUES ('{RECORDED}', 'caller', 'r', repeat('0', 64), 'v1', '2020-01-01Z')",
            *(
                f"INSERT INTO orchestration.{table} ({key}, reason_code)"
                f" VALUES ('{OLD}', 'keyCompromise')"
                for table, key in KEYS.items()
            ),
        )
    },
    # They make a revocation wait for its gate, and its COMMIT durable.
    sleeping=tuple(f"triggers/{table}__{name}" for table in TABLES for name in ("gate", "durable")),
)

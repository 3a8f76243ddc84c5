"""Call every function that a role can execute with random arguments. Every error must have a code
of the contract, no answer may contain a secret value, and every invariant must hold afterwards.

The functions and their arguments come from the catalogue, so a new function is included
automatically. FUZZ_CALLS sets the calls per role (`make soak` sets 100,000), and FUZZ_SEED repeats
a run.
"""

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from orchestration.errors import BY_SQLSTATE
from tests.roles.matrix import AS_CALLER, RUNTIME_ROLES
from tests.support import Connect, digest, scalar

CALLS: Final = int(os.environ.get("FUZZ_CALLS", "5000"))
SEED: Final = int(os.environ.get("FUZZ_SEED", "11"))
CHUNK: Final = 500
"""The number of calls after which valid values are read from the database again."""

LISTED: Final = {
    code for code in BY_SQLSTATE if code.startswith(("P", "22", "23")) or code in {"40001", "40P01"}
}
"""The codes that a call can get. No other session is active, so no lock or timeout is expected."""

ACCOUNT: Final = "DE02fuzzsecretaccount"
CREDENTIAL: Final = digest("fuzz secret credential")
SECRETS: Final[Mapping[str, frozenset[str]]] = {
    ACCOUNT: frozenset({"ingest", "executor", "control", "auditor"}),
    CREDENTIAL: frozenset({"control", "readonly", "auditor"}),
}
"""Values in planted rows, and the roles that can read them."""
SECRETIVE: Final = {"ingress_attestations", "instructions", "payment_outbox_items"}
"""Tables whose rows contain such values. A CHECK of theirs must not raise: its error prints the
row."""
UNSENT: Final = {
    *(
        "debtor_account",
        "creditor_account",
        "payload",
        "payload_salt",
        "payload_hash",
        "token_hash",
    ),
    *("client_cert_fingerprint_sha256", "cert_fingerprint_sha256", "signature_hash", "record_hash"),
    *("prev_hash", "before", "after", "checksum"),
}
"""Columns whose stored values are never sent, so that an answer that contains one is a leak."""
ALIASES: Final = {
    ("instructions", "id"): "instruction_id",
    ("ingress_attestations", "id"): "attestation_id",
    ("payment_outbox_pending", "claimed_by"): "worker_id",
}

SOURCE: Final = re.compile(r"jsonb_populate_recordset\(NULL::orchestration\.(\w+), (\w+)\)")


@dataclass(frozen=True)
class Function:
    name: str
    arguments: tuple[tuple[str, str, bool], ...]
    """The name, the type, and whether the argument can be left out."""
    keys: Mapping[str, Mapping[str, str]]
    """For each JSON argument, the keys of an element and their types, read from the type."""


def functions_of(connection: Connect) -> list[Function]:
    found: list[Function] = []
    attributes: dict[str, dict[str, str]] = {}
    for type_, key, kind in connection.execute(
        """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'orchestration'::regnamespace AND c.relkind = 'c'
        ORDER BY c.relname, a.attnum
        """
    ):
        attributes.setdefault(type_, {})[key] = kind
    for name, names, types, defaults, source in connection.execute(
        """
        SELECT p.proname, p.proargnames[1:p.pronargs],
               ARRAY(SELECT format_type(a.type, NULL)
                     FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, place)
                     ORDER BY a.place),
               p.pronargdefaults, p.prosrc
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'orchestration'::regnamespace
          AND p.prorettype <> 'trigger'::regtype
          AND has_function_privilege(p.oid, 'EXECUTE')
        ORDER BY p.proname, p.oid
        """
    ):
        keys: dict[str, dict[str, str]] = {}
        for type_, argument in SOURCE.findall(source):
            keys[argument] = attributes[type_]
        first_default = len(types) - defaults
        found.append(
            Function(
                name,
                tuple(
                    (argument, kind, place >= first_default)
                    for place, (argument, kind) in enumerate(zip(names or (), types, strict=True))
                ),
                keys,
            )
        )
    return found


def fits(value: Any, kind: str) -> bool:
    """Whether a stored value can be sent as this type: columns of the same name differ in type."""
    match kind:
        case "uuid":
            return isinstance(value, UUID)
        case "text":
            return isinstance(value, str)
        case "integer" | "bigint":
            return isinstance(value, int) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "timestamp with time zone" | "timestamptz":
            return isinstance(value, datetime)
        case _:
            return False


class Values:
    """Random values of a type. Some are valid: they come from whole rows of the database."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.rows: list[dict[str, Any]] = [{}]
        self.pools: dict[str, list[Any]] = {}

    def look(self, connection: Connect) -> None:
        """Read rows of every table, including the newest."""
        rows: list[dict[str, Any]] = []
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'orchestration'::regnamespace"
            " AND relkind = 'r' ORDER BY relname"
        ).fetchall()
        with connection.cursor(row_factory=dict_row) as cursor:
            for (table,) in tables:
                query = sql.SQL(
                    "SELECT * FROM (SELECT * FROM {0} ORDER BY ctid DESC LIMIT 15) newest"
                    " UNION ALL SELECT * FROM (SELECT * FROM {0} ORDER BY ctid LIMIT 10) oldest"
                ).format(sql.Identifier("orchestration", table))
                for row in cursor.execute(query):
                    kept = {name: row[name] for name in row.keys() - UNSENT}
                    for (of, name), alias in ALIASES.items():
                        if of == table:
                            kept[alias] = row[name]
                    rows.append(kept)
        self.rows = rows or [{}]
        self.pools = {}
        for row in rows:
            for name in sorted(row):
                if row[name] is not None:
                    self.pools.setdefault(name, []).append(row[name])

    def row(self, names: Iterable[str]) -> dict[str, Any]:
        """Choose a few rows, and return the one that has most of these names."""
        wanted = set(names)
        few = self.random.choices(self.rows, k=8)
        return max(few, key=lambda row: len(wanted & row.keys()))

    def value(self, name: str, kind: str, row: Mapping[str, Any]) -> Any:
        dice = self.random.random()
        if dice < 0.7 and fits(row.get(name), kind):
            return row[name]
        if dice < 0.85:
            stored = [one for one in self.pools.get(name, ()) if fits(one, kind)]
            return self.random.choice(stored) if stored else self.sound(name, kind)
        if dice < 0.9:
            return None
        return self.anything(name, kind)

    def anything(self, name: str, kind: str) -> Any:
        choice = self.random.choice
        match kind:
            case "text":
                return self.text(name)
            case "uuid":
                return str(UUID(int=self.random.getrandbits(128)))
            case "integer":
                return choice((-(2**31), -1, 0, 1, 1, 2, 3, 20, 1000, 1001, 2**31 - 1))
            case "bigint":
                return choice((-(2**63), -1, 0, 1, 1, 5, 100, 10_000, 10_001, 2**63 - 1))
            case "boolean":
                return choice((True, False))
            case "interval":
                return choice(INTERVALS)
            case "date":
                return choice(
                    ("2026-01-01", "infinity", "-infinity", "4713-01-01 BC", "9999-12-31")
                )
            case "timestamp with time zone" | "timestamptz":
                return choice(TIMES)
            case "jsonb":
                return self.json()
            case _ if kind.endswith("[]"):
                return [self.anything(name, kind[:-2]) for _ in range(self.random.randrange(4))]
            case _:
                return None

    def text(self, name: str) -> str:
        dice = self.random.random()
        if "hash" in name or "fingerprint" in name or name == "checksum":
            return digest(self.random.randrange(30)) if dice < 0.7 else "g" * 64
        if dice < 0.25:
            return self.random.choice(WORDS)
        if dice < 0.75:
            return f"{name}-{self.random.randrange(10)}"
        if dice < 0.97:
            return self.random.choice(TEXTS)
        return "x" * self.random.choice((1001, 4001, 9000, 200_000))

    def json(self) -> Any:
        """Return a payload, or a value that is not one."""
        dice = self.random.random()
        if dice < 0.6:
            return {"amount": self.random.randrange(3), "text": self.text("payload")}
        deep: Any = 1
        for _ in range(self.random.choice((1, 400, 600))):
            deep = [deep]
        return self.random.choice(
            ({}, [], None, True, 1e300, 10**1300, "text", {"deep": deep}, {"x": "x" * 5000}, [[]])
        )

    def batch(self, keys: Mapping[str, str]) -> str:
        dice = self.random.random()
        if dice < 0.05 or not keys:
            return json.dumps(self.json())
        elements: list[Any] = []
        for _ in range(self.random.choice((0, 1, 1, 1, 1, 2, 3))):
            if self.random.random() < 0.03:
                elements.append(self.json())
                continue
            row = self.row(keys)
            element: dict[str, Any] = {}
            # Most keys of a realistic element are valid: an error for one key hides the errors of
            # others.
            for key, kind in keys.items():
                sound = self.random.random() < 0.9
                found = row.get(key) if sound else None
                if not fits(found, kind):
                    found = None
                if found is None and sound and self.pools.get(key) and dice < 0.5:
                    found = self.random.choice(self.pools[key])
                if found is None and sound:
                    found = self.sound(key, kind)
                if not sound:
                    found = self.value(key, kind, row)
                if self.random.random() > 0.02:
                    element[key] = found
            elements.append(element)
        if elements and self.random.random() < 0.1:
            elements.append(elements[0])
        return json.dumps(elements, default=str)

    def sound(self, key: str, kind: str) -> Any:
        """Return a value that most functions accept."""
        match kind:
            case "text" if "hash" in key or "fingerprint" in key:
                return digest(self.random.randrange(30))
            case "text" if key == "currency":
                return "EUR"
            case "text" if key in ENUMERATED:
                return self.random.choice(WORDS)
            case "text":
                return f"{key}-{self.random.randrange(10)}"
            case "interval":
                return f"{self.random.randrange(1, 90)} s"
            case "jsonb":
                return {"amount": self.random.randrange(3)}
            case "integer" | "bigint":
                return self.random.randrange(1, 30)
            case _:
                return None


WORDS: Final = (
    *("GLOBAL", "INGEST", "EXECUTION", "DISPATCH", "PARTICIPANT", "RAIL", "EXECUTION_STARTED"),
    *("EXECUTION_COMPLETED", "SUCCESS", "FAILED", "SUCCEEDED", "ABANDONED", "DISPATCHED"),
    *("RETRYABLE", "REJECTED", "UNKNOWN", "NOT_SENT", "SENT", "keyCompromise", "certificateHold"),
    *("WORKER", "RECONCILIATION"),
)
ENUMERATED: Final = {
    *("scope", "event", "terminal_status", "state", "outcome", "reason_code", "source"),
}
INTERVALS: Final = (
    *("0 s", "1 s", "30 s", "1 day", "25 hours", "-1 s", "1 microsecond", "100 years", "1 month"),
    *("178000000 years", "-178000000 years"),
)
TIMES: Final = (
    *("2020-01-01Z", "2026-01-01Z", "2100-01-01Z", "infinity", "-infinity", "294276-12-31Z"),
    *("4713-01-02 BC", "0001-01-01Z"),
)
TEXTS: Final = (
    *("", " ", "\n", "\x01", "\x7f", "ä" * 501, "'; DROP TABLE x; --", "%s %I $1 {}", "\\", '"'),
    *("\u202e", "\U0001f4b8", "e\u0301", "null", "-1", "{}", "x" * 1000, "\ud7ff", "\ufffe"),
)


def call(values: Values, function: Function) -> tuple[str, list[Any]]:
    row = values.row(argument.removeprefix("p_") for argument, _, _ in function.arguments)
    named: list[str] = []
    parameters: list[Any] = []
    for argument, kind, optional in function.arguments:
        if optional and values.random.random() < 0.5:
            continue
        if kind == "jsonb":
            given: Any = values.batch(function.keys.get(argument, {}))
        else:
            given = values.value(argument.removeprefix("p_"), kind, row)
        named.append(f"{argument} => %s::{kind}")
        parameters.append(given)
    return f"SELECT * FROM orchestration.{function.name}({', '.join(named)})", parameters


def plant(owner: Connect) -> None:
    """Insert rows with secret values, and return ids that the calls can use."""
    attestations = [
        scalar(
            owner,
            "INSERT INTO orchestration.ingress_attestations (caller_identity, idempotency_key,"
            " payload_hash, policy_version_id, token_hash, client_cert_fingerprint_sha256)"
            " SELECT 'planted', %s, %s, id, %s, %s FROM orchestration.policy_versions"
            " WHERE status = 'ACTIVE' RETURNING id",
            (f"planted-{number}", digest("planted"), CREDENTIAL, CREDENTIAL),
        )
        for number in range(5)
    ]
    for number, attestation in enumerate(attestations):
        owner.execute(
            "INSERT INTO orchestration.instructions (participant_id, idempotency_key,"
            " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
            " creditor_account, payload, attestation_id, policy_version_id)"
            " SELECT 'bank-a', %s, 'pain.001', 'e2e', 1, 'EUR', %s, %s, %s::jsonb, a.id,"
            " a.policy_version_id FROM orchestration.ingress_attestations a WHERE a.id = %s",
            (f"planted-{number}", ACCOUNT, ACCOUNT, json.dumps({"iban": ACCOUNT}), attestation),
        )


def judge(
    role: str,
    connection: Connect,
    function: Function,
    statement: str,
    parameters: Sequence[Any],
    accepted: Counter[str],
) -> str | None:
    """Return what is wrong with the answer, if anything, and count the calls that were accepted."""
    try:
        rows = connection.execute(statement, parameters).fetchall()
    except psycopg.Error as error:
        diag = error.diag
        told = " ".join(
            str(part) for part in (error, diag.message_detail, diag.message_hint, diag.context)
        )
        # A function that runs as its caller gets the error of the function that it calls.
        refused_inside = error.sqlstate == "42501" and function.name in AS_CALLER
        if error.sqlstate not in LISTED and not refused_inside:
            return f"{error.sqlstate}: {told[:1000]}"
        if diag.table_name in SECRETIVE and "Failing row contains" in told:
            return f"shows the row: {told[:1000]}"
        if any(secret in told for secret in SECRETS):
            return f"leaks: {told[:1000]}"
        if "x" * 201 in told or "ä" * 201 in told or len(diag.message_primary or "") > 300:
            return f"echoes: {told[:1000]}"
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return f"the connection is left in {connection.info.transaction_status}"
        return None
    accepted[function.name] += 1
    hidden = [secret for secret, readers in SECRETS.items() if role not in readers]
    if hidden and any(secret in repr(rows) for secret in hidden):
        return f"returns a secret: {function.name}"
    return None


def release_all(control: Connect) -> None:
    """Release every kill switch that a random call has engaged. Otherwise all later calls get
    P7501."""
    control.execute(
        "SELECT orchestration.release_kill_switch(p_scope => s.scope, p_reason => 'fuzz',"
        " p_target => s.target) FROM orchestration.kill_switch_state s WHERE s.engaged"
    )


BROKEN: Final = {
    "an item is neither pending nor terminal, or both": """
        SELECT i.outbox_id FROM orchestration.payment_outbox_items i
        WHERE EXISTS (SELECT FROM orchestration.payment_outbox_pending p
                      WHERE p.outbox_id = i.outbox_id)
          = EXISTS (SELECT FROM orchestration.payment_outbox_attempts t
                    WHERE t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED'))
    """,
    "a pending row has no item": """
        SELECT outbox_id FROM orchestration.payment_outbox_pending
        EXCEPT SELECT outbox_id FROM orchestration.payment_outbox_items
    """,
    "two items of one key are live or dispatched": """
        SELECT i.instruction_id, i.idempotency_key
        FROM orchestration.payment_outbox_items i
        LEFT JOIN orchestration.payment_outbox_attempts t
          ON t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
        WHERE t.state IS DISTINCT FROM 'FAILED'
        GROUP BY 1, 2 HAVING count(*) > 1
    """,
    "sequence numbers have gaps": """
        SELECT participant_id FROM orchestration.payment_outbox_items
        GROUP BY 1 HAVING (min(sequence_id), max(sequence_id), count(DISTINCT sequence_id))
          <> (1, count(*), count(*))
    """,
    "attempts are not opened and closed in order": """
        SELECT outbox_id FROM (
          SELECT outbox_id, attempt_no, phase,
                 row_number() OVER (PARTITION BY outbox_id ORDER BY attempt_no, phase DESC) AS place
          FROM orchestration.payment_outbox_attempts
        ) a
        WHERE (attempt_no, phase)
          <> ((place + 1) / 2, CASE place % 2 WHEN 1 THEN 'OPEN' ELSE 'CLOSE' END)
    """,
    "an instruction's history does not lead to its state": """
        SELECT i.id FROM orchestration.instructions i
        WHERE (i.version, i.state) IS DISTINCT FROM (
          SELECT (count(*)::integer, (array_agg(h.to_state ORDER BY h.version DESC))[1])
          FROM orchestration.status_history h WHERE h.instruction_id = i.id)
    """,
    "a completed instruction has nothing dispatched": """
        SELECT i.id FROM orchestration.instructions i
        WHERE i.state = 'COMPLETED' AND NOT EXISTS (
          SELECT FROM orchestration.payment_outbox_items o
          JOIN orchestration.payment_outbox_attempts t ON t.outbox_id = o.outbox_id
          WHERE o.instruction_id = i.id AND t.state IN ('DISPATCHED', 'FAILED'))
    """,
    "its receiver authorized an instruction": """
        SELECT i.id FROM orchestration.instructions i
        JOIN orchestration.status_history h ON h.instruction_id = i.id
        WHERE h.to_state = 'AUTHORIZED' AND h.db_user = i.db_user
          AND h.db_user LIKE '%ingest%'
    """,
    "a chain has a gap or a fork": """
        SELECT id FROM (
          SELECT id, chain_seq, prev_hash,
                 row_number() OVER w AS place, lag(record_hash, 1, '') OVER w AS before
          FROM orchestration.ingress_attestations
          WINDOW w AS (PARTITION BY caller_identity ORDER BY chain_seq)
        ) a
        WHERE (chain_seq, prev_hash) <> (place, before)
    """,
    "there is not exactly one ACTIVE policy": """
        SELECT count(*) FROM orchestration.policy_versions WHERE status = 'ACTIVE'
        HAVING count(*) <> 1
    """,
    "an act of governance has no entry of its own": """
        SELECT k.event_no FROM orchestration.kill_switches k
        WHERE (SELECT count(*) FROM orchestration.audit_log a
               WHERE a.table_name = 'kill_switches' AND a.after ? k.event_no::text) <> 1
    """,
}


def findings(owner: Connect) -> dict[str, list[Any]]:
    """Return the findings of the verify functions and of the independent queries above."""
    found: dict[str, list[Any]] = {
        name: owner.execute(query).fetchall() for name, query in BROKEN.items()
    }
    for name, columns, arguments in owner.execute(
        "SELECT proname, proallargtypes IS NOT NULL AND 'ok' = ANY (proargnames), pronargs"
        " FROM pg_proc WHERE pronamespace = 'orchestration'::regnamespace"
        " AND proname LIKE 'verify%'"
    ).fetchall():
        reports = "NOT f.ok" if columns else "true"
        if arguments == 0:
            query = f"SELECT f FROM orchestration.{name}() f WHERE {reports}"
        elif name == "verify_attestation_chain":
            query = (
                "SELECT h.caller_identity, f FROM orchestration.ingress_attestation_heads h"
                f" CROSS JOIN LATERAL orchestration.{name}(h.caller_identity) f WHERE {reports}"
            )
        else:
            continue
        found[name] = owner.execute(query).fetchall()
    return {name: rows for name, rows in found.items() if rows}


def rounds(generator: random.Random) -> Iterator[tuple[str, int]]:
    """Use the roles in turn, so that each one finds the rows that the others have left."""
    left = dict.fromkeys(RUNTIME_ROLES, CALLS)
    while any(left.values()):
        for role in generator.sample(RUNTIME_ROLES, len(RUNTIME_ROLES)):
            share = min(CHUNK, left[role])
            left[role] -= share
            if share:
                yield role, share


@pytest.mark.instructed
@pytest.mark.invariant("INV-API-001", "INV-API-003")
def test_random_calls_break_nothing(
    owner: Connect, superuser: Connect, login: Callable[[str], Connect]
) -> None:
    generator = random.Random(SEED)
    values = Values(generator)
    plant(owner)
    logins = {role: login(role) for role in RUNTIME_ROLES}
    callable_by = {role: functions_of(connection) for role, connection in logins.items()}
    for connection in logins.values():
        connection.execute("SET statement_timeout = '10s'")
    accepted: Counter[str] = Counter()
    for role, share in rounds(generator):
        functions = callable_by[role]
        if not functions:
            continue
        values.look(superuser)
        # A function without arguments returns the same again, and reading everything is expensive.
        weights = [1.0 if f.arguments else 0.005 for f in functions]
        for number in range(share):
            (function,) = generator.choices(functions, weights)
            statement, parameters = call(values, function)
            wrong = judge(role, logins[role], function, statement, parameters, accepted)
            assert wrong is None, (
                f"FUZZ_SEED={SEED} FUZZ_CALLS={CALLS}, {role}, call {number}: {statement}"
                f" {str(parameters)[:2000]}: {wrong}"
            )
        release_all(logins["control"])
    # If every call was rejected, the test would prove nothing.
    names = {function.name for functions in callable_by.values() for function in functions}
    assert len(accepted) > len(names) * 2 // 3, names - accepted.keys()
    assert findings(owner) == {}, f"FUZZ_SEED={SEED} FUZZ_CALLS={CALLS}"

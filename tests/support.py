"""Helpers that the tests share: driver connections, refusals as values, and test content."""

import hashlib
import itertools
import json
import os
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from sqlalchemy import URL
from tools import pooler

from orchestration.records import Record

Connect = psycopg.Connection[TupleRow]

POOLED = bool(os.environ.get(pooler.VARIABLE))
"""Whether the engines of this run connect through a pooler in transaction mode."""

ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def connect(url: URL) -> Connect:
    """Open a driver connection in autocommit mode; `with connection.transaction()` begins a
    transaction."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


@dataclass(frozen=True)
class Refusal:
    """An error of the server, with everything that a caller can rely on."""

    sqlstate: str | None
    message: str
    constraint: str | None
    table: str | None
    column: str | None
    detail: str | None
    hint: str | None

    @property
    def keys(self) -> dict[str, Any]:
        """Parse DETAIL as the JSON object that our errors contain."""
        assert self.detail is not None
        parsed = json.loads(self.detail)
        assert isinstance(parsed, dict)
        return parsed

    @classmethod
    def of(cls, error: psycopg.Error) -> "Refusal":
        return cls(
            error.sqlstate,
            error.diag.message_primary or str(error),
            error.diag.constraint_name,
            error.diag.table_name,
            error.diag.column_name,
            error.diag.message_detail,
            error.diag.message_hint,
        )


def refusal(
    connection: Connect, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
) -> Refusal:
    """Return the error that this statement gets, at once or at COMMIT. Fails if there is none."""
    try:
        with connection.transaction():
            connection.execute(statement, parameters or None)
    except psycopg.Error as error:
        return Refusal.of(error)
    raise AssertionError(f"the server accepted: {statement}")


def assert_invariant(found: Refusal, invariant: str, sqlstate: str, table: str) -> None:
    """The error has the shape of `raise_invariant`: the id in MESSAGE and CONSTRAINT, DETAIL as
    JSON."""
    assert (found.sqlstate, found.constraint, found.table) == (sqlstate, invariant, table), found
    assert found.message.startswith(f"{invariant}: ")
    assert isinstance(found.keys, dict)
    assert found.hint


def backend(connection: Connect) -> int:
    """Return the process id of the backend of a connection."""
    return connection.info.backend_pid


def await_blocked(observer: Connect, pid: int, *, within: float = 10.0) -> list[int]:
    """Wait until that backend waits for a lock, and return the backends that block it."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        row = observer.execute("SELECT pg_blocking_pids(%s)", (pid,)).fetchone()
        if row is not None and row[0]:
            return list(row[0])
        time.sleep(0.005)
    raise AssertionError(f"backend {pid} waits for nothing")


def digest(*parts: object) -> str:
    """Return a SHA-256 in lowercase hexadecimal, the format of the hash columns."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


PARTICIPANTS = ("bank-a", "bank-b", "p", "q", "participant")
"""The participants that have authorized instructions in the database of an `instructed` test."""
INSTRUCTIONS_EACH = 100

_numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


def instruction_id(participant_id: str, number: int) -> uuid.UUID:
    """The id of one of a participant's authorized instructions, 0 to 99, in an `instructed`
    test."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{participant_id}/{number}")


def new_instruction_id(participant_id: str = "bank-a") -> uuid.UUID:
    """The id of an authorized instruction that an `instructed` test has not used yet."""
    return instruction_id(participant_id, next(_numbers[participant_id]) % INSTRUCTIONS_EACH)


def authorize_instructions(
    connection: Connect, instructions: Iterable[tuple[uuid.UUID | str, str]]
) -> None:
    """Create authorized instructions, given as id and participant, and the rows that they refer to.
    Requires the owner."""
    ids, participants = zip(*instructions, strict=True)
    accepted = connection.execute(
        "SELECT id FROM orchestration.policy_versions WHERE status = 'ACTIVE'"
    ).fetchone()
    policy = accepted[0] if accepted else activate_policy(connection, "instructions")
    attestation_id = scalar(
        connection,
        "INSERT INTO orchestration.ingress_attestations"
        " (caller_identity, idempotency_key, payload_hash, policy_version_id)"
        " VALUES ('instructions', %s, %s, %s) RETURNING id",
        (uuid.uuid4().hex, digest("instructions"), policy),
    )
    connection.execute(
        "INSERT INTO orchestration.instructions (id, participant_id, idempotency_key,"
        " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, attestation_id, policy_version_id)"
        " SELECT i.id, i.participant_id, i.id::text, 'pain.001', i.id::text, 100, 'EUR',"
        " 'debtor', 'creditor', '{}', %s, %s"
        " FROM unnest(%s::uuid[], %s::text[]) AS i (id, participant_id)",
        (attestation_id, policy, [str(id) for id in ids], list(participants)),
    )
    connection.execute(
        "UPDATE orchestration.instructions SET state = 'AUTHORIZED' WHERE id = ANY (%s)",
        ([uuid.UUID(str(id)) for id in ids],),
    )


def activate_policy(connection: Connect, id: str = "v1", grace: str = "1 hour") -> str:
    """Rotate to a policy version with this id. Requires control or the owner."""
    connection.execute(
        "SELECT FROM orchestration.rotate_policy_version(p_id => %s, p_description => 'test',"
        " p_checksum => %s, p_grace => %s::interval, p_created_by => 'test')",
        (id, digest(id), grace),
    )
    return id


def documented(page: str) -> str:
    """Read a page of docs/."""
    return (Path(__file__).parents[1] / "docs" / page).read_text("utf-8")


def block(page: str, language: str) -> str:
    """Return the only code block of this language on a page of docs/."""
    fences = rf"^```{language}\n(.*?)^```$"
    (found,) = re.findall(fences, documented(page), re.MULTILINE | re.DOTALL)
    return str(found)


def vectors(page: str) -> list[dict[str, Any]]:
    """Return the test vectors on a page of docs/."""
    published: list[dict[str, Any]] = json.loads(block(page, "json"))
    return published


def attestation_preimage(record: Mapping[str, Any]) -> bytes:
    """Return the bytes that record_hash is the hash of, as docs/attestation-chain.md describes
    them. The function is written from the document only; attested_at must be an aware datetime."""
    since_1970 = record["attested_at"] - datetime(1970, 1, 1, tzinfo=UTC)
    fields: tuple[str | None, ...] = (
        "orchestration.attestation.v1",
        str(record["id"]),
        record["caller_identity"],
        str(record["chain_seq"]),
        record["idempotency_key"],
        record["payload_hash"],
        record["signature_hash"],
        record["client_cert_fingerprint_sha256"],
        record["token_hash"],
        record["policy_version_id"],
        "t" if record["execution_started"] else "f",
        "t" if record["execution_completed"] else "f",
        record["terminal_status"],
        str(since_1970 // timedelta(microseconds=1)),
        record["db_user"],
        record["prev_hash"],
    )
    return encode_fields(fields)


def encode_fields(fields: Iterable[str | None]) -> bytes:
    """Encode each field as its length in octets, a colon, the octets and a comma; a null as a
    hyphen and a comma."""
    encoded = b""
    for field in fields:
        if field is None:
            encoded += b"-,"
        else:
            octets = field.encode()
            encoded += str(len(octets)).encode() + b":" + octets + b","
    return encoded


def audit_preimage(record: Mapping[str, Any]) -> bytes:
    """Return the bytes that an entry's record_hash is the hash of, as docs/audit-log.md describes
    them. `before`, `after` and `client_addr` must be given as text."""
    since_1970 = record["occurred_at"] - datetime(1970, 1, 1, tzinfo=UTC)
    return encode_fields(
        (
            "orchestration.audit.v1",
            str(record["chain_seq"]),
            record["action"],
            record["table_name"],
            record["before"],
            record["after"],
            str(since_1970 // timedelta(microseconds=1)),
            record["db_user"],
            record["db_role"],
            record["client_addr"],
            record["prev_hash"],
        )
    )


def audit_record_hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(audit_preimage(record)).hexdigest()


def attestation_record_hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(attestation_preimage(record)).hexdigest()


ROWS = """
SELECT string_agg(format('SELECT %L AS name, t::text AS content FROM %s t',
                         c.relname, c.oid::regclass), ' UNION ALL ')
FROM pg_catalog.pg_class c
WHERE c.relnamespace = 'orchestration'::regnamespace AND c.relkind = 'r'
"""

OBJECTS = """
SELECT c.relname, concat(c.relacl, t.triggers, k.constraints)
FROM pg_catalog.pg_class c
CROSS JOIN LATERAL (
  SELECT string_agg(concat(g.tgname, g.tgenabled), ',' ORDER BY g.tgname) AS triggers
  FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid
) t
CROSS JOIN LATERAL (
  SELECT string_agg(n.conname, ',' ORDER BY n.conname) AS constraints
  FROM pg_catalog.pg_constraint n WHERE n.conrelid = c.oid
) k
WHERE c.relnamespace = 'orchestration'::regnamespace AND c.relkind IN ('r', 'i', 'v')
"""


def picture(connection: Connect) -> str:
    """Return a digest of every row of the schema, and of its triggers, constraints and grants."""
    contents = f"{scalar(connection, ROWS)} UNION ALL {OBJECTS}"
    return str(
        scalar(
            connection,
            "SELECT md5(string_agg(p.name || p.content, '' ORDER BY p.name, p.content))"
            f" FROM ({contents}) p",
        )
    )


def attempt(connection: Connect, statements: Sequence[str]) -> Refusal | None:
    """Run these statements in one transaction. Return its error, or None if it was committed."""
    try:
        with connection.transaction():
            run(connection, statements)
    except psycopg.Error as error:
        return Refusal.of(error)
    return None


def attempt_without(
    connection: Connect, objects: Iterable[str], statements: Sequence[str]
) -> Refusal | None:
    """Like `attempt`, but in a transaction that first drops these objects and is rolled back at its
    end, after every deferred constraint and trigger has fired."""
    try:
        with connection.transaction(force_rollback=True):
            for path in objects:
                drop(connection, path)
            run(connection, statements)
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except psycopg.Error as error:
        return Refusal.of(error)
    return None


def run(connection: Connect, statements: Sequence[str]) -> None:
    """Execute the statements in turn. The lines after a COPY are its data."""
    for statement in statements:
        command, _, data = statement.partition("\n")
        if command.startswith("COPY ") and data:
            with connection.cursor().copy(command) as stream:
                stream.write(data)
        else:
            connection.execute(statement)


def drop(connection: Connect, path: str) -> None:
    """Drop the object with this path in schema.read()."""
    kind, _, name = path.partition("/")
    if kind == "triggers":
        table, _, trigger = name.partition("__")
        connection.execute(
            sql.SQL("DROP TRIGGER {} ON orchestration.{}").format(
                sql.Identifier(trigger), sql.Identifier(table)
            )
        )
    elif kind == "constraints":
        row = connection.execute(
            "SELECT conrelid::regclass::text FROM pg_constraint WHERE conname = %s", (name,)
        ).fetchone()
        assert row is not None, name
        connection.execute(
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT {} CASCADE").format(
                sql.SQL(row[0]), sql.Identifier(name)
            )
        )
    else:
        connection.execute(sql.SQL("DROP INDEX orchestration.{}").format(sql.Identifier(name)))


R = TypeVar("R", bound=Record)


def replayed(record: R) -> R:
    """Return the record as a repeated call returns it."""
    return record.model_copy(update={"replayed": True})


def scalar(
    connection: Connect, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
) -> Any:
    """Return the only value of a query."""
    row = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    return row[0]

"""What the tests share: raw connections, refusals as values, and the content they are made of."""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import URL

Connect = psycopg.Connection[TupleRow]

ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def connect(url: URL) -> Connect:
    """A driver connection in autocommit; `with connection.transaction()` begins one."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


@dataclass(frozen=True)
class Refusal:
    """How the server refused: everything that a caller may rely on."""

    sqlstate: str | None
    message: str
    constraint: str | None
    table: str | None
    column: str | None
    detail: str | None
    hint: str | None

    @property
    def keys(self) -> dict[str, Any]:
        """DETAIL as the JSON object that a refusal of ours carries."""
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
    """The refusal that this statement meets, at once or at COMMIT; fails where it meets none."""
    try:
        with connection.transaction():
            connection.execute(statement, parameters or None)  # type: ignore[arg-type]
    except psycopg.Error as error:
        return Refusal.of(error)
    raise AssertionError(f"the server accepted: {statement}")


def assert_invariant(found: Refusal, invariant: str, sqlstate: str, table: str) -> None:
    """The refusal has the shape of `raise_invariant`: id in MESSAGE and CONSTRAINT, JSON DETAIL."""
    assert (found.sqlstate, found.constraint, found.table) == (sqlstate, invariant, table), found
    assert found.message.startswith(f"{invariant}: ")
    assert isinstance(found.keys, dict)
    assert found.hint


def digest(*parts: object) -> str:
    """A SHA-256 in lowercase hex, as the columns want one."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def new_instruction_id() -> uuid.UUID:
    """The one place that makes instruction ids."""
    return uuid.uuid4()


def activate_policy(connection: Connect, id: str = "v1", grace: str = "1 hour") -> str:
    """Rotate to a policy version of that id; needs control or owner."""
    connection.execute(
        "SELECT FROM orchestration.rotate_policy_version(p_id => %s, p_description => 'test',"
        " p_checksum => %s, p_grace => %s::interval, p_created_by => 'test')",
        (id, digest(id), grace),
    )
    return id

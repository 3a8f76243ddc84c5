"""The declarative base: one schema, one naming convention, typed columns."""

from datetime import datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import BigInteger, CheckConstraint, DateTime, FetchedValue, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeEngine

from orchestration.vocabulary import MAX_KEY_OCTETS, MAX_PAYLOAD_OCTETS, MAX_TEXT_OCTETS

SCHEMA = "orchestration"

# The columns that the database sets on INSERT if the row has no value for them.
assigned = FetchedValue()

DbUser = Annotated[str, mapped_column(Text(), server_default=assigned)]
"""The login that wrote the row (session_user). The database sets it and accepts no other value."""
XactId = Annotated[int, mapped_column(BigInteger(), server_default=assigned)]
"""The transaction that wrote the row. It is meaningless after a restore into another cluster."""
Singleton = Annotated[
    bool, mapped_column(primary_key=True, autoincrement=False, server_default=text("true"))
]
"""The primary key of a table with exactly one row."""


class Base(DeclarativeBase):
    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        },
    )
    type_annotation_map: ClassVar[dict[Any, TypeEngine[Any]]] = {
        str: Text(),
        int: BigInteger(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
    }


def in_years(*columns: str) -> str:
    """The CHECK of times: years 1 to 9998 in UTC, which every reader's calendar can represent.

    It avoids BETWEEN, because a dump and restore would change the parentheses of the first one.
    """
    year = "extract(year FROM {} AT TIME ZONE 'UTC')"
    return " AND ".join(
        f"{year.format(column)} >= 1 AND {year.format(column)} <= 9998" for column in columns
    )


def hex64(column: str) -> str:
    """The CHECK of a SHA-256 in lowercase hex. A regular expression alone is slower."""
    return f"octet_length({column}) = 64 AND {column} ~ '^[0-9a-f]*$'"


def key(column: str) -> str:
    """The CHECK of a text key, which an index must be able to store."""
    return f"octet_length({column}) >= 1 AND octet_length({column}) <= {MAX_KEY_OCTETS}"


def free_text(column: str) -> str:
    """The CHECK of a free text that must not be empty."""
    return f"octet_length({column}) >= 1 AND octet_length({column}) <= {MAX_TEXT_OCTETS}"


def readable_object(column: str) -> str:
    """The CHECK of a JSON object that every JSON parser can read: 500 levels, 1234 digits."""
    return (
        f"jsonb_typeof({column}) = 'object' AND (octet_length({column}::text) <= 1000"
        f" OR NOT jsonb_path_exists({column}, 'strict $.**{{501}}')"
        f" AND NOT jsonb_path_exists({column}, 'strict $.** ? (@ >= $n || @ <= -$n)',"
        " ('{\"n\": 1' || repeat('0', 1234) || '}')::jsonb))"
    )


def payload_rules() -> tuple[CheckConstraint, ...]:
    """The CHECKs of a payload, its salt and its hash."""
    return (
        CheckConstraint(
            f"octet_length(payload::text) <= {MAX_PAYLOAD_OCTETS} AND {readable_object('payload')}",
            name="payload",
        ),
        CheckConstraint("octet_length(payload_salt) = 16", name="payload_salt"),
        CheckConstraint(
            "payload_hash = encode(sha256('orchestration.payload.v1'::bytea || payload_salt"
            " || convert_to(payload::text, 'UTF8')), 'hex')",
            name="payload_hash",
        ),
    )

"""The frozen byte format of an entry's record_hash (INV-AUD-001): the published vectors hold."""

import re
from datetime import datetime
from typing import Any

import pytest
from tests.support import audit_preimage, audit_record_hash, block, documented, vectors

from orchestration.vocabulary import AuditAction

PAGE = "audit-log.md"
VECTORS = vectors(PAGE)


def as_stored(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"occurred_at": datetime.fromisoformat(record["occurred_at"])}


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_published_vector_holds(vector: dict[str, Any]) -> None:
    record = as_stored(vector["record"])
    assert len(audit_preimage(record)) == vector["preimage_octets"]
    assert audit_record_hash(record) == vector["record_hash"]


def test_the_vectors_cover_every_field_in_both_its_states() -> None:
    assert len({vector["record_hash"] for vector in VECTORS}) == len(VECTORS)
    for nullable in ("before", "client_addr"):
        assert {vector["record"][nullable] is None for vector in VECTORS} == {True, False}
    assert {vector["record"]["prev_hash"] == "" for vector in VECTORS} == {True, False}


@pytest.mark.invariant("INV-AUD-001")
def test_the_example_of_the_page_is_the_first_vector() -> None:
    shown = "".join(block(PAGE, "text").splitlines()).encode()
    assert shown == audit_preimage(as_stored(VECTORS[0]["record"]))


def test_the_page_names_every_action() -> None:
    (table,) = re.findall(
        r"^\| `action` \| act \|.*?\n\n", documented(PAGE), re.MULTILINE | re.DOTALL
    )
    assert {action for action in AuditAction if f"`{action}`" in table} == set(AuditAction)

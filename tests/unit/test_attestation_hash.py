"""The frozen byte format of an attestation's record_hash (INV-ATT-006): the published vectors hold,
and two different records never have the same bytes."""

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import attestation_preimage, attestation_record_hash, block, documented, vectors

from orchestration.vocabulary import TerminalStatus

PAGE = "attestation-chain.md"
VECTORS = vectors(PAGE)

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


def as_stored(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"attested_at": datetime.fromisoformat(record["attested_at"])}


def decode(octets: bytes) -> list[bytes | None]:
    """The fields of a preimage, read as the page describes them."""
    fields: list[bytes | None] = []
    while octets:
        if octets.startswith(b"-,"):
            fields.append(None)
            octets = octets[2:]
            continue
        length, _, rest = octets.partition(b":")
        assert re.fullmatch(rb"0|[1-9][0-9]*", length)
        end = int(length)
        assert rest[end : end + 1] == b","
        fields.append(rest[:end])
        octets = rest[end + 1 :]
    return fields


@pytest.mark.invariant("INV-ATT-006")
@each_vector
def test_a_published_vector_holds(vector: dict[str, Any]) -> None:
    record = as_stored(vector["record"])
    assert len(attestation_preimage(record)) == vector["preimage_octets"]
    assert attestation_record_hash(record) == vector["record_hash"]


def test_the_vectors_cover_every_field_in_both_its_states() -> None:
    assert len(VECTORS) >= 4
    assert len({vector["record_hash"] for vector in VECTORS}) == len(VECTORS)
    for nullable in (
        *("signature_hash", "client_cert_fingerprint_sha256", "token_hash", "terminal_status"),
    ):
        assert {vector["record"][nullable] is None for vector in VECTORS} == {True, False}
    assert {vector["record"]["terminal_status"] for vector in VECTORS} == {None, *TerminalStatus}
    assert {vector["record"]["prev_hash"] == "" for vector in VECTORS} == {True, False}
    assert any(not vector["record"]["caller_identity"].isascii() for vector in VECTORS)
    assert any(max(vector["record"]["idempotency_key"]) > "\uffff" for vector in VECTORS)
    assert any(vector["record"]["attested_at"] < "1970" for vector in VECTORS)


@pytest.mark.invariant("INV-ATT-006")
def test_the_example_of_the_page_is_the_first_vector() -> None:
    shown = "".join(block(PAGE, "text").splitlines()).encode()
    assert shown == attestation_preimage(as_stored(VECTORS[0]["record"]))


def test_the_page_names_the_fields_in_their_order() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \| ", documented(PAGE), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 17))
    named = [field.strip("`") for _, field in rows[1:]]
    assert named == list(VECTORS[0]["record"])


# Text made of what the format itself is made of is the likeliest to collide.
texts = st.one_of(
    st.text(alphabet=":,-0123456789tfé", max_size=8),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8),
)
hashes = st.text(alphabet="0123456789abcdef", min_size=64, max_size=64)
records = st.fixed_dictionaries(
    {
        "id": st.uuids(),
        "caller_identity": texts,
        "chain_seq": st.integers(1, 2**63 - 1),
        "idempotency_key": texts,
        "payload_hash": hashes,
        "signature_hash": st.none() | hashes,
        "client_cert_fingerprint_sha256": st.none() | hashes,
        "token_hash": st.none() | hashes,
        "policy_version_id": texts,
        "execution_started": st.booleans(),
        "execution_completed": st.booleans(),
        "terminal_status": st.none() | st.sampled_from([status.value for status in TerminalStatus]),
        "attested_at": st.datetimes(timezones=st.just(UTC)),
        "db_user": texts,
        "prev_hash": st.just("") | hashes,
    }
)


def read_back(octets: bytes) -> dict[str, Any]:
    """The record that a preimage is of: what can be read back was not lost in the encoding."""
    text = [None if field is None else field.decode() for field in decode(octets)]
    assert text.pop(0) == "orchestration.attestation.v1"
    found: dict[str, Any] = dict(zip(VECTORS[0]["record"], text, strict=True))
    return found | {
        "id": UUID(found["id"]),
        "chain_seq": int(found["chain_seq"]),
        "execution_started": {"t": True, "f": False}[found["execution_started"]],
        "execution_completed": {"t": True, "f": False}[found["execution_completed"]],
        "attested_at": int(found["attested_at"]),
    }


def microseconds(at: datetime) -> int:
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


@pytest.mark.invariant("INV-ATT-006")
@given(records)
def test_a_record_can_be_read_back_from_its_bytes(record: dict[str, Any]) -> None:
    expected = record | {"attested_at": microseconds(record["attested_at"])}
    assert read_back(attestation_preimage(record)) == expected


@pytest.mark.invariant("INV-ATT-006")
@given(records, records, st.sets(st.sampled_from(list(VECTORS[0]["record"]))))
def test_two_different_records_never_have_the_same_bytes(
    one: dict[str, Any], other: dict[str, Any], differing: set[str]
) -> None:
    # The other differs from the one in these fields at most: neighbours collide sooner.
    neighbour = one | {field: other[field] for field in differing}
    assert (attestation_preimage(one) == attestation_preimage(neighbour)) == (one == neighbour)


@pytest.mark.invariant("INV-ATT-006")
@given(texts, texts, texts, texts)
def test_text_moved_across_a_border_changes_the_bytes(
    first: str, second: str, third: str, fourth: str
) -> None:
    one = as_stored(VECTORS[0]["record"]) | {"caller_identity": first, "idempotency_key": second}
    other = one | {"caller_identity": third, "idempotency_key": fourth}
    same = (first, second) == (third, fourth)
    assert (attestation_preimage(one) == attestation_preimage(other)) == same

"""orchestration.uuid_v7(): RFC 9562, version 7, method 3, ordered to the microsecond."""

import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from tests.support import Connect, scalar

CALLS = 10_000


def many(connection: Connect, calls: int) -> list[uuid.UUID]:
    return [
        row[0]
        for row in connection.execute(
            "SELECT orchestration.uuid_v7() FROM generate_series(1, %s)", (calls,)
        ).fetchall()
    ]


def microseconds(made: uuid.UUID) -> int:
    """Since 1970: 48 bits of milliseconds, and 12 bits of their fraction in units of 1/4096."""
    milliseconds = made.int >> 80
    fraction = made.int >> 64 & 0xFFF
    return milliseconds * 1000 + round(fraction * 1000 / 4096)


def test_the_version_is_7_and_the_variant_that_of_the_rfc(owner: Connect) -> None:
    made = many(owner, CALLS)
    assert {one.version for one in made} == {7}
    assert {one.variant for one in made} == {uuid.RFC_4122}
    assert len(set(made)) == CALLS


def test_calls_of_one_session_are_ordered_to_the_microsecond(owner: Connect) -> None:
    made = many(owner, CALLS)
    times = [microseconds(one) for one in made]
    assert times == sorted(times)
    backwards = [
        (earlier, later)
        for earlier, later in pairwise(made)
        if earlier > later and microseconds(earlier) != microseconds(later)
    ]
    assert backwards == []


def test_the_time_in_it_is_the_server_s_clock(owner: Connect) -> None:
    row = owner.execute(
        "SELECT a, b, c FROM (SELECT clock_timestamp() a OFFSET 0) x,"
        " LATERAL (SELECT orchestration.uuid_v7() b OFFSET 0) y,"
        " LATERAL (SELECT clock_timestamp() c OFFSET 0) z"
    ).fetchone()
    assert row is not None
    before, made, after = row
    found = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds(made))
    assert before <= found <= after


def test_two_calls_in_one_row_differ(owner: Connect) -> None:
    assert scalar(owner, "SELECT orchestration.uuid_v7() <> orchestration.uuid_v7()")

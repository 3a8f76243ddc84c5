"""Upgrades of a database with evidence: it verifies as before, and every role can still write."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from sqlalchemy import URL
from tools import scratch

from tests.migrations import evidence
from tests.operations.conftest import Source
from tests.operations.support import differences, findings, go_on, writers

pytestmark = pytest.mark.own_cluster


@pytest.mark.parametrize("revision", evidence.WRITTEN_BY)
def test_evidence_of_an_older_revision_verifies_after_the_upgrade(
    source: Source, empty: Callable[[scratch.Server], URL], revision: str
) -> None:
    url = empty(source.at)
    scratch.upgrade(url, revision)
    with ExitStack() as opened:
        by = writers(url, source.logins, opened)
        evidence.fill(by.control, revision, ingest=by.ingest, executor=by.executor)

    scratch.upgrade(url)

    assert findings(url) == []
    assert differences(url) == []
    go_on(url, source.logins)
    assert findings(url) == []

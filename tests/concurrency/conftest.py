"""The threads that the concurrency tests share."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

THREADS = 40


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as threads:
        yield threads

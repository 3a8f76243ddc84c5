"""Reads the catalogue."""

from typing import Any

from tests.support import Connect


def rows(catalogue: Connect, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return catalogue.execute(query, parameters or None).fetchall()


def names(catalogue: Connect, query: str, *parameters: Any) -> set[str]:
    return {name for (name,) in rows(catalogue, query, *parameters)}

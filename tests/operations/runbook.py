"""Read the SQL of docs/runbook.md, as the page shows it."""

import re
from textwrap import dedent

from tests.support import documented

PAGE = documented("runbook.md")


def blocks(heading: str, language: str = "sql") -> list[str]:
    """Return the code blocks of this language under a heading, in order."""
    _, found, after = PAGE.partition(f"\n## {heading}\n")
    assert found, heading
    section = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    return [
        dedent(one)
        for one in re.findall(rf"^ *```{language}\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    ]


def filled(block: str, **variables: object) -> bytes:
    """Return the block as psql sends it, with these variables set."""

    def value(found: re.Match[str]) -> str:
        quote = found[1]
        text = str(variables[found[2]])
        return f"{quote}{text}{quote}"

    return re.sub(r"(?<!:):(['\"]?)([a-z]+)\1", value, block).encode()

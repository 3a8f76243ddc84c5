"""Checks the Markdown that people write: its length, its width, its tables and its links."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tools.scratch import ROOT

README_LINES: Final = 120
WIDTH: Final = 100
CELL: Final = 200
FENCE: Final = re.compile(r"^ *```")
HEADING: Final = re.compile(r"^#+ (.+)$")
LINK: Final = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
CODE: Final = re.compile(r"`[^`\n]+`")


def pages() -> list[Path]:
    """Every Markdown page that a reader of the repository meets."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def complaints(page: Path) -> list[str]:
    """What is wrong with a page, one sentence per finding, with the line's number."""
    lines = page.read_text("utf-8").splitlines()
    found = list(too_wide(lines)) + list(broken_links(page, lines))
    if page.name == "README.md" and len(lines) > README_LINES:
        found.append(f"it has {len(lines)} lines, and at most {README_LINES} are allowed")
    return found


def too_wide(lines: Iterable[str]) -> Iterator[str]:
    for number, line in prose(lines):
        if line.startswith("|"):
            widest = max(len(cell.strip()) for cell in re.split(r"(?<!\\)\|", line))
            if widest > CELL:
                yield f"line {number}: a cell has {widest} characters, and at most {CELL} fit"
        elif len(line) > WIDTH:
            yield f"line {number}: it has {len(line)} columns, and at most {WIDTH} are allowed"


def broken_links(page: Path, lines: Sequence[str]) -> Iterator[str]:
    """Links to a file or a heading that does not exist. Addresses of the web are not looked up."""
    text = CODE.sub("", "\n".join(line for _, line in prose(lines)))
    for target in LINK.findall(text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"the link {target} leads to no file"
        elif anchor and anchor not in anchors(file.read_text("utf-8").splitlines()):
            yield f"the link {target} leads to no heading"


def anchors(lines: Iterable[str]) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for _, line in prose(lines):
        if heading := HEADING.match(line):
            words = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            repeated = (f"{words}-{number}" for number in range(1, len(found) + 1))
            found.add(words if words not in found else next(n for n in repeated if n not in found))
    return found


def prose(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines outside code blocks, numbered from 1."""
    inside = False
    for number, line in enumerate(lines, 1):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, line

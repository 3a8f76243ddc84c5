"""Each check of the pages finds what it is for, and nothing in a page that is right."""

from pathlib import Path

import pytest
from tools import markdown


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "other.md").write_text("# The other\n\n## What `x` is, again\n\n## A\n\n## A\n")
    return tmp_path / "page.md"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("word " * 20 + "w", "line 1: it has 101 columns"),
        ("| a |\n| --- |\n| " + "x" * 201 + " |", "line 3: a cell has 201 characters"),
        ("[a](none.md)", "the link none.md leads to no file"),
        ("[a\nb](other.md#none)", "the link other.md#none leads to no heading"),
        ("# Here\n\n[a](#there)", "the link #there leads to no heading"),
        ("[a](other.md#a-2)", "the link other.md#a-2 leads to no heading"),
    ],
)
def test_what_is_wrong_is_found(page: Path, text: str, complaint: str) -> None:
    page.write_text(text)
    [found] = markdown.complaints(page)
    assert found.startswith(complaint)


@pytest.mark.parametrize(
    "text",
    [
        "word " * 19 + "words",
        "```text\n" + "x" * 300 + "\n[a](none.md)\n```",
        "| a \\| b |\n| --- |\n| " + "x" * 200 + " |",
        "[a](other.md#what-x-is-again), [b](other.md#a-1), [c](other.md), `[d](e)`",
        "# Here\n\n[a](#here) and [b](https://example.org/none)",
    ],
)
def test_what_is_right_passes(page: Path, text: str) -> None:
    page.write_text(text)
    assert markdown.complaints(page) == []


def test_only_the_readme_has_a_limit_of_lines(page: Path) -> None:
    page.write_text("line\n" * 121)
    assert markdown.complaints(page) == []
    readme = page.with_name("README.md")
    readme.write_text("line\n" * 120)
    assert markdown.complaints(readme) == []
    readme.write_text("line\n" * 121)
    assert markdown.complaints(readme) == ["it has 121 lines, and at most 120 are allowed"]

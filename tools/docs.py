"""docs/invariants.md: the table of guarantees, from the catalogue.

usage: python -m tools.docs write|check
"""

import sys

from orchestration.invariants import CATALOGUE
from tools.scratch import ROOT

PAGE = ROOT / "docs" / "invariants.md"
HEAD = """# The guarantees

Generated from `src/orchestration/invariants.py` by `make docs`. Each object is a file of
`src/orchestration/schema/current/`, generated from a migrated database.

| id | promise | SQLSTATE | exception | enforced by |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    rows = [
        f"| {entry.id} | {entry.sentence} | {', '.join(entry.sqlstates) or '-'} "
        f"| {entry.exception.__name__ if entry.exception else '-'} "
        f"| {', '.join(f'`{path}`' for path in entry.enforced_by)} |"
        for entry in CATALOGUE
    ]
    return HEAD + "\n".join(rows) + "\n"


def main(verb: str) -> int:
    if verb == "write":
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text("utf-8") == page():
        return 0
    print("docs/invariants.md differs from the catalogue: run `make docs`.")
    return 1


if __name__ == "__main__":
    if sys.argv[1:] not in (["write"], ["check"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))

"""alembic/versions.lock: the sha256 of every landed revision, so that an edit of one is noticed.

usage: python -m tools.versions write|check
"""

import hashlib
import sys

from tools.scratch import ROOT

VERSIONS = ROOT / "alembic" / "versions"
LOCK = ROOT / "alembic" / "versions.lock"


def lines() -> list[str]:
    return [
        f"{file.name.partition('_')[0]} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(VERSIONS.glob("*.py"))
    ]


def main(verb: str) -> int:
    if verb == "write":
        LOCK.write_text("\n".join(lines()) + "\n", encoding="utf-8")
        return 0
    landed = LOCK.read_text("utf-8").splitlines()
    edited = [line for line in lines() if line not in landed]
    gone = [line for line in landed if line not in lines()]
    for line in edited:
        print(f"revision {line.split()[0]} is not the one in versions.lock")
    for line in gone:
        print(f"versions.lock names a revision {line.split()[0]} that is not there")
    return 1 if edited or gone else 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["write"], ["check"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))

"""Writes and checks alembic/versions.lock: the sha256 of every revision, so that edits are noticed.

usage: python -m tools.versions write|check
"""

import hashlib
import sys

from tools.scratch import ROOT, VERSIONS

LOCK = ROOT / "alembic" / "versions.lock"


def digests() -> dict[str, str]:
    """Return the sha256 of every revision's file, by revision id."""
    return {
        file.name.partition("_")[0]: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(VERSIONS.glob("*.py"))
    }


def complaints(found: dict[str, str], landed: dict[str, str]) -> list[str]:
    new = found.keys() - landed.keys()
    gone = landed.keys() - found.keys()
    edited = {id for id in found.keys() & landed.keys() if found[id] != landed[id]}
    unreleased = "if it is not released yet, run `python -m tools.versions write`"
    return [
        *(f"revision {id} is new: run `python -m tools.versions write`" for id in sorted(new)),
        *(
            f"revision {id} was edited: restore it and make a new revision, or, {unreleased}"
            for id in sorted(edited)
        ),
        *(f"revision {id} is gone: restore it, or, {unreleased}" for id in sorted(gone)),
    ]


def main(verb: str) -> int:
    if verb == "write":
        lines = [f"{id} {digest}\n" for id, digest in digests().items()]
        LOCK.write_text("".join(lines), encoding="utf-8")
        return 0
    landed = dict(line.split() for line in LOCK.read_text("utf-8").splitlines())
    found = complaints(digests(), landed)
    for complaint in found:
        print(complaint)
    return 1 if found else 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["write"], ["check"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))

"""Records what happened outside the database: every call that a rail got, and every act that was
answered with success.

The processes of a scenario append to one file.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAIL = "rail"


@dataclass(frozen=True)
class Journal:
    path: Path

    def note(self, what: str, **facts: Any) -> None:
        # One write to a file opened for appending: lines of several processes do not mix, and a
        # process that is killed later has still written its line.
        line = json.dumps({"what": what, **facts}, default=str) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def notes(self, *whats: str) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            note: dict[str, Any] = json.loads(line)
            if not whats or note["what"] in whats:
                yield note

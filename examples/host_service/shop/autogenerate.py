"""What `alembic revision --autogenerate` compares if the shop sets `include_schemas`.

Without one of these two, Alembic finds the library's tables in no metadata and writes a revision
that drops them. `tests/test_autogenerate.py` tries both.
"""

import orchestration.models
from shop.models import Base


def leave_out_the_library(name: str | None, type_: str, _parents: object) -> bool:
    return not (type_ == "schema" and name == "orchestration")


BOTH = [Base.metadata, orchestration.models.Base.metadata]

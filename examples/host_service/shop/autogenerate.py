"""What `alembic revision --autogenerate` compares if the shop sets `include_schemas`.

Alembic finds the library's tables in no metadata of the shop and would write a revision that drops
them. Each of these two prevents that. `tests/test_autogenerate.py` tests both.
"""

import orchestration.models
from shop.models import Base


def leave_out_the_library(name: str | None, type_: str, _parents: object) -> bool:
    return not (type_ == "schema" and name == "orchestration")


BOTH = [Base.metadata, orchestration.models.Base.metadata]

"""What a service writes type-checks: mypy and basedpyright read this file too, both strict."""

from typing import TYPE_CHECKING

import pytest

from orchestration.records import Completion
from orchestration.vocabulary import CompletionState, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from sqlalchemy.orm import Session

    from orchestration.transactions import run_in_transaction

    def runs_in_a_transaction(
        sessions: Callable[[], Session], work: Callable[[Session], int], bound: timedelta
    ) -> int:
        return run_in_transaction(sessions, work, deadline=bound, replayable=True)


COMPLETIONS = (
    Completion(state="FAILED", outcome="REJECTED"),
    Completion(state=CompletionState.FAILED, outcome=Outcome.REJECTED),
)


@pytest.mark.parametrize("completion", COMPLETIONS, ids=["strings", "members"])
def test_a_state_and_an_outcome_may_be_given_as_strings(completion: Completion) -> None:
    assert completion.state is CompletionState.FAILED
    assert completion.outcome is Outcome.REJECTED
    assert completion.model_dump() == COMPLETIONS[0].model_dump()


def test_a_string_that_is_none_of_them_is_refused_by_its_field() -> None:
    with pytest.raises(ValueError, match="state"):
        Completion.model_validate({"state": "DONE"})

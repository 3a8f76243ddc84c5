"""The typed errors: the classes, codes and retry values that the contract names."""

import copy
import pickle
from collections.abc import Callable

import pytest

from orchestration import errors
from orchestration.errors import OrchestrationError, Retry

SAFE, LATER, NEVER = Retry.SAFE, Retry.AFTER_RESOLUTION, Retry.NEVER

CODES = {
    "42501": ("InsufficientPrivilege", NEVER),
    "P0001": ("AppendOnlyViolation", NEVER),
    "P7002": ("LeaseLost", NEVER),
    "P7003": ("RetryCeilingExceeded", NEVER),
    "P7004": ("OutboxKeyConflict", NEVER),
    "P7005": ("InvalidAttemptTransition", NEVER),
    "P7006": ("OutboxItemLost", NEVER),
    "P7101": ("InvalidPolicyTransition", NEVER),
    "P7102": ("PolicyDeleteForbidden", NEVER),
    "P7103": ("LastActivePolicy", NEVER),
    "P7104": ("ActivePolicyConflict", NEVER),
    "P7105": ("PolicyNotAccepted", NEVER),
    "P7201": ("InvalidRevocation", NEVER),
    "P7202": ("CredentialRevoked", NEVER),
    "P7301": ("InvalidAttestationState", NEVER),
    "P7302": ("ChainDiscontinuity", NEVER),
    "P7303": ("AttestationKeyConflict", NEVER),
    "P7401": ("InvalidInstructionTransition", NEVER),
    "P7402": ("InstructionKeyConflict", NEVER),
    "P7403": ("StaleInstruction", LATER),
    "P7404": ("InstructionStateForbids", LATER),
    "P7405": ("SegregationOfDuties", NEVER),
    "23505": ("UniqueViolation", NEVER),
    "23503": ("ForeignKeyViolation", NEVER),
    "23514": ("CheckViolation", NEVER),
    "23502": ("NotNullViolation", NEVER),
    "22003": ("NumericValueOutOfRange", NEVER),
    "22007": ("InvalidDatetime", NEVER),
    "22008": ("InvalidDatetime", NEVER),
    "22P05": ("UntranslatableCharacter", NEVER),
    "22P02": ("InvalidTextRepresentation", NEVER),
    "22023": ("InvalidParameterValue", NEVER),
    "P0002": ("NotFound", NEVER),
    "40001": ("SerializationFailure", SAFE),
    "40P01": ("DeadlockDetected", SAFE),
    "55P03": ("LockNotAvailable", SAFE),
    "57014": ("QueryCanceled", LATER),
    "53100": ("DiskFull", SAFE),
    "53200": ("OutOfMemory", SAFE),
    "28P01": ("InvalidPassword", NEVER),
    "28000": ("InvalidAuthorizationSpecification", NEVER),
    "3D000": ("InvalidCatalogName", NEVER),
    "25P02": ("FailedTransaction", NEVER),
    "25006": ("ReadOnlyServer", SAFE),
    "57P01": ("ConnectionLost", SAFE),
    "57P02": ("ConnectionLost", SAFE),
    "57P03": ("ConnectionLost", SAFE),
    "57P05": ("ConnectionLost", SAFE),
    "25P03": ("ConnectionLost", SAFE),
    "53300": ("ConnectionLost", SAFE),
    "08007": ("CommitOutcomeUnknown", LATER),
    "40003": ("CommitOutcomeUnknown", LATER),
    "26000": ("PoolerModeRequired", NEVER),
    "42P05": ("PoolerModeRequired", NEVER),
}
"""The class and the retry of every code of the core."""

OF_THE_ENGINE_AROUND = {
    "P7501": ("KillSwitchEngaged", LATER),
    "P7601": ("UnbalancedJournal", NEVER),
    "P7602": ("SealedJournal", NEVER),
    "P7603": ("OverdraftLimitExceeded", LATER),
    "P7604": ("LedgerKeyConflict", NEVER),
}
"""The same for the codes of the later parts: if a class for such a code exists, it is this one."""

FAMILIES = {
    "P70": errors.OutboxError,
    "P71": errors.PolicyError,
    "P72": errors.RevocationError,
    "P73": errors.AttestationError,
    "P74": errors.InstructionError,
    "P75": errors.KillSwitchError,
}
"""The base of each range of codes."""

WITHOUT_CODE = (errors.SchemaNotReady, errors.UnsupportedDriver, errors.UnclassifiedDatabaseError)
"""The classes of the native group that are not chosen by a code."""


def all_classes(root: type[OrchestrationError] = OrchestrationError) -> list[type]:
    below = (found for child in root.__subclasses__() for found in all_classes(child))
    # A class with two bases is found twice.
    return list(dict.fromkeys([root, *below]))


def tree(cls: type[OrchestrationError], depth: int = 1) -> list[str]:
    """The lines of this class and of the classes whose first base it is."""
    codes = " ".join([cls.__name__, ", ".join(vars(cls).get("sqlstates", ()))]).rstrip()
    bases = ", ".join(base.__name__ for base in cls.__bases__[1:])
    first = "    " * depth + codes + (f" (also {bases})" if bases else "")
    children = [child for child in cls.__subclasses__() if child.__bases__[0] is cls]
    return [first, *(line for child in children for line in tree(child, depth + 1))]


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_the_class_and_the_retry_of_the_contract(code: str) -> None:
    cls = errors.BY_SQLSTATE[code]
    assert (cls.__name__, cls().retry) == CODES[code]


@pytest.mark.parametrize("code", errors.BY_SQLSTATE)
def test_no_class_claims_a_code_that_the_contract_does_not_give_it(code: str) -> None:
    cls = errors.BY_SQLSTATE[code]
    assert (cls.__name__, cls().retry) == (CODES | OF_THE_ENGINE_AROUND)[code]


@pytest.mark.parametrize("code", errors.BY_SQLSTATE)
def test_a_code_of_ours_belongs_to_one_family_and_a_native_code_to_none(code: str) -> None:
    cls = errors.BY_SQLSTATE[code]
    found = [prefix for prefix, family in FAMILIES.items() if issubclass(cls, family)]
    assert found == ([code[:3]] if code.startswith("P7") else [])


@pytest.mark.parametrize("cls", all_classes()[1:], ids=lambda cls: cls.__name__)
def test_every_class_belongs_to_one_family_or_to_the_native_group(
    cls: type[OrchestrationError],
) -> None:
    families = [family for family in FAMILIES.values() if issubclass(cls, family)]
    if not families and cls not in (*WITHOUT_CODE, errors.IdempotencyConflict):
        assert cls.sqlstates, "give the class a family, or a native SQLSTATE"
    assert len(families) <= 1


@pytest.mark.parametrize("code", ["P7004", "P7303", "P7402"])
def test_a_reused_key_is_an_idempotency_conflict_and_an_error_of_its_family(code: str) -> None:
    cls = errors.BY_SQLSTATE[code]
    assert issubclass(cls, errors.IdempotencyConflict)
    assert issubclass(cls, FAMILIES[code[:3]])
    others = [family for prefix, family in FAMILIES.items() if prefix != code[:3]]
    assert not issubclass(cls, tuple(others))


def test_only_reused_keys_are_idempotency_conflicts() -> None:
    codes = [code for cls in all_classes(errors.IdempotencyConflict) for code in cls.sqlstates]
    assert codes == ["P7004", "P7303", "P7402"]


def test_the_module_opens_with_the_tree_of_its_classes() -> None:
    assert "\n\n" + "\n".join(tree(OrchestrationError)) + "\n" in (errors.__doc__ or "")


def test_no_code_is_claimed_by_two_classes() -> None:
    claimed = [code for cls in all_classes() for code in vars(cls).get("sqlstates", ())]
    assert sorted(claimed) == sorted(errors.BY_SQLSTATE)


@pytest.mark.parametrize(
    ("cls", "retry"),
    [
        (OrchestrationError, NEVER),
        (errors.SchemaNotReady, NEVER),
        (errors.UnclassifiedDatabaseError, NEVER),
        (errors.ActivePolicyRace, NEVER),
        (errors.ChainRace, SAFE),
        (errors.InstructionStateRace, LATER),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_a_class_without_a_code_of_its_own_says_what_may_be_done(
    cls: type[OrchestrationError], retry: Retry
) -> None:
    assert cls().retry is retry


def test_the_race_for_active_is_a_conflict_and_a_unique_violation() -> None:
    race = errors.BY_CONSTRAINT["uq_policy_versions_active"]
    assert issubclass(race, errors.ActivePolicyConflict)
    assert issubclass(race, errors.UniqueViolation)


@pytest.mark.parametrize(
    "constraint",
    [
        "uq_ingress_attestations_caller_identity_chain_seq",
        "uq_ingress_attestations_caller_identity_prev_hash",
    ],
)
def test_the_race_for_a_chain_is_a_discontinuity_and_a_unique_violation(constraint: str) -> None:
    race = errors.BY_CONSTRAINT[constraint]
    assert issubclass(race, errors.ChainDiscontinuity)
    assert issubclass(race, errors.UniqueViolation)
    assert race().retry is Retry.SAFE


def test_the_race_for_an_instruction_s_state_is_forbidden_and_a_foreign_key_violation() -> None:
    race = errors.BY_CONSTRAINT["fk_payment_outbox_pending_participant_id_instruction_id_open"]
    assert issubclass(race, errors.InstructionStateForbids)
    assert issubclass(race, errors.ForeignKeyViolation)


@pytest.mark.parametrize("cls", all_classes(), ids=lambda cls: cls.__name__)
def test_an_error_says_of_itself_what_it_means(cls: type[OrchestrationError]) -> None:
    assert str(cls()) == (cls.__doc__ or "").partition("\n")[0]
    assert str(cls())
    assert str(cls("INV-POL-002: RETIRED is final")) == "INV-POL-002: RETIRED is final"


@pytest.mark.parametrize("cls", all_classes(), ids=lambda cls: cls.__name__)
def test_what_is_absent_is_none(cls: type[OrchestrationError]) -> None:
    error = cls()
    assert (error.sqlstate, error.invariant, error.schema, error.table) == (None,) * 4
    assert (error.column, error.constraint, error.detail, error.hint) == (None,) * 4


@pytest.mark.parametrize("cls", all_classes(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_an_error_travels_between_processes_whole(
    cls: type[OrchestrationError], travel: Callable[[OrchestrationError], OrchestrationError]
) -> None:
    error = cls(
        "INV-POL-002: RETIRED is final",
        sqlstate="P7101",
        invariant="INV-POL-002",
        schema="orchestration",
        table="policy_versions",
        column="status",
        constraint="INV-POL-002",
        detail={"id": "v1", "from": "RETIRED"},
        hint="Enter a new version.",
    )
    error.add_note("seen by a worker")
    arrived = travel(error)
    assert type(arrived) is cls
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)
    assert arrived.retry is error.retry


def test_detail_is_the_errors_own_copy() -> None:
    detail = {"id": "v1"}
    error = errors.InvalidPolicyTransition(detail=detail)
    detail["id"] = "v2"
    assert error.detail == {"id": "v1"}

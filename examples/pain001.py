"""Reads the credit transfers of an ISO 20022 pain.001.001.09 file.

`read` checks a file against the XML schema of the message, which the package ``sepaxml`` contains,
and against the file's control figures (NbOfTxs and CtrlSum), which a schema cannot check. It
rejects the whole file with :class:`InvalidPain001` if either check fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias
from uuid import UUID

from lxml import etree

Element: TypeAlias = etree._Element  # pyright: ignore[reportPrivateUsage]
Rail: TypeAlias = Literal["SCT", "SCT_INST", "FPS", "CHAPS", "SWIFT"]

NAMESPACE = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"

# The rail of each service level and local instrument of PmtTpInf.
RAILS: dict[tuple[str, str | None], Rail] = {
    ("SEPA", None): "SCT",
    ("SEPA", "INST"): "SCT_INST",
    ("URNS", None): "FPS",  # urgent, settled net in real time
    ("URGP", None): "CHAPS",  # urgent, settled gross
    ("G001", None): "SWIFT",  # tracked across borders by its UETR
}

# The rails that carry one currency only.
RAIL_CURRENCY: dict[Rail, str] = {"SCT": "EUR", "SCT_INST": "EUR", "FPS": "GBP", "CHAPS": "GBP"}

# Decimal places by ISO 4217, for the currencies this reader accepts.
MINOR_UNITS: dict[str, int] = {
    **dict.fromkeys(("CLP", "ISK", "JPY", "KRW", "VND"), 0),
    **dict.fromkeys(("AED", "AUD", "CAD", "CHF", "CZK", "DKK", "EUR", "GBP", "HKD", "HUF"), 2),
    **dict.fromkeys(("INR", "NOK", "NZD", "PLN", "RON", "SAR", "SEK", "SGD", "USD", "ZAR"), 2),
    **dict.fromkeys(("BHD", "JOD", "KWD", "OMR", "TND"), 3),
}


class InvalidPain001(ValueError):
    """The file is not a valid pain.001 message, or one of its transfers cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditTransfer:
    """One transaction, together with the fields of its payment information block."""

    message_id: str
    payment_information_id: str
    instruction_id: str
    end_to_end_id: str
    uetr: UUID
    debtor_name: str
    debtor_account: str
    debtor_agent: str
    creditor_name: str
    creditor_account: str
    creditor_agent: str
    amount_minor: int
    currency: str
    rail: Rail
    requested_execution_date: date
    remittance: str | None


def read(path: str | Path) -> list[CreditTransfer]:
    """Return the transfers of the file in its order, or raise :class:`InvalidPain001`."""
    document = _parse(Path(path).read_bytes())
    initiation = _child(document, "CstmrCdtTrfInitn")
    header = _child(initiation, "GrpHdr")
    blocks = _children(initiation, "PmtInf")
    _check_control_figures(header, blocks)
    for block in blocks:
        _check_control_figures(block, [block])
    message_id = _text(header, "MsgId")
    return [transfer for block in blocks for transfer in _transfers(message_id, block)]


def as_payload(transfer: CreditTransfer) -> dict[str, object]:
    """Return the transfer as strings and integers, without a remittance if there is none."""
    payload: dict[str, object] = asdict(transfer)
    payload["uetr"] = str(transfer.uetr)
    payload["requested_execution_date"] = transfer.requested_execution_date.isoformat()
    if transfer.remittance is None:
        del payload["remittance"]
    return payload


def _parse(content: bytes) -> Element:
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        document = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise InvalidPain001(f"The file is not well-formed XML: {error.msg}.") from None
    # Only a DOCTYPE can declare entities, and this message needs none.
    if document.getroottree().docinfo.internalDTD is not None:
        raise InvalidPain001("The file has a DOCTYPE before its Document element.")
    schema = _schema()
    if not schema.validate(document):
        fault = schema.error_log[0]
        reason = fault.message.replace(f"{{{NAMESPACE}}}", "").rstrip(".")
        raise InvalidPain001(f"Line {fault.line} violates the schema: {reason}.")
    return document


@cache
def _schema() -> etree.XMLSchema:
    source = files("sepaxml").joinpath("schemas", "pain.001.001.09.xsd")
    return etree.XMLSchema(etree.fromstring(source.read_bytes()))


def _check_control_figures(stated_in: Element, blocks: list[Element]) -> None:
    """Compare NbOfTxs and CtrlSum, if present, with the transactions of the blocks.

    CtrlSum is the sum of the amounts without regard to their currencies.
    """
    amounts = [
        Decimal(_text(transaction, "Amt/InstdAmt"))
        for block in blocks
        for transaction in _children(block, "CdtTrfTxInf")
    ]
    count = stated_in.find(_path("NbOfTxs"))
    if count is not None and int(_content(count)) != len(amounts):
        raise _refusal(count, f"is {_content(count)}, but there are {len(amounts)} transactions")
    total = stated_in.find(_path("CtrlSum"))
    if total is not None and Decimal(_content(total)) != sum(amounts):
        raise _refusal(total, f"is {_content(total)}, but the amounts add up to {sum(amounts)}")


def _transfers(message_id: str, block: Element) -> Iterator[CreditTransfer]:
    for transaction in _children(block, "CdtTrfTxInf"):
        amount = _child(transaction, "Amt/InstdAmt")
        currency = amount.get("Ccy", "")
        yield CreditTransfer(
            message_id=message_id,
            payment_information_id=_text(block, "PmtInfId"),
            instruction_id=_text(transaction, "PmtId/InstrId"),
            end_to_end_id=_text(transaction, "PmtId/EndToEndId"),
            uetr=UUID(_text(transaction, "PmtId/UETR")),
            debtor_name=_text(block, "Dbtr/Nm"),
            debtor_account=_account(block, "DbtrAcct"),
            debtor_agent=_text(block, "DbtrAgt/FinInstnId/BICFI"),
            creditor_name=_text(transaction, "Cdtr/Nm"),
            creditor_account=_account(transaction, "CdtrAcct"),
            creditor_agent=_text(transaction, "CdtrAgt/FinInstnId/BICFI"),
            amount_minor=_minor_units(amount, currency),
            currency=currency,
            rail=_rail(block, transaction, currency),
            requested_execution_date=_date(block),
            remittance=_remittance(transaction),
        )


def _account(parent: Element, tag: str) -> str:
    identification = _child(parent, f"{tag}/Id")
    iban = identification.find(_path("IBAN"))
    return _text(identification, "Othr/Id") if iban is None else _content(iban)


def _minor_units(amount: Element, currency: str) -> int:
    digits = MINOR_UNITS.get(currency)
    if digits is None:
        raise _refusal(amount, f"is in {currency}, which this reader does not support")
    stated = _content(amount)
    if len(stated.partition(".")[2]) > digits:
        raise _refusal(amount, f"is {stated} {currency}, but {currency} has {digits} decimals")
    minor = int(Decimal(stated).scaleb(digits))
    if minor == 0:
        raise _refusal(amount, "is zero")
    return minor


def _rail(block: Element, transaction: Element, currency: str) -> Rail:
    """Return the rail for the transaction's PmtTpInf, or for its block's if it has none."""
    own = transaction.find(_path("PmtTpInf"))
    kind = _child(block, "PmtTpInf") if own is None else own
    instrument = kind.find(_path("LclInstrm/Cd"))
    code = None if instrument is None else _content(instrument)
    rail = RAILS.get((_text(kind, "SvcLvl/Cd"), code))
    if rail is None:
        raise _refusal(kind, "does not select a rail that this reader supports")
    if RAIL_CURRENCY.get(rail, currency) != currency:
        raise _refusal(transaction, f"is in {currency}, which {rail} does not support")
    return rail


def _date(block: Element) -> date:
    stated = _child(block, "ReqdExctnDt/*")
    try:
        return date.fromisoformat(_content(stated)[:10])  # without a time or a zone
    except ValueError:
        raise _refusal(stated, f"is {_content(stated)}, which is not a valid date") from None


def _remittance(transaction: Element) -> str | None:
    """Join the unstructured lines, or the creditor's references if there are none."""
    for path in ("RmtInf/Ustrd", "RmtInf/Strd/CdtrRefInf/Ref"):
        lines = [_content(line) for line in transaction.findall(_path(path))]
        if lines:
            return " ".join(lines)
    return None


def _path(path: str) -> str:
    return "/".join(f"{{{NAMESPACE}}}{step}" for step in path.split("/"))


def _children(parent: Element, tag: str) -> list[Element]:
    return parent.findall(_path(tag))


def _child(parent: Element, path: str) -> Element:
    child = parent.find(_path(path))
    if child is None:
        raise _refusal(parent, f"has no {path}")
    return child


def _text(parent: Element, path: str) -> str:
    return _content(_child(parent, path))


def _content(element: Element) -> str:
    content = (element.text or "").strip()
    if not content:
        raise _refusal(element, "is blank")
    return content


def _refusal(element: Element, says: str) -> InvalidPain001:
    name = etree.QName(element).localname
    return InvalidPain001(f"{name} on line {element.sourceline} {says}.")

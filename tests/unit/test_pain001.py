from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import FrozenInstanceError
from datetime import date
from decimal import Decimal
from importlib.resources import as_file, files
from pathlib import Path
from uuid import UUID

import pytest
from lxml import etree

from pain001 import CreditTransfer, InvalidPain001, as_payload, read

FILE = Path(__file__).resolve().parents[2] / "examples" / "payments.pain.001.xml"
NS = {"p": "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"}


@pytest.fixture(scope="module")
def transfers() -> list[CreditTransfer]:
    return read(FILE)


@pytest.fixture(scope="module")
def message() -> ET.Element:
    """The file as another parser sees it, so that the reader is not its own witness."""
    return ET.parse(FILE).getroot()


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    return Changed(tmp_path / "changed.xml")


class Changed:
    """Writes the example file with one place of it changed."""

    def __init__(self, path: Path) -> None:
        self.path: Path = path

    def __call__(self, old: str, new: str) -> Path:
        before, found, after = FILE.read_text(encoding="utf-8").partition(old)
        assert found, f"the example file has no {old!r}"
        _ = self.path.write_text(before + new + after, encoding="utf-8")
        return self.path


def texts(parent: ET.Element, path: str) -> list[str]:
    steps = "/".join(f"p:{step}" for step in path.split("/"))
    return [element.text or "" for element in parent.iterfind(f".//{steps}", NS)]


def by_end_to_end_id(transfers: list[CreditTransfer], identifier: str) -> CreditTransfer:
    (transfer,) = (t for t in transfers if t.end_to_end_id == identifier)
    return transfer


# What the file holds


def test_the_file_is_valid_by_the_published_schema() -> None:
    with as_file(files("sepaxml").joinpath("schemas", "pain.001.001.09.xsd")) as path:
        schema = etree.XMLSchema(etree.parse(path))
    schema.assertValid(etree.parse(FILE))


def test_the_file_has_sixty_transactions(
    message: ET.Element, transfers: list[CreditTransfer]
) -> None:
    assert len(texts(message, "CdtTrfTxInf/PmtId/EndToEndId")) == 60
    assert len(transfers) == 60


def test_every_iban_has_the_right_check_digits(message: ET.Element) -> None:
    ibans = texts(message, "IBAN")
    assert len(ibans) > 50
    for iban in ibans:
        rearranged = iban[4:] + iban[:4]
        number = int("".join(str(int(character, 36)) for character in rearranged))
        assert number % 97 == 1, iban


def test_the_control_figures_of_the_message_and_of_every_block_are_right(
    message: ET.Element,
) -> None:
    header = message.find(".//p:GrpHdr", NS)
    blocks = message.findall(".//p:PmtInf", NS)
    assert header is not None
    assert len(blocks) == 8
    for stated, part in [(header, message), *((block, block) for block in blocks)]:
        amounts = [Decimal(amount) for amount in texts(part, "Amt/InstdAmt")]
        assert texts(stated, "NbOfTxs") == [str(len(amounts))]
        assert [Decimal(total) for total in texts(stated, "CtrlSum")] == [sum(amounts)]


def test_no_two_transactions_share_an_identifier(transfers: list[CreditTransfer]) -> None:
    assert len({transfer.uetr for transfer in transfers}) == 60
    assert len({transfer.end_to_end_id for transfer in transfers}) == 60
    assert len({transfer.instruction_id for transfer in transfers}) == 60


def test_every_uetr_is_a_random_uuid(transfers: list[CreditTransfer]) -> None:
    assert {transfer.uetr.version for transfer in transfers} == {4}


def test_the_file_has_several_debtors_and_currencies(transfers: list[CreditTransfer]) -> None:
    assert len({transfer.debtor_name for transfer in transfers}) == 7
    assert {transfer.currency for transfer in transfers} == {
        *("BHD", "CHF", "EUR", "GBP", "JPY", "KWD", "USD"),
    }


def test_the_file_uses_every_rail_and_each_domestic_one_in_its_currency(
    transfers: list[CreditTransfer],
) -> None:
    currencies: defaultdict[str, set[str]] = defaultdict(set)
    for transfer in transfers:
        currencies[transfer.rail].add(transfer.currency)
    assert currencies.pop("SWIFT") >= {"USD", "CHF", "JPY", "BHD"}
    assert currencies == {"SCT": {"EUR"}, "SCT_INST": {"EUR"}, "FPS": {"GBP"}, "CHAPS": {"GBP"}}


# What the reader makes of it


def test_a_transaction_is_read_with_what_its_block_says(
    transfers: list[CreditTransfer],
) -> None:
    assert by_end_to_end_id(transfers, "RW-2026-000314") == CreditTransfer(
        message_id="LNTW-20260302-0001",
        payment_information_id="RHEINWERK-SCT-20260303",
        instruction_id="RW-0303-004",
        end_to_end_id="RW-2026-000314",
        uetr=UUID("27c059b8-6d14-4590-8f22-4e163df5316f"),
        debtor_name="Rheinwerk Maschinenbau GmbH",
        debtor_account="DE35900100108978800253",
        debtor_agent="RHKBDEF0XXX",
        creditor_name="Vltava Autopůjčovna s.r.o.",
        creditor_account="CZ4399900000003039982068",
        creditor_agent="VLTACZP0",
        amount_minor=238990,
        currency="EUR",
        rail="SCT",
        requested_execution_date=date(2026, 3, 3),
        remittance="Leasing Škoda Octavia, Rate 03/2026",
    )


@pytest.mark.parametrize(
    ("identifier", "currency", "minor"),
    [
        ("KEST-REF-00001", "GBP", 1),
        ("SP-KR-700456", "JPY", 1_840_000),
        ("DPT-26-0091", "BHD", 2_750_125),
        ("HLI-AP-55015", "KWD", 240_750),
    ],
)
def test_an_amount_is_counted_in_the_minor_units_of_its_currency(
    transfers: list[CreditTransfer], identifier: str, currency: str, minor: int
) -> None:
    transfer = by_end_to_end_id(transfers, identifier)
    assert (transfer.currency, transfer.amount_minor) == (currency, minor)


def test_a_transaction_without_its_own_type_takes_the_rail_of_its_block(
    transfers: list[CreditTransfer],
) -> None:
    assert by_end_to_end_id(transfers, "MD-FAC-3301").rail == "SCT_INST"


def test_transactions_of_one_block_may_each_name_their_own_rail(
    transfers: list[CreditTransfer],
) -> None:
    block = [t for t in transfers if t.payment_information_id == "GRACHTLICHT-EUR-20260302"]
    assert {transfer.rail for transfer in block} == {"SCT", "SCT_INST"}


def test_an_account_without_an_iban_is_read_by_its_own_number(
    transfers: list[CreditTransfer],
) -> None:
    assert by_end_to_end_id(transfers, "SP-KR-700456").creditor_account == "0010709300"


def test_remittance_is_text_or_a_creditor_reference_or_nothing(
    transfers: list[CreditTransfer],
) -> None:
    assert by_end_to_end_id(transfers, "SP-KR-700456").remittance == "日本 京都 請求書 2026-031"
    assert by_end_to_end_id(transfers, "RW-2026-000318").remittance == "RF341234561"
    assert by_end_to_end_id(transfers, "GL-R-10036").remittance is None


def test_a_transfer_cannot_be_changed_once_read(transfers: list[CreditTransfer]) -> None:
    with pytest.raises(FrozenInstanceError):
        transfers[0].amount_minor = 0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_payload_is_json_of_strings_and_integers_only(
    transfers: list[CreditTransfer],
) -> None:
    for transfer in transfers:
        payload = as_payload(transfer)
        assert {type(value) for value in payload.values()} <= {str, int}
        assert json.loads(json.dumps(payload)) == payload
        assert payload["uetr"] == str(transfer.uetr)
        assert ("remittance" in payload) == (transfer.remittance is not None)


# What the reader refuses


def test_a_wrong_control_sum_of_the_message_is_refused(changed: Changed) -> None:
    path = changed("<CtrlSum>10552579.780<", "<CtrlSum>10552579.770<")
    with pytest.raises(InvalidPain001, match=r"^CtrlSum on line 10 is 10552579\.770, but "):
        _ = read(path)


def test_a_wrong_control_sum_of_one_block_is_refused(changed: Changed) -> None:
    path = changed("<CtrlSum>78223.14<", "<CtrlSum>78223.15<")
    with pytest.raises(InvalidPain001, match=r"^CtrlSum on line 19 is .* add up to 78223\.14\.$"):
        _ = read(path)


@pytest.mark.parametrize("stated", ["60", "12"])
def test_a_wrong_number_of_transactions_is_refused(changed: Changed, stated: str) -> None:
    path = changed(f"<NbOfTxs>{stated}<", "<NbOfTxs>59<")
    with pytest.raises(InvalidPain001, match=f"is 59, but there are {stated} transactions"):
        _ = read(path)


@pytest.mark.parametrize(
    ("old", "new", "element"),
    [
        ("<PmtMtd>TRF</PmtMtd>", "", "NbOfTxs"),
        ("<UETR>", "<UETR>x", "UETR"),
        ('Ccy="GBP"', 'Ccy="pound"', "InstdAmt"),
        (NS["p"], NS["p"][:-2] + "03", "Document"),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused(
    changed: Changed, old: str, new: str, element: str
) -> None:
    with pytest.raises(InvalidPain001, match=rf"^Line \d+ violates the schema: .*\b{element}\b"):
        _ = read(changed(old, new))


@pytest.mark.parametrize(
    "content", ["", "not XML", "<Document>", "<Document>&undeclared;</Document>"]
)
def test_a_file_that_is_not_xml_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.xml"
    _ = path.write_text(content)
    with pytest.raises(InvalidPain001, match=r"^The file is not well-formed XML"):
        _ = read(path)


BOMB = '<!ENTITY e0 "boom">' + "".join(
    f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("old", "new"),
    [("INV 20481", "&e9;"), ('Ccy="GBP"', 'Ccy="&e9;"')],
    ids=["in an element", "in an attribute"],
)
def test_an_entity_bomb_is_refused(changed: Changed, old: str, new: str) -> None:
    path = changed("<Document", f"<!DOCTYPE Document [{BOMB}]>\n<Document")
    content = path.read_text(encoding="utf-8")
    _ = path.write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(InvalidPain001, match=r"DOCTYPE|entity"):
        _ = read(path)


def test_an_external_entity_is_refused_and_its_file_is_not_shown(
    changed: Changed, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    _ = secret.write_text("kept to itself")
    doctype = f'<!DOCTYPE Document [<!ENTITY secret SYSTEM "{secret.as_uri()}">]>\n'
    path = changed("<Document", f"{doctype}<Document")
    content = path.read_text(encoding="utf-8").replace("INV 20481", "&secret;")
    _ = path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidPain001, match="DOCTYPE") as refusal:
        _ = read(path)
    assert "kept to itself" not in str(refusal.value)


@pytest.mark.parametrize(
    "amount",
    ['Ccy="GBP">1842.600<', 'Ccy="JPY">1840000.0<', 'Ccy="BHD">2750.1250<'],
)
def test_an_amount_with_more_decimals_than_its_currency_has_is_refused(
    changed: Changed, amount: str
) -> None:
    plain = re.sub(r"\.?0<$", "<", amount)
    with pytest.raises(InvalidPain001, match=r"^InstdAmt on line \d+ is .* has \d decimals\.$"):
        _ = read(changed(plain, amount))


def test_an_amount_of_zero_is_refused(changed: Changed) -> None:
    path = changed('<InstdAmt Ccy="GBP">0.01<', '<InstdAmt Ccy="GBP">0.00<')
    content = path.read_text(encoding="utf-8")
    content = content.replace("<CtrlSum>10552579.780<", "<CtrlSum>10552579.770<")
    _ = path.write_text(
        content.replace("<CtrlSum>78223.14<", "<CtrlSum>78223.13<"), encoding="utf-8"
    )
    with pytest.raises(InvalidPain001, match=r"^InstdAmt on line \d+ is zero\.$"):
        _ = read(path)


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        ("<InstrId>KF-0302-001</InstrId>", "", "CdtTrfTxInf on line 49 has no PmtId/InstrId"),
        ("<Cd>URNS</Cd>", "<Cd>NURG</Cd>", "does not select a rail"),
        ('Ccy="GBP"', 'Ccy="EUR"', "is in EUR, which FPS does not support"),
        ('Ccy="GBP"', 'Ccy="XTS"', "is in XTS, which this reader does not support"),
        ("<Nm>Kestrel Grocers plc<", "<Nm> <", "Nm on line .* is blank"),
        (
            "<Dt>2026-03-02<",
            "<Dt>12026-03-02<",
            "Dt on line .* is 12026-03-02, which is not a valid date",
        ),
    ],
)
def test_a_transfer_that_could_not_be_used_as_it_stands_is_refused(
    changed: Changed, old: str, new: str, refusal: str
) -> None:
    with pytest.raises(InvalidPain001, match=refusal):
        _ = read(changed(old, new))

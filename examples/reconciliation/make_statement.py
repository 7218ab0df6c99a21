"""Makes data/statement.csv: a month and a half of bank lines beside the ledger's, always the same ones.

python make_statement.py > data/statement.csv
"""

from __future__ import annotations

import csv
import datetime
import random
import sys
from typing import TextIO

COLUMNS = ["id", "booked_on", "counterparty", "country", "iban", "reference", "paid_cents", "invoiced_cents"]
DAYS, LINES_A_DAY = 30, 8
PARTIES = [
    ("Nordwind Logistik GmbH", "DE"), ("Atelier Lumière SARL", "FR"), ("Van den Berg Bouw BV", "NL"),
    ("Officina Rossi SpA", "IT"), ("Kowalski Transport Sp. z o.o.", "PL"), ("Sørensen Marine ApS", "DK"),
    ("Alpenblick Hotels AG", "AT"), ("Bodegas Alarcón SL", "ES"), ("Fjällräven Timber AB", "SE"),
    ("Murphy & Daly Ltd", "IE"), ("Lusitania Cortiça Lda", "PT"), ("Helvetia Präzision AG", "CH"),
    ("Baltic Freight OÜ", "EE"), ("Moravia Glass s.r.o.", "CZ"), ("Thessaly Foods AE", "GR"),
]  # fmt: skip
OVERPAID = {(4, 2): 4_120_00, (9, 5): 18_400_00, (13, 1): 960_50, (17, 6): 2_315_00, (22, 3): 7_850_00, (26, 0): 310_00}
"""(day, line) to what was paid too much, in cents. The second needs a controller's approval."""
EMBARGOED = {(11, 4): ("Pyongsong Trading Co", "KP", 1_275_00), (24, 7): ("Kaesong Textile Export", "KP", 640_00)}
"""Overpaid by someone in a country to which nothing may be paid."""
SHORT = {(2, 3): 45_00, (6, 0): 1_00, (15, 5): 250_00, (19, 2): 12_50, (28, 6): 99_99}
"""Paid too little."""


def iban(source: random.Random, country: str) -> str:
    """An account number with valid check digits (ISO 13616)."""
    account = "".join(source.choice("0123456789") for _ in range(18))
    digits = "".join(str(int(letter, 36)) for letter in f"{account}{country}00")
    return f"{country}{98 - int(digits) % 97:02d}{account}"


def lines() -> list[list[str]]:
    """The rows below the heading."""
    source = random.Random(20250303)
    accounts = {name: iban(source, country) for name, country in PARTIES}
    day, rows = datetime.date(2025, 3, 3), []
    for number in range(DAYS):
        for line in range(LINES_A_DAY):
            at = (number, line)
            name, country = PARTIES[source.randrange(len(PARTIES))]
            invoiced = source.randrange(80_00, 24_000_00, 5)
            paid = invoiced + OVERPAID.get(at, 0) - SHORT.get(at, 0)
            if at in EMBARGOED:
                name, country, excess = EMBARGOED[at]
                accounts[name] = iban(source, country)
                paid = invoiced + excess
            reference = f"INV-{2025_0000 + number * LINES_A_DAY + line + 1417}"
            ident = f"{day:%y%m%d}-{line + 1:02d}"
            rows.append([ident, f"{day}", name, country, accounts[name], reference, str(paid), str(invoiced)])
        day += datetime.timedelta(days=3 if day.weekday() == 4 else 1)
    return rows


def write(file: TextIO) -> None:
    """Write the file."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(lines())


if __name__ == "__main__":
    write(sys.stdout)

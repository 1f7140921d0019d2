"""Questions and answers from formulas, the inputs of DPG-Bench's golden scores."""

import csv
import io
import zlib

COLUMNS = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad",
           "category_detailed", "tuple", "question_natural_language")  # fmt: skip
ITEMS = ("partiprompts7", "12", "COCOval2014000000000042", "drawtext3", "whoops1")
# Category, subject and parents of each proposition: 3 depends on 2, and 2 on 1.
PROPOSITIONS = (
    ("entity - whole", "cup", "0"),
    ("attribute - color", "cup, red", "1"),
    ("relation - spatial", "cup, table, on", "2"),
    ("other - count", "cup, ==2", "1, 2"),
    ("global - ", "photo, old", "0"),
    ("entity - whole", "table", "0"),
)
CASES = ("dependent", "free")  # whether a question depends on the file's first question
ANSWERS = ("yes",) * 12 + ("no", "no", "Yes", "yes, two", "table")


def rows(case):
    """The rows of the questions file, without its header."""
    found = []
    for index, item in enumerate(ITEMS):
        for number, (category, subject, parents) in enumerate(PROPOSITIONS[: 6 - index % 3], 1):
            if case == "free" and index == 0:
                parents = "0"
            found.append(
                [item, f"a text, {item}", "", number, parents, category.split(" ")[0], "whole",
                 f"{category} ({subject})", f"Is it, of {item}, true: {subject}?"]
            )  # fmt: skip
    return found


def csv_text(case):
    """The questions file as text."""
    file = io.StringIO()
    csv.writer(file).writerows([COLUMNS, *rows(case)])
    return file.getvalue()


def answer(item, tile, question):
    """A reproducible answer to a question about one tile of an item's grid."""
    return ANSWERS[zlib.crc32(f"{item}/{tile}/{question}".encode()) % len(ANSWERS)]

"""Fit a scikit-learn model to a table, measure it, and save it with a card that describes it.

    python train.py                              # scikit-learn's wine data, a few seconds
    python train.py sales.csv --target price     # your table: a CSV file with a header row

For data from elsewhere replace load_table(), for another estimator build_model().
Left out: free text, and what rows that belong together (visits of one patient) could tell.
"""

import argparse
import codecs
import csv
import difflib
import hashlib
import io
import math
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn

# boosting's threads wait for each other at each step: on a shared machine, slower than one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")

import joblib
import numpy as np
from sklearn import metrics
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_wine
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
)
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import OneHotEncoder, SplineTransformer, StandardScaler

PACKAGES = ("scikit-learn", "numpy", "pandas", "joblib")  # whose versions the card names
MODEL_PATH = Path(os.environ.get("MODEL_PATH", "model.joblib"))

# what a table may be
SEPARATORS = ",;\t|"
MISSING = {"", "?", "-", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null"}
MAX_COLUMNS = 2_000  # a form of more is no form
MAX_ROW_CHARACTERS = 1_000_000  # a longer row is no row: a quote that nobody closed, or an attack
MAX_NUMBER = 1e30  # the square of a larger one overflows inside many estimators

# what a column may be
MAX_CHOICES = 200  # texts in one column; more make a list that nobody scrolls
FEW_CHOICES = 20  # so few are choices, and no identifier, also where most are numbers
MAX_CODES = 12  # whole numbers in so small a range are often codes
MOSTLY = 0.9  # of a column's cells decide what it is; the others are read as gaps, and named
MAX_CLASSES = 100
MAX_GUESSED_CLASSES = 10  # different whole numbers in the target; more are a quantity

# how it is measured
MIN_ROWS = 10  # fewer say nothing about a model
FOLDS = 5  # of the cross-validation; a class needs as many rows
LARGE_WORK = 50_000  # rows times classes: beyond, rows kept out once replace the folds
KEPT_OUT_ROWS = 20_000
DISORDER = 0.001  # the share of steps back that a table in order of time may have
MAX_REPEATS = 10  # of one row; more are no accident, but all the combinations there are
SLOW_WORK = 1_000_000  # rows times classes: beyond, the slow candidate is left out
COMPARED_ROWS = 50_000  # of a large table, to fit the candidates to
TOLERANCE = 0.01  # of the loss: so little is luck, and an earlier candidate answers faster
IMPORTANCE_ROWS = 500  # of each fold, drawn at random: enough to rank the features
BACKGROUND_ROWS = 100  # against which the API explains an answer
HISTOGRAM_BARS = 20
COVERAGE = 0.9  # the share of truths that intervals and sets of likely labels hold
BANDS, BAND_ROWS = 5, 50  # of a regression's predictions, each with errors of its own

BLANKS = "' \u2019\u00a0\u202f"  # between thousands, beside the mark that is not the decimal one
GROUPS = {mark: rf"[1-9]\d{{0,2}}([{other}{BLANKS}]\d{{3}})+" for mark, other in (".,", ",.")}
NUMBER = {  # decimal mark: a number as people write it, with a sign, thousands, a currency
    mark: re.compile(
        rf"([-+]?[$€£¥₹]?|[$€£¥₹][-+]) ?({GROUPS[mark]}|0|[1-9]\d*|(?=\{mark}\d))"
        rf"(\{mark}\d*)?([eE][-+]?\d+)? ?[$€£¥₹%]?",
        re.ASCII,
    )
    for mark in ".,"
}
BOOLEANS = {"true": 1.0, "false": 0.0}
FIRST_DAY, LAST_DAY = -719_162, 2_932_896  # since 1970, of the years 1 to 9999
ISO = "ISO 8601"
DAYS = "%Y-%m-%d,%Y/%m/%d,%Y.%m.%d,%d.%m.%Y,%d.%m.%y,%m/%d/%Y,%d/%m/%Y,%m/%d/%y,%d/%m/%y,"
DAYS += "%m-%d-%Y,%d-%m-%Y,%d-%b-%Y,%d-%b-%y,%d %b %Y,%b %d %Y,%d %B %Y,%B %d %Y,%Y-%m,%b %Y,%B %Y"
CLOCKS = ", %H:%M, %H:%M:%S, %H:%M:%S.%f, %H:%M:%S %Z, %I:%M %p, %I:%M:%S %p"
LOOKS_LIKE_A_DATE = re.compile(r"(?=.*\d)(?=.*[-/. :a-zA-Z]).{6,40}|(19|20)\d{6}")
EIGHT_DIGITS = re.compile(r"(19|20)\d{6}")  # 20241231
IDENTIFIER = re.compile(
    r"(?i:(\b|_)(id|uuid)|^(index|key|rownames|column 1|unnamed: 0))$|[a-z]I[Dd]$"
)
TIME = re.compile(r"(?i:(\b|_)(time|date|day|week|month|quarter|year|period|instant|epoch|t)$)")


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", nargs="?", help="a CSV file; left out: the wine data")
    parser.add_argument("--target", help="the column to predict; left out: the last one")
    parser.add_argument("--task", choices=["classification", "regression"])
    parser.add_argument("--title", help="the page's heading")
    parser.add_argument("--decimal", choices=[".", ","], help="left out: told from the cells")
    options = parser.parse_args()

    # read the table as texts, decide what each column is, turn it into numbers
    content, about = load_table(options.table)
    data = read_data(content, options)

    # measure the dummy and the candidates on rows that they have not seen
    folds, measured = make_folds(data)
    print(f"\nmeasured on {measured}")
    candidates = build_model(data.task, data.features)
    if not isinstance(candidates, dict):
        candidates = {type(candidates).__name__: candidates}
    if data.work > SLOW_WORK:
        candidates.pop("slow gradient boosting", None)
    dummy = DummyRegressor() if data.classes is None else DummyClassifier()
    results = compare({"dummy": dummy, **candidates}, data, folds)
    baseline = results.pop("dummy")
    best = choose(results)

    # see what matters and how sure it is, fit the best to all rows, and save it with its card
    print(f"keeping the {best}, fitting it to {count(len(data.y), 'row')}", flush=True)
    importance = measure_importance(results[best].clones, data, folds)
    uncertainty = measure_uncertainty(results[best].answers, data, folds)
    model = clone(candidates[best]).fit(data.X, data.y)
    note_leaks(results[best].loss / (baseline.loss or 1.0), importance, data)
    print("what matters most: " + ", ".join(list(importance)[:3]))
    for note in data.notes:
        print(f"  note: {note}")
    card = {
        "name": about.get("name", "table"),  # for people, like the next two
        "title": options.title or about.get("title", f"Predict {data.target}"),
        "description": about.get("description", f"Predicts {data.target} from a table's columns."),
        "task": data.task,  # "classification" or "regression"
        "target": data.target,  # its column's name
        "decimal": data.decimal,  # the table's mark: encode() reads numbers with it
        "features": data.features,  # in column order: see describe() and add_ranges()
        "estimator": best,  # what was kept, in words
        "metrics": results[best].scores,  # on rows that it had not seen
        "baseline": baseline.scores,  # the same of the dummy, which ignores the features
        "measured": measured,  # which rows these were
        "importance": importance,  # feature to what shuffling it costs, largest first
        "notes": data.notes,  # what a careful reader of the result should know
        "uncertainty": uncertainty,  # see measure_uncertainty()
        "examples": pick_examples(data),  # a few real rows, as JSON has them
        "rows": len(data.y),  # trained on
        "dropped": data.dropped,  # columns, rows and cells left out, each with the reason
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }
    if data.classes is not None:
        card["classes"] = data.classes.tolist()  # as the data spells them, in the model's order
    sha256 = save(model, card, data.X)
    size, seconds = MODEL_PATH.stat().st_size, time.perf_counter() - started
    print(f"saved {MODEL_PATH}: {size:,} bytes, sha256 {sha256}, {seconds:.1f} s in all")


class Data(NamedTuple):
    """A table, read."""

    task: str
    target: str
    decimal: str
    features: list[dict]
    X: np.ndarray  # float64, shape (rows, features), what the model sees
    y: np.ndarray  # float64, or labels as texts
    classes: np.ndarray | None  # the labels, sorted; of a regression None
    dropped: list[dict]
    notes: list[str]

    @property
    def work(self) -> int:
        """What boosting's time grows with: it fits a tree a round for each class."""
        return len(self.y) * (1 if self.classes is None else len(self.classes))


def refuse(message: str) -> NoReturn:
    """Say in one line what is wrong and what to do, and end with exit code 2."""
    print(f"train.py: {message}", file=sys.stderr)
    sys.exit(2)


def count(number: int, word: str) -> str:
    """Return "1 row" or "1,234 rows"."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


# from a file to texts


def load_table(path: str | None) -> tuple[bytes, dict]:
    """Return a table as CSV, and its name, title and description. Replace it for other sources:
    `return pandas.read_sql(query, connection).to_csv(index=False).encode(), {}` is enough.

    Without a path it is scikit-learn's wine data with the original publication's names.
    """
    if path is not None:
        try:
            return Path(path).read_bytes(), {"name": Path(path).stem}
        except OSError as error:
            refuse(f"'{path}' can't be read ({error.strerror}): give the path of a CSV file")
    wine = load_wine(as_frame=True)
    table = wine.data.rename(columns=lambda name: name.replace("_", " "))
    table["wine"] = np.array(["Barolo", "Grignolino", "Barbera"])[wine.target]
    return table.to_csv(index=False).encode(), {
        "name": "wine",
        "title": "Barolo, Grignolino or Barbera?",
        "description": "Tells three wines of Piedmont apart by 13 measurements "
        "(M. Forina et al., PARVUS, 1988).",
    }


def read_rows(text: io.TextIOBase, separator: str) -> Iterator[list[str]]:
    """Yield the rows that are not blank, without ever holding more than one.

    Raises ValueError for a row that is too long, or a quote that is not closed.
    """
    size, last = 0, ""

    def lines() -> Iterator[str]:
        nonlocal size, last
        while line := text.readline(MAX_ROW_CHARACTERS):
            size, last = size + len(line), line
            if size >= MAX_ROW_CHARACTERS:
                raise ValueError(f"a row has over {MAX_ROW_CHARACTERS:,} characters")
            yield line

    rows = csv.reader(lines(), delimiter=separator, skipinitialspace=True)
    row: list[str] = []
    try:
        for row in rows:
            if row:
                size = 0
                yield row[: MAX_COLUMNS + 1]
        if row and "\n" in row[-1] and not last.rstrip().endswith('"'):
            raise ValueError("a quote near its end is never closed")
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


def find_encoding(content: bytes) -> str:
    """Return UTF-8, UTF-16 (told by its first bytes), or what Windows writes in the west."""
    is_utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ["utf-16"] if is_utf16 else ["utf-8-sig", "cp1252", "latin-1"]:
        parts = (content[i : i + 2**20] for i in range(0, len(content), 2**20))
        try:
            if not any("\0" in text for text in codecs.iterdecode(parts, encoding)):
                return encoding
            break
        except UnicodeDecodeError:
            continue
    raise ValueError("it is not a text file: export the table as CSV")


def read_table(content: bytes) -> tuple[list[str], str, Iterator[list[str]]]:
    """Return the columns' names, the separator, and an iterator over the rows, lists of texts.

    An empty name becomes the column's place, a repeated one gets a number. A row that is too
    short is filled with gaps; one that is too long comes as it is. Raises ValueError in one line.
    """
    encoding = find_encoding(content)

    def open_text() -> io.TextIOBase:
        return io.TextIOWrapper(io.BytesIO(content), encoding, newline="")

    # the separator that splits the header, and the first rows into as many cells
    separator, best = SEPARATORS[0], (0.0, 1)
    for mark in SEPARATORS:
        try:
            head = list(islice(read_rows(open_text(), mark), 100))
        except ValueError:  # a quote that is none with another separator
            continue
        if head and len(head[0]) > 1:
            share = sum(len(row) == len(head[0]) for row in head) / len(head)
            if (share, len(head[0])) > best:
                separator, best = mark, (share, len(head[0]))

    rows = read_rows(open_text(), separator)
    header = next(rows, None)
    if header is None:
        raise ValueError("it is empty: give a table with a header row")
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
    names: dict[str, None] = {}
    for place, name in enumerate(header, 1):
        name = unique = name if name.strip() else f"column {place}"
        repeat = 2
        while unique in names:
            unique, repeat = f"{name} ({repeat})", repeat + 1
        names[unique] = None
    width = len(names)
    padded = (row + [""] * (width - len(row)) for row in rows)
    return list(names), separator, padded


# from texts to numbers


def read_number(text: str, decimal: str) -> float | None:
    """Return the number, or None where there is none: 1,234.50 € with the mark ".", 12 %."""
    text = text.replace("\u2212", "-")  # a typographer's minus
    if not NUMBER[decimal].fullmatch(text):
        return None
    value = float(re.sub(rf"[^\d{decimal}eE+-]", "", text).replace(decimal, "."))
    return value if abs(value) <= MAX_NUMBER else None


def read_date(text: str, layout: str = ISO) -> float | None:
    """Return the days since 1970-01-01 (UTC where the text says so), or None. ISO is always read."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        if layout == ISO:
            return None
        try:
            moment = datetime.strptime(text, layout)
        except ValueError:
            return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    days = moment.timestamp() / 86_400
    return days if FIRST_DAY <= days <= LAST_DAY else None


def read_cell(text: str, feature: dict, decimal: str) -> float:
    """Return the number that stands for a cell, NaN for a gap. Raises ValueError."""
    text, kind = text.strip(), feature["type"]
    if text in MISSING:
        return math.nan
    if kind == "number":
        value, wanted = read_number(text, decimal), "no number"
    elif kind == "boolean":
        value, wanted = BOOLEANS.get(text.lower()), "not true or false"
    elif kind == "date":
        value, wanted = read_date(text, feature["format"]), "no date"
    else:
        choices = feature["choices"]
        value = choices.index(text) if text in choices else None
        wanted = "none of the choices"
    if value is None:
        raise ValueError(f"is '{text[:100]}', {wanted}")
    return value


def encode(
    table: dict[str, list[str]], card: dict
) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """Return what the model sees, float64 of shape (rows, features), and what could not be read:
    the row, the feature and a reason. There, and in a gap, is NaN.

    A number is itself, a boolean 0 or 1, a category the place of its choice, a date its days
    since 1970-01-01. A feature that is not in the table is a gap in every row.
    """
    rows = len(next(iter(table.values()), []))
    X, problems = np.empty((rows, len(card["features"]))), []
    for place, feature in enumerate(card["features"]):
        name = feature["name"]
        texts = table.get(name) or [""] * rows
        # each different text is read once
        values, wrong = {}, {}
        for text in set(texts):
            try:
                values[text] = read_cell(text, feature, card["decimal"])
                if math.isnan(values[text]) and not feature.get("nullable", True):
                    wrong[text] = "is missing"
            except ValueError as error:
                values[text], wrong[text] = math.nan, str(error)
        X[:, place] = [values[text] for text in texts]
        if wrong:
            problems += [
                (row, name, wrong[text]) for row, text in enumerate(texts) if text in wrong
            ]
    return X, problems


# what a table's columns are


def read_data(content: bytes, options: argparse.Namespace) -> Data:
    """Return the table as the model will see it, or refuse it; print what each column is."""
    try:
        names, _, rows = read_table(content)
        if len(names) == 1:
            raise ValueError("it has one column: a table needs a target and at least one feature")
        cells = list(rows)
        if not cells:
            raise ValueError("it has a header and no rows")
        for place, row in enumerate(cells, 1):
            if any(row[len(names) :]):
                raise ValueError(f"row {place} has {len(row)} cells, the header {len(names)}")
    except ValueError as error:
        refuse(f"'{options.table}' is not a table: {error}")
    table = {name: [row[place] for row in cells] for place, name in enumerate(names)}
    del cells, rows
    notes: list[str] = []
    numbers = [name for name in names if read_number(name, ".") is not None]
    if len(numbers) > len(names) / 2:
        notes.append(f"the header looks like data ({', '.join(numbers[:3])}): is it missing?")
    decimal = options.decimal or find_decimal(table, notes)
    filled = [name for name in names if any(text.strip() for text in table[name])]
    target = options.target or (filled or names)[-1]
    if target not in table:
        nearest = difflib.get_close_matches(target, names, n=1, cutoff=0)
        refuse(f"no column '{target}': did you mean --target '{nearest[0]}'?")
    task, y, known, dropped = read_target(target, table.pop(target), decimal, options.task)
    overrides = "" if options.task else " (--task overrides)"
    print(f"{count(len(y), 'row')}, {len(names)} columns; {task} of '{target}'{overrides}")

    if dropped:
        table = {name: [texts[row] for row in known] for name, texts in table.items()}
    features, left_out = describe(table, decimal, notes)
    X, problems = encode(table, {"features": features, "decimal": decimal})
    add_ranges(features, X)
    dropped += left_out + unreadable_cells(problems, known)
    print_columns(features, X, dropped)
    if not features:
        refuse("no column is left to predict from: the lines above say why")
    classes = np.unique(y) if task == "classification" else None
    return Data(task, target, decimal, features, X, y, classes, dropped, notes)


def decimal_marks(table: dict[str, list[str]]) -> tuple[list[str], list[str], list[str]]:
    """Return the cells that are a number with a decimal point only (0.5, 1,234.5), with a comma
    only (1,5), and with either (1.234, of which nobody can tell)."""
    points, commas, unclear = [], [], []
    for texts in table.values():
        for text in dict.fromkeys(text.strip() for text in texts[:10_000]):
            point, comma = read_number(text, "."), read_number(text, ",")
            if comma is None and point is not None:
                points.append(text)
            elif point is None and comma is not None:
                commas.append(text)
            elif point != comma:
                unclear.append(text)
    return points, commas, unclear


def find_decimal(table: dict[str, list[str]], notes: list[str]) -> str:
    """Return the decimal mark for which most cells speak; note where it had to be assumed."""
    points, commas, unclear = decimal_marks(table)
    few, many = sorted([points, commas], key=len)
    if len(few) > (1 - MOSTLY) * len(many):
        refuse(f"'{points[0]}' and '{commas[0]}' differ in the decimal mark: say --decimal")
    if few:
        notes.append(f"'{few[0]}' has another decimal mark than '{many[0]}': it is no number")
    if unclear and not many:
        read, other = read_number(unclear[0], "."), read_number(unclear[0], ",")
        notes.append(f"'{unclear[0]}' is read as {read:.10g}; --decimal , makes it {other:.10g}")
    return "," if len(commas) > len(points) else "."


def find_date_format(cells: Counter, notes: list[str]) -> str | None:
    """Return how these texts write a date, None if they do not; note what had to be assumed."""
    some = Counter(dict(cells.most_common(20)))
    if sum(LOOKS_LIKE_A_DATE.fullmatch(text) is not None for text in some) < MOSTLY * len(some):
        return None

    def share(layout: str, cells: Counter) -> float:
        read = [n for text, n in cells.items() if read_date(text, layout) is not None]
        return sum(read) / cells.total()

    layouts = [ISO, *(day + clock for day in DAYS.split(",") for clock in CLOCKS.split(","))]
    shares = {each: share(each, cells) for each in layouts if share(each, some) >= MOSTLY}
    best = max(shares, key=shares.get, default=None)
    if best is None or shares[best] < MOSTLY:
        return None
    swapped = best.replace("%m/%d", "%d/%m").replace("%m-%d-%Y", "%d-%m-%Y")
    if swapped != best and shares.get(swapped) == shares[best]:
        notes.append(f"'{next(iter(cells))}' is read as a date by {best}, not {swapped}")
    return best


def describe_column(name: str, cells: Counter, rows: int, decimal: str, notes: list) -> dict | str:
    """Return a feature, or the reason why the column is left out.

    `cells` counts the different texts without the gaps; `rows` are the table's.
    """
    known, levels = cells.total(), len(cells)
    if levels == 0:
        return "empty"
    if levels == 1 and known == rows:
        return f"always '{next(iter(cells))}'"
    numbers = {text: read_number(text, decimal) for text in cells}
    values = [number for number in numbers.values() if number is not None]
    readable = sum(n for text, n in cells.items() if numbers[text] is not None)
    is_number = readable == known or (readable >= MOSTLY * known and levels > FEW_CHOICES)
    codes = sum(n for text, n in cells.items() if re.match(r"-?0\d", text))  # such as 007
    is_number = is_number and codes <= (1 - MOSTLY) * known
    is_whole = is_number and all(value % 1 == 0 for value in values)
    layout = None
    if not is_number or all(EIGHT_DIGITS.fullmatch(text) for text in cells):
        layout = find_date_format(cells, notes)
    if layout:
        return {"type": "date", "format": layout}
    if IDENTIFIER.search(name) and levels > FEW_CHOICES and (is_whole or not is_number):
        return "an identifier, by its name"
    if is_number:
        counts_rows = is_whole and levels == rows > MOSTLY * (max(values) - min(values))
        if counts_rows and min(values) in (0, 1) and not TIME.search(name):
            return "an identifier: whole numbers, all different"
        return {"type": "number"}
    if all(text.lower() in BOOLEANS for text in cells):
        return {"type": "boolean"}
    if levels <= min(MAX_CHOICES, known // 2):
        return {"type": "category", "choices": sorted(cells)}
    if sum(len(text.split()) * n for text, n in cells.items()) > 4 * known:
        return "free text"
    if levels == known:
        return "an identifier: every text is different"
    return f"{levels:,} different texts in {known:,} cells are too many for a choice"


def describe(table: dict[str, list[str]], decimal: str, notes: list) -> tuple[list, list]:
    """Return the card's features, with what encode() needs, and the columns left out."""
    features, left_out = [], []
    for name, texts in table.items():
        cells = Counter(text.strip() for text in texts)
        for missing in MISSING & cells.keys():
            del cells[missing]
        found = describe_column(name, cells, len(texts), decimal, notes)
        if isinstance(found, str):
            left_out.append({"column": name, "reason": found})
        else:
            features.append({"name": name, **found})
    return features, left_out


def decode(feature: dict, value: float) -> object:
    """Return what JSON has for a value of the array: encode() the other way round."""
    if math.isnan(value):
        return None
    if feature["type"] == "category":
        return feature["choices"][int(value)]
    if feature["type"] == "boolean":
        return bool(value)
    if feature["type"] == "number":
        return int(value) if feature["integer"] else float(value)
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=round(value * 86_400_000))
    return moment.isoformat() if value % 1 else moment.date().isoformat()


def add_ranges(features: list[dict], X: np.ndarray) -> None:
    """Add what the values tell: gaps, the default, how often what occurs; of numbers and dates
    the range."""
    for feature, column in zip(features, X.T):
        values = column[~np.isnan(column)]
        feature["nullable"] = len(values) < len(column)
        if feature["type"] in ("category", "boolean"):
            counts = np.bincount(values.astype(int), minlength=len(feature.get("choices", "01")))
            feature["default"] = decode(feature, counts.argmax())
        else:
            counts = np.histogram(values - values.min(), HISTOGRAM_BARS)[0]
            is_whole = (values % 1 == 0).all() and np.abs(values).max() < 2**53
            if feature["type"] == "number":
                feature["integer"] = bool(is_whole)
            ends = np.percentile(values, [0, 50, 100], method="lower")
            for key, value in zip(("minimum", "default", "maximum"), ends):
                feature[key] = decode(feature, value)
        feature["counts"] = counts.tolist()  # of each choice, or from minimum to maximum


def unreadable_cells(problems: list[tuple[int, str, str]], known: list[int]) -> list[dict]:
    """Return the cells read as gaps, by column, three at most with their rows in the table."""
    columns: dict[str, list[str]] = {}
    for row, name, reason in problems:
        columns.setdefault(name, []).append(f"row {known[row] + 1} {reason}")
    return [
        {"column": name, "cells": len(cells), "reason": "; ".join(cells[:3])}
        for name, cells in columns.items()
    ]


def print_columns(features: list[dict], X: np.ndarray, dropped: list[dict]) -> None:
    """Print what each column is, and what is left out."""
    wide = max([len(entry["name"]) for entry in features], default=0)
    for feature, column in zip(features, X.T):
        kind, what = feature["type"], ", ".join(feature.get("choices", []))
        if kind in ("number", "date"):
            what = f"{feature['minimum']} to {feature['maximum']}"
        if feature.get("integer"):
            kind = "whole number"
        gaps = np.isnan(column).mean()
        percent = min(max(round(100 * gaps), 1), 99)
        gaps = f"   {percent} % gaps" if gaps else ""
        print(f"  {feature['name']:{wide}}  {kind:12}  {what[:60]}{gaps}")
    for entry in dropped:
        name = entry.get("column") or count(entry["rows"], "row")
        what = f"{count(entry['cells'], 'gap')}: " if "cells" in entry else "left out: "
        print(f"  {name:{wide}}  {what}{entry['reason']}")


def read_target(
    name: str, texts: list[str], decimal: str, task: str | None
) -> tuple[str, np.ndarray, list[int], list[dict]]:
    """Return the task, guessed where it is None; the target, float64 or labels as texts; the rows
    that have it; and how many rows are left out, and why."""
    texts = [text.strip() for text in texts]
    numbers = {text: read_number(text, decimal) for text in set(texts) - MISSING}
    known = [row for row, text in enumerate(texts) if text in numbers]
    rows = [row for row in known if numbers[texts[row]] is not None]
    if task is None:
        values = {numbers[texts[row]] for row in rows}
        is_quantity = len(values) > MAX_GUESSED_CLASSES or any(value % 1 for value in values)
        task = "regression" if is_quantity and len(rows) > len(known) / 2 else "classification"
    if task == "regression":
        y = np.array([numbers[texts[row]] for row in rows])
        left_out = set(known) - set(rows)
        reason = "no number"
    else:
        labels = Counter(texts[row] for row in known)
        rows = [row for row in known if labels[texts[row]] >= FOLDS]
        y = np.array([texts[row] for row in rows])
        left_out = set(known) - set(rows)
        reason = f"a label of fewer than {FOLDS} rows"

    dropped = []
    if len(known) < len(texts):
        dropped.append({"rows": len(texts) - len(known), "reason": f"'{name}' is empty or NA"})
    if left_out:
        some = ", ".join(f"'{texts[row][:100]}' in row {row + 1}" for row in sorted(left_out)[:3])
        dropped.append({"rows": len(left_out), "reason": f"'{name}' is {reason}: {some}"})
    different = len(set(y.tolist()))
    if task == "classification" and not 2 <= different <= MAX_CLASSES:
        refuse(
            f"target '{name}' has {different} classes of {FOLDS} rows or more: a classification "
            f"needs 2 to {MAX_CLASSES}; is --target or --task another?"
        )
    if len(y) < MIN_ROWS:
        refuse(f"{count(len(y), 'usable row')}: give {MIN_ROWS} or more where '{name}' is known")
    if different == 1:
        refuse(f"target '{name}' is always {y[0]}: there is nothing to learn")
    return task, y, rows, dropped


# the models


def build_model(task: str, features: list[dict]) -> dict | BaseEstimator:
    """Return the estimators to compare, by name. Replace it to return others, or just one.

    They are fitted to what encode() makes of the features: columns by position. A classifier
    needs predict_proba.
    """
    at: dict[str, list[int]] = {"number": [], "boolean": [], "category": [], "date": []}
    for place, feature in enumerate(features):
        at[feature["type"]].append(place)
    numbers, dates = at["number"] + at["boolean"], at["date"]

    # small whole numbers are often codes: the linear model sees them one-hot as well
    choices = at["category"].copy()
    for place in at["number"]:
        feature = features[place]
        if feature["integer"] and feature["maximum"] - feature["minimum"] < MAX_CODES:
            choices.append(place)

    # a date is a number, and has a place in the year, the week and the day
    def cycle(days: float, parts: int, degree: int) -> SplineTransformer:
        knots = np.tile(np.linspace(0, days, parts + 1)[:, None], len(dates))
        return SplineTransformer(
            degree=degree, knots=knots, extrapolation="periodic", handle_missing="zeros"
        )

    cycles = make_union(cycle(365.2425, 12, 1), cycle(7, 7, 0), cycle(1, 8, 1))

    name, linear = "logistic regression", LogisticRegression(max_iter=1000)
    Boosting = HistGradientBoostingClassifier
    if task == "regression":
        name, linear = "ridge regression", RidgeCV(np.logspace(-2, 4, 13))
        Boosting = HistGradientBoostingRegressor
    # a linear model wants gaps filled, numbers scaled and choices one-hot
    scaled = StandardScaler()
    if any(features[place]["nullable"] for place in numbers + dates):
        scaled = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), scaled
        )
    if dates or choices:
        one_hot = OneHotEncoder(handle_unknown="ignore")
        scaled = make_column_transformer(
            (scaled, numbers + dates), (cycles, dates), (one_hot, choices)
        )
    # boosting takes gaps and categories as they are
    common = {"categorical_features": at["category"], "random_state": 0}
    patience = {"early_stopping": True, "n_iter_no_change": 20}
    quick = Boosting(**common)
    slow = Boosting(learning_rate=0.05, max_iter=300, **patience, **common)
    if dates:
        with_cycles = make_union("passthrough", make_column_transformer((cycles, dates)))
        quick, slow = make_pipeline(with_cycles, quick), make_pipeline(with_cycles, slow)
    linear = make_pipeline(scaled, linear)
    return {name: linear, "gradient boosting": quick, "slow gradient boosting": slow}


# how good they are


class Result(NamedTuple):
    loss: float  # what candidates compete in: log loss, or the root mean squared error
    scores: dict[str, float]  # by scikit-learn's names
    clones: list[BaseEstimator]  # fitted, one for each fold
    answers: np.ndarray  # theirs for the rows they have not seen, fold after fold


def time_order(data: Data) -> np.ndarray | None:
    """Return the rows from old to new where the table is in order of time, or the reverse."""
    for feature, column in zip(data.features, data.X.T):
        is_time = feature["type"] == "date" or TIME.search(feature["name"])
        known = column[~np.isnan(column)]
        days = np.floor(known)  # within a day rows may come in any order
        known = days if len(np.unique(days)) >= 4 * FOLDS else known
        if is_time and len(np.unique(known)) >= 4 * FOLDS:
            steps = np.diff(known)
            if min((steps < 0).mean(), (steps > 0).mean()) < DISORDER:
                data.notes.append(f"the rows are in order of time, by '{feature['name']}'")
                return np.argsort(column, kind="stable")
    return None


def lacks_class(data: Data, parts: list[np.ndarray]) -> bool:
    """Return whether one of these sets of rows has no row of some class."""
    if data.classes is None:
        return False
    return any(len(np.unique(data.y[rows])) < len(data.classes) for rows in parts)


def make_folds(data: Data) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Return pairs of rows to fit to and rows to test on, and the words for it.

    Rows in order of time are tested on what comes later, rows that are equal in all features stay
    in one fold, and a large table is measured once, on rows kept out.
    """
    X, y, notes = data.X, data.y, data.notes
    is_large = data.work > LARGE_WORK
    parts = max(FOLDS, round(len(y) / KEPT_OUT_ROWS)) if is_large else FOLDS
    shuffled = {"n_splits": parts, "shuffle": True, "random_state": 0}
    Shuffled = KFold if data.classes is None else StratifiedKFold
    folds, words = list(Shuffled(**shuffled).split(X, y)), "shuffled"

    seen: dict[bytes, int] = {}
    groups = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in X])
    repeats = len(y) - len(seen)
    order = time_order(data)
    if order is not None:
        later = [(order[fit], order[test]) for fit, test in TimeSeriesSplit(parts).split(X)]
        later = later[-FOLDS:]
        tested = np.concatenate([test for _, test in later])
        if not lacks_class(data, [tested, *(fit for fit, _ in later)]):
            folds, words = later, "later rows only"
        else:
            notes.append("but some classes are too rare to measure it on later rows only")
    # note: of a few combinations, as of three choices, new rows are old ones too
    elif repeats and 2 * FOLDS <= len(seen) >= len(y) / MAX_REPEATS:
        Grouped = GroupKFold if data.classes is None or is_large else StratifiedGroupKFold
        together = list(Grouped(**shuffled).split(X, y, groups))
        if not lacks_class(data, [fit for fit, _ in together]):
            folds = together
            notes.append(f"{count(repeats, 'row')} with the features of another: kept in one fold")
        else:
            notes.append("rows repeat others, and a class has too few different ones to tell")
    if is_large:
        fit, test = folds[-1]
        some = np.random.default_rng(0).permutation(fit)[:COMPARED_ROWS]
        return [(some, test)], f"{count(len(test), 'row')} kept out, {words}"
    return folds, f"{len(folds)} folds, {words}"


def answer(model: BaseEstimator, X: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return a classifier's probabilities (rows, classes), a regressor's predictions (rows,)."""
    if classes is None:
        return model.predict(X)
    probabilities = np.zeros((len(X), len(classes)))  # a fold may lack a class
    probabilities[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(X)
    return probabilities


def measure_loss(y: np.ndarray, answers: np.ndarray, classes: np.ndarray | None) -> float:
    if classes is None:
        return metrics.root_mean_squared_error(y, answers)
    return metrics.log_loss(y, answers, labels=classes)


def score(y: np.ndarray, answers: np.ndarray, classes: np.ndarray | None) -> dict[str, float]:
    """Return scores by scikit-learn's names, the loss first."""
    loss = measure_loss(y, answers, classes)
    if classes is None:
        error = metrics.mean_absolute_error(y, answers)
        r2 = metrics.r2_score(y, answers)
        return {"root_mean_squared_error": loss, "mean_absolute_error": error, "r2": r2}
    labels = classes[answers.argmax(axis=1)]
    scores = {"log_loss": loss, "accuracy": metrics.accuracy_score(y, labels)}
    scores["balanced_accuracy"] = metrics.balanced_accuracy_score(y, labels)
    if len(classes) == 2:
        scores["roc_auc"] = metrics.roc_auc_score(y == classes[1], answers[:, 1])
    return scores


def compare(models: dict, data: Data, folds: list) -> dict[str, Result]:
    """Return each model's result on rows that its clones have not seen; print the scores."""
    X, y, classes = data.X, data.y, data.classes
    truth = np.concatenate([y[test] for _, test in folds])
    results = {}
    for name, model in models.items():
        if classes is not None and not hasattr(model, "predict_proba"):
            refuse(f"the {name} has no predict_proba: wrap it in CalibratedClassifierCV")
        started = time.perf_counter()
        try:
            clones = [clone(model).fit(X[fit], y[fit]) for fit, _ in folds]
        except ValueError as error:  # say, too few rows of a class to stop early by
            print(f"  {name:23} can't be fitted: {error}")
            continue
        tested = [answer(each, X[test], classes) for each, (_, test) in zip(clones, folds)]
        answers = np.concatenate(tested)
        scores = score(truth, answers, classes)
        results[name] = Result(next(iter(scores.values())), scores, clones, answers)
        text = "   ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in scores.items())
        print(f"  {name:23} {text}   ({time.perf_counter() - started:.1f} s)", flush=True)
    if set(results) <= {"dummy"}:
        refuse("no model could be fitted: the lines above say why")
    return results


def choose(results: dict[str, Result]) -> str:
    """Return the name of the one with the lowest loss; of about equal ones the first."""
    best, *others = results
    for name in others:
        if results[name].loss < (1 - TOLERANCE) * results[best].loss:
            best = name
    return best


def measure_importance(clones: list, data: Data, folds: list) -> dict[str, float]:
    """Return how much shuffling each feature worsens the loss on unseen rows, largest first."""

    def gain(model: BaseEstimator, X: np.ndarray, y: np.ndarray) -> float:
        return -measure_loss(y, answer(model, X, data.classes), data.classes)

    means = []
    for model, (_, test) in zip(clones, folds):
        rows = np.random.default_rng(0).permutation(test)[:IMPORTANCE_ROWS]
        repeats = FOLDS // len(folds)
        found = permutation_importance(
            model, data.X[rows], data.y[rows], scoring=gain, n_repeats=repeats, random_state=0
        )
        means.append(found.importances_mean)
    mean = np.mean(means, axis=0)
    names = [feature["name"] for feature in data.features]
    return {names[i]: float(mean[i]) for i in np.argsort(-mean, kind="stable")}


def conformal_quantile(errors: np.ndarray) -> float:
    """Return the error that COVERAGE of new rows stay within; infinite if there are too few.

    From Angelopoulos and Bates, "A Gentle Introduction to Conformal Prediction", 2021.
    """
    rank = math.ceil((len(errors) + 1) * COVERAGE)
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else math.inf


def measure_uncertainty(answers: np.ndarray, data: Data, folds: list) -> dict:
    """Return from answers for unseen rows what sets of labels, or intervals, need.

    Each class, or band of the prediction, has a number of its own (Mondrian conformal prediction).
    The errors are those of models like the one that is served, fitted to fewer rows: so it is
    neither split conformal prediction nor CV+, whose guarantees are exact.
    """
    y = data.y[np.concatenate([test for _, test in folds])]
    if data.classes is not None:
        thresholds = []  # a label is likely from this probability on; 0: too few rows to say
        for place, label in enumerate(data.classes):
            error = conformal_quantile(1 - answers[y == label, place])
            thresholds.append(max(0.0, 1 - error))
        return {"coverage": COVERAGE, "thresholds": thresholds}
    bands = max(1, min(BANDS, len(y) // BAND_ROWS))
    edges = np.unique(np.quantile(answers, np.linspace(0, 1, bands + 1)[1:-1]))
    band, errors = np.searchsorted(edges, answers, side="right"), np.abs(y - answers)
    widths = []  # half of the interval's, band by band
    for place in range(len(edges) + 1):
        widths.append(min(conformal_quantile(errors[band == place]), float(errors.max())))
    return {
        "coverage": COVERAGE,
        "edges": edges.tolist(),  # a band is from one to the next
        "widths": widths,
        "at_least": 0.0 if data.y.min() >= 0 else None,  # an interval keeps the sign of all
        "at_most": 0.0 if data.y.max() <= 0 else None,
    }


def note_leaks(left: float, importance: dict[str, float], data: Data) -> None:
    """Note what is too good to be true, or no good: `left` is the share of the dummy's loss."""
    names = [f"'{name}'" for name in importance]
    gains = [max(gain, 0.0) for gain in importance.values()]
    first = gains[0] / (sum(gains) or 1.0)
    question = f"is it known before '{data.target}' is?"
    if left > 0.99:
        data.notes.append("hardly better than the dummy: these columns say little")
    elif left < 0.03 and first < 0.9:
        data.notes.append(
            f"almost nothing is left to guess, by {' and '.join(names[:2])}: {question}"
        )
    elif left < 0.03 or (left < 0.5 and first > 0.9):
        data.notes.append(f"{names[0]} tells almost all of it: {question}")


# what is saved


def pick_examples(data: Data) -> list[dict]:
    """Return up to five real rows, of different classes or from low to high, as JSON has them."""
    rows = np.argsort(data.y, kind="stable")[np.linspace(0, len(data.y) - 1, 5).astype(int)]
    if data.classes is not None:
        rows = [(data.y == label).argmax() for label in data.classes[:5]]
    examples = []
    for row in rows:
        values = {f["name"]: decode(f, value) for f, value in zip(data.features, data.X[row])}
        examples.append({"features": values, "target": data.y[row].item()})
    return examples


def save(model: BaseEstimator, card: dict, X: np.ndarray) -> str:
    """Write model.joblib under another name, then rename it; return the file's SHA-256."""
    by_probability = True
    if is_classifier(model):
        most_probable = model.classes_[model.predict_proba(X).argmax(axis=1)]
        by_probability = bool((model.predict(X) == most_probable).all())
    has_range = ["minimum" in feature for feature in card["features"]]
    artifact = {
        "model": model,
        "card": card,
        "background": np.random.default_rng(0).permutation(X)[:BACKGROUND_ROWS],
        "by_probability": by_probability,  # the predicted label is always the most probable one
        "low": np.where(has_range, np.nanmin(X, axis=0), np.nan),  # of numbers and dates
        "high": np.where(has_range, np.nanmax(X, axis=0), np.nan),
    }
    new = MODEL_PATH.with_name(f".{MODEL_PATH.name}.{os.getpid()}")
    try:
        joblib.dump(artifact, new, compress=3)
        new.replace(MODEL_PATH)
    except OSError as error:
        refuse(f"'{MODEL_PATH}' can't be written ({error.strerror}): set MODEL_PATH")
    finally:
        new.unlink(missing_ok=True)
    return hashlib.sha256(MODEL_PATH.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

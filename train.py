"""Fit a scikit-learn model to a table, measure it, and save it with a card that describes it.

    python train.py                              # scikit-learn's wine data, a few seconds
    python train.py sales.csv --target price     # your table: a CSV file with a header row

For data from elsewhere replace load_table(), for another estimator build_model().
Left out: free text, and what rows that belong together (visits of one patient) could tell.
"""

import argparse
import csv
import difflib
import hashlib
import importlib
import io
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NoReturn

# boosting's threads wait for each other at each step: on a shared machine, slower than one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")

import joblib
import numpy as np
import pandas as pd
from sklearn import metrics
from sklearn.base import BaseEstimator, clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_wine
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    SplineTransformer,
    StandardScaler,
)

MODEL_PATH = Path(os.environ.get("MODEL_PATH") or "model.joblib")

Table = dict[str, list[str]]  # each column's texts by its name
Folds = list[tuple[np.ndarray, np.ndarray]]  # rows to fit to, and rows to test on

# what a table may be
MISSING = {"", "?", "-", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null"}
MAX_COLUMNS = 2_000  # a form of more is no form
MAX_ROW_CHARACTERS = 1_000_000  # a longer row is no row: a quote that nobody closed, or an attack
MAX_NUMBER = 1e30  # the square of a larger one overflows inside many estimators

# what a column may be
MOSTLY = 0.9  # of a column's cells decide what it is; the others are read as gaps, and named
MAX_GAP_WORDS = 3  # of a column: texts among numbers or dates that stand for a gap
MAX_CHOICES = 200  # texts in one column; more make a list that nobody scrolls
FEW_CHOICES = 20  # so few are choices, and no identifier, also where most are numbers
MAX_CODES = 12  # whole numbers in so small a range: a choice, too
MAX_DENSE = 10_000_000  # cells of choices, one-hot: more would take too much memory
MAX_CLASSES = 100
MAX_GUESSED_CLASSES = 10  # different whole numbers in the target; more are a quantity

# how a model is measured
MIN_ROWS = 10  # fewer say nothing about a model
FOLDS = 5  # of the cross-validation; a class needs as many rows
LARGE_WORK = 50_000  # rows times classes: beyond, one fold is enough, and so many rows to fit to
SLOW_WORK = 1_000_000  # rows times classes: beyond, the slow candidate is left out
DISORDER = 0.001  # the share of steps back that a table in order of time may have
MAX_REPEATS = 10  # of one row; more are no accident, but all the combinations there are
TOLERANCE = 0.02  # of the loss: so little is luck, and an earlier candidate answers faster
IMPORTANCE_ROWS = 500  # of each fold, drawn at random: enough to rank the features
COVERAGE = 0.9  # the share of truths that intervals and sets of likely labels hold
BANDS, BAND_ROWS = 5, 50  # of a regression's predictions, each with errors of its own
BACKGROUND_ROWS = 100  # against which the API explains an answer


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
    table, separator = read_columns(content, options.table)
    del content  # and the columns go as they are read: a large table takes much memory
    card = start_card(find_target(table, options.target), about)
    card["title"] = (options.title or card["title"]).encode(errors="replace").decode()
    card["decimal"] = options.decimal or find_decimal(table, separator, card["notes"])
    note_oddities(table, card["notes"])
    y, rows = read_target(table, options.task, card)
    X = read_features(table, rows, card)

    # compare a dummy and the candidates on rows that they have not seen
    folds = make_folds(X, y, card)
    candidates = build_model(card["task"], card["features"])
    if not isinstance(candidates, dict):
        candidates = {type(candidates).__name__: candidates}
    if work(card) > SLOW_WORK:
        candidates.pop("slow gradient boosting", None)
    best, clones, answers = compare(candidates, X, y, folds, card)
    if len(card.get("classes", [])) == 2:
        truth = np.concatenate([y[test] for _, test in folds])
        counts = [(truth == c).sum() for c in card["classes"]]
        rare = int(np.argmin(counts)); label = card["classes"][rare]; rows = []
        for cut in (0.1, 0.2, 0.3, 0.5, 0.7):
            above = answers[:, rare] >= cut
            hit = (truth == label)
            rows.append([cut, float(hit[above].mean()) if above.any() else None, float((above & hit).sum() / hit.sum())])
        card["cutoffs"] = {"label": label, "rows": rows}
    card["importance"] = measure_importance(clones, X, y, folds, card)
    card["uncertainty"] = measure_uncertainty(answers, y, folds, card)
    note_leaks(card)

    # fit the best to all rows, and save it with its card
    print(f"keeping the {card['estimator']}, fitting it to {count(len(y), 'row')}", flush=True)
    model = clone(best).fit(X, y)
    card["examples"] = pick_examples(X, y, card)
    print("what matters most: " + ", ".join(list(card["importance"])[:3]))
    for note in card["notes"]:
        print(f"  note: {note}")
    sha256 = save(model, X, card)
    size, seconds = MODEL_PATH.stat().st_size, time.perf_counter() - started
    print(f"saved {MODEL_PATH}: {size:,} bytes, sha256 {sha256}, {seconds:.1f} s in all")


def start_card(target: str, about: dict) -> dict:
    """Return the card, which tells API and page all that they know; the steps above fill it in."""
    packages = ("scikit-learn", "numpy", "pandas", "joblib")
    return {
        "name": "table",  # for people, like the next two
        "title": f"Predict {target}",
        "description": f"Predicts {target} from a table's columns.",
        "task": "",  # "classification", with "classes", the labels in order; or "regression"
        "target": target,  # its column's name
        "decimal": "",  # the table's mark: encode() reads numbers with it
        "features": [],  # in column order: see describe_column(), read_features(), add_range()
        "estimator": "",  # what was kept, in words
        "metrics": {},  # its scores on rows that it had not seen
        "baseline": {},  # the same of the dummy, which ignores the features
        "measured": "",  # which rows these were
        "importance": {},  # feature to what shuffling it costs, largest first
        "notes": [],  # what a careful reader of the result should know
        "uncertainty": {},  # see measure_uncertainty()
        "examples": [],  # a few real rows, as JSON has them
        "rows": 0,  # trained on
        "trained": date.today().isoformat(),
        "dropped": [],  # columns, rows and cells left out, each with the reason
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        **about,
    }


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
            name = Path(path).stem.encode(errors="replace").decode()
            return Path(path).read_bytes(), {"name": name}
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


def read_table(content: bytes) -> tuple[list[str], str, Iterator[list[str]]]:
    """Return the columns' names, the separator, and an iterator over the rows, lists of texts.

    An empty name becomes the column's place, a repeated one gets a number. A row that is too
    short is filled with gaps; one that is too long comes as it is. Raises ValueError in one line.
    """
    if content.startswith((b"sep=", b"\xef\xbb\xbfsep=")):  # a line for Excel
        content = content.partition(b"\n")[2]
    # the separator that splits most of the first rows as it splits the header; of equals, the
    # comma last: it may be a decimal mark
    text, separator, best = open_text(content), ",", (0, 0)
    for mark in ";\t|,":
        try:
            widths = [len(row) for row in islice(read_rows(text, mark), 100)] or [0]
        except ValueError:  # a quote that is none with another separator
            continue
        rate = widths.count(widths[0]), widths[0]
        if widths[0] > 1 and rate > best:
            separator, best = mark, rate

    rows = read_rows(text, separator)
    header = next(rows, None)
    if header is None:
        raise ValueError("it is empty: give a table with a header row")
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS:,} columns")
    names: dict[str, int] = {}  # and how often each has come so far
    for place, name in enumerate(header, 1):
        name = unique = name.strip() or f"column {place}"
        while unique in names:
            names[name] += 1
            unique = f"{name} ({names[name]})"
        names[unique] = 1
    return list(names), separator, (row + [""] * (len(names) - len(row)) for row in rows)


def open_text(content: bytes) -> io.TextIOBase:
    """Open as UTF-8, UTF-16 (told by its first bytes), or what Windows writes in the west."""
    is_utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    if b"\0" in content and not is_utf16:
        raise ValueError("it is not a text file: export the table as CSV")
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    try:
        text = io.TextIOWrapper(io.BytesIO(content), encoding)
        while text.read(2**20):
            pass
    except UnicodeDecodeError:
        encoding = "utf-16" if is_utf16 else "cp1252"
    return io.TextIOWrapper(io.BytesIO(content), encoding, "replace", newline="")


def read_rows(text: io.TextIOBase, separator: str) -> Iterator[list[str]]:
    """Yield from its start the rows that are not blank, without ever holding more than one.

    Raises ValueError for a row that is too long, or a quote that is not closed.
    """
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        while line := text.readline(MAX_ROW_CHARACTERS):
            size += len(line)
            if size >= MAX_ROW_CHARACTERS:
                raise ValueError(f"a row has over {MAX_ROW_CHARACTERS:,} characters")
            yield line
        yield "\n"  # a blank row: the last one, unless a quote has swallowed it

    text.seek(0)
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    row: list[str] = []
    for row in csv.reader(lines(), delimiter=separator, skipinitialspace=True):
        if row:
            size = 0
            yield row[: MAX_COLUMNS + 1]
    if row:
        raise ValueError("a quote near its end is never closed")


def read_columns(content: bytes, path: str | None) -> tuple[Table, str]:
    """Return each column's texts by its name, and the separator, or refuse what is no table."""
    try:
        names, separator, rows = read_table(content)
        if len(names) == 1:
            raise ValueError("it has one column: a table needs a target and at least one feature")
        table: Table = {name: [] for name in names}
        for place, row in enumerate(rows, 1):
            if any(row[len(names) :]):
                reason = f"row {place} has {len(row)} cells, the header {len(names)}"
                raise ValueError(f"{reason}: does a line stand above the header?")
            for texts, text in zip(table.values(), row):
                texts.append(text.strip())
        if not table[names[0]]:
            raise ValueError("it has a header and no rows")
    except ValueError as error:
        refuse(f"'{path}' is not a table: {error}")
    return table, separator


# from texts to numbers, and back

SWAPPED = str.maketrans(".,", ",.")
NUMBER = re.compile(  # as people write it, here with a decimal point; 007 is a code and none
    r"([-+]?[$€£¥₹]?|[$€£¥₹][-+]) ?"  # a sign, a currency
    r"([1-9]\d{0,2}([,' \u2019\u00a0\u202f]\d{3})+|0|[1-9]\d*|(?=\.\d))"  # 1,234 or 1234
    r"(\.\d*)?([eE][-+]?\d+)? ?[$€£¥₹%]?",
    re.ASCII,
)
ISO = "ISO 8601"
FIRST_DAY, LAST_DAY = -719_162, 2_932_896  # since 1970, of the years 1 to 9999


def read_number(text: str, decimal: str) -> float | None:
    """Return the number, or None where there is none: 1,234.50 € with the mark ".", 12 %."""
    text = text.replace("\u2212", "-")  # a typographer's minus
    text = text.translate(SWAPPED) if decimal == "," else text
    if not NUMBER.fullmatch(text):
        return None
    value = float(re.sub(r"[^\d.eE+-]", "", text))
    return value if abs(value) <= MAX_NUMBER else None


def read_date(text: str, layout: str = ISO) -> float | None:
    """Return the days since 1970-01-01 (UTC where the text says so), or None. ISO is always read,
    and commas are not looked at: Jan 5, 2024."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        if layout == ISO:
            return None
        try:
            moment = datetime.strptime(text.replace(",", ""), layout)
        except ValueError:
            return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    days = round(moment.timestamp(), 3) / 86_400  # decode() writes milliseconds
    return days if FIRST_DAY <= days < LAST_DAY + 1 else None


def read_cell(text: str, feature: dict, decimal: str) -> float | None:
    """Return the number that stands for a text, NaN for a gap, None for what can't be read."""
    if text in MISSING or text in feature.get("gaps", ()):
        return math.nan
    if feature["type"] == "number":
        return read_number(text, decimal)
    if feature["type"] == "date":
        return read_date(text, feature["format"])
    choices = feature.get("choices")
    if feature["type"] == "boolean":
        text, choices = text.lower(), ["false", "true"]
    if text not in choices and feature.get("open"):
        return len(choices)
    return choices.index(text) if text in choices else None


def encode(table: Table, card: dict) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """Return what the model sees, float64 of shape (rows, features), and what could not be read:
    the row, the feature and a reason. There, and in a gap, is NaN.

    A number is itself, a boolean 0 or 1, a category the place of its choice, a date its days
    since 1970-01-01. A feature that is not in the table is a gap in every row.
    """
    unreadable = {"boolean": "not true or false", "category": "none of the choices"}
    rows = len(next(iter(table.values()), []))
    X, problems = np.empty((rows, len(card["features"]))), []
    for place, feature in enumerate(card["features"]):
        name, texts = feature["name"], table.get(feature["name"]) or [""] * rows
        reason = unreadable.get(feature["type"], f"no {feature['type']}")
        values, wrong = {}, {}
        for text in set(texts):  # each different text is read once
            values[text] = read_cell(text.strip(), feature, card["decimal"])
            if values[text] is None:
                wrong[text] = f"is '{text.strip()[:100]}', {reason}"
            elif math.isnan(values[text]) and not feature.get("nullable", True):
                wrong[text] = "is missing"
        X[:, place] = [values[text] for text in texts]
        if wrong:
            problems += [(row, name, wrong[t]) for row, t in enumerate(texts) if t in wrong]
    return X, problems


def decode(feature: dict, value: float) -> object:
    """Return what JSON has for a value of the array: encode() the other way round."""
    if math.isnan(value):
        return None
    if feature["type"] == "category":
        return [*feature["choices"], "another"][int(value)]
    if feature["type"] == "boolean":
        return bool(value)
    if feature["type"] == "number":
        return int(value) if feature["integer"] else float(value)
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=round(value * 86_400_000))
    return moment.isoformat() if value % 1 else moment.date().isoformat()


# the decimal mark, and the target


def decimal_marks(table: Table) -> tuple[list[str], list[str], Table]:
    """Return the cells that are a number with a decimal point only (0.5, 1,234.5), with a comma
    only (1,5), and with either (1.234): these by column, where no other cell of it tells."""
    points, commas, unclear = [], [], {}
    for name, texts in table.items():
        before, either = len(points) + len(commas), []
        for text in dict.fromkeys(text.strip() for text in texts[:10_000]):
            point, comma = read_number(text, "."), read_number(text, ",")
            if comma is None and point is not None:
                points.append(text)
            elif point is None and comma is not None:
                commas.append(text)
            elif point != comma:
                either.append(text)
        if either and len(points) + len(commas) == before:
            unclear[name] = either
    return points, commas, unclear


def find_decimal(table: Table, separator: str, notes: list[str]) -> str:
    """Return the decimal mark for which most cells speak; note where it had to be assumed."""
    points, commas, unclear = decimal_marks(table)
    few, many = sorted([points, commas], key=len)
    if len(few) > (1 - MOSTLY) * len(many):
        refuse(f"'{points[0]}' and '{commas[0]}' differ in the decimal mark: say --decimal")
    if few:
        notes.append(f"'{few[0]}' has another decimal mark than '{many[0]}': it is no number")
    mark, other = (",", ".") if len(commas) > len(points) else (".", ",")
    if unclear and not many and separator == ";":  # as where the comma is a decimal mark
        mark, other = ",", "."
    if unclear:
        text = next(iter(unclear.values()))[0]
        one, two = read_number(text, mark), read_number(text, other)
        notes.append(f"'{text}' is read as {one:.10g}; --decimal {other} makes it {two:.10g}")
    return mark


def check_decimal(table: Table, card: dict) -> None:
    """Raise ValueError where the numbers of a table to predict seem to have another decimal mark
    than the card's: the same digits may stand for a thousand times as much."""
    mark, other = (".", ",") if card["decimal"] == "." else (",", ".")
    features = {f["name"]: f for f in card["features"] if f["type"] == "number"}
    numbers = {name: table[name] for name in features if name in table}
    points, commas, unclear = decimal_marks(numbers)
    mine, others = (points, commas) if mark == "." else (commas, points)
    clear = sum(len(set(texts)) for texts in numbers.values()) - sum(map(len, unclear.values()))
    if len(others) <= max(1, len(mine), (1 - MOSTLY) * clear):
        others = []  # so few are typing errors
    if not mine:  # nothing speaks for the card's mark: does a feature's range for the other?
        for name, texts in unclear.items():
            low, high = features[name]["minimum"], features[name]["maximum"]
            for text in texts:
                here, there = read_number(text, mark), read_number(text, other)
                if low <= there <= high and not low <= here <= high:
                    others.append(text)
    if others:
        words = f"'{others[0]}' seems to have another decimal mark than '{mark}'"
        raise ValueError(f"{words}: write it as the table was that the model is trained on")


def find_target(table: Table, wanted: str | None) -> str:
    """Return the target's name: the one that is wanted, or the last column that is not empty."""
    filled = [name for name, texts in table.items() if any(texts)]
    target = wanted or (filled or list(table))[-1]
    if target not in table:
        nearest = difflib.get_close_matches(target, table, n=1, cutoff=0)
        refuse(f"no column '{target}': did you mean --target '{nearest[0]}'?")
    return target


def read_target(table: Table, task: str | None, card: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the target, float64 or labels as texts, and the places of the rows that have it."""
    name, cells = card["target"], pd.Series(table[card["target"]])
    is_label = (cells == "+").sum() >= FOLDS  # then so is "-"
    missing = MISSING - {"-"} if is_label else MISSING
    known = cells[~cells.isin(missing)]
    numbers = known.map(lambda text: read_number(text, card["decimal"])).astype(float).dropna()
    often = numbers.value_counts()
    has_fractions = (often.index % 1).any()
    # whole numbers are a quantity too if, as classes, over a tenth of the rows would be too rare
    is_rare = len(often) > 2 and often[often < FOLDS].sum() > (1 - MOSTLY) * len(numbers)
    is_quantity = has_fractions or is_rare or len(often) > MAX_GUESSED_CLASSES
    is_regression = is_quantity and len(numbers) > len(known) / 2
    card["task"] = task or ("regression" if is_regression else "classification")
    y, why = numbers, "no number"
    if card["task"] == "classification":
        y = known[known.map(known.value_counts()) >= FOLDS]
        why = f"a label of fewer than {FOLDS} rows"
        card["classes"] = sorted(set(y))
        if len({label.casefold() for label in card["classes"]}) < len(card["classes"]):
            card["notes"].append("some labels differ only in capitals: are they the same?")
    card["rows"] = len(y)
    overrides = "" if task else " (--task overrides)"
    print(f"{count(len(y), 'row')}, {len(table)} columns; {card['task']} of '{name}'{overrides}")

    left_out = known.drop(y.index)
    some = [f"'{text[:100]}' in row {row + 1}" for row, text in left_out[:3].items()]
    reasons = {f"'{name}' is empty or NA": len(cells) - len(known)}
    reasons[f"'{name}' is {why}: {', '.join(some)}"] = len(left_out)
    for reason, rows in reasons.items():
        if rows:
            card["dropped"].append({"rows": rows, "reason": reason})
            print(f"  {count(rows, 'row')} left out: {reason}")

    check_target(y, card)
    return np.array(y.tolist()), y.index.to_numpy()


def check_target(y: pd.Series, card: dict) -> None:
    """Refuse a target of which nothing can be learned: one value, or a few rows."""
    name, different = card["target"], y.nunique()
    if "classes" in card and not 2 <= different <= MAX_CLASSES:
        wrong = f"target '{name}' has {different} classes of {FOLDS} rows or more"
        needs = f"a classification needs 2 to {MAX_CLASSES}"
        refuse(f"{wrong}: {needs}; is --target or --task another?")
    if len(y) < MIN_ROWS:
        refuse(f"{count(len(y), 'usable row')}: give {MIN_ROWS} or more where '{name}' is known")
    if different == 1:
        refuse(f"target '{name}' is always {y.iloc[0]}: there is nothing to learn")


# what the other columns are

DAYS = "%Y-%m-%d,%Y/%m/%d,%Y.%m.%d,%d.%m.%Y,%d.%m.%y,%m/%d/%Y,%d/%m/%Y,%m/%d/%y,%d/%m/%y,"
DAYS += "%m-%d-%Y,%d-%m-%Y,%d-%b-%Y,%d-%b-%y,%d %b %Y,%b %d %Y,%d %B %Y,%B %d %Y,%Y-%m,%b %Y,%B %Y"
CLOCKS = ", %H:%M, %H:%M:%S, %H:%M:%S.%f, %H:%M:%S UTC, %H:%M:%S GMT, %I:%M %p, %I:%M:%S %p"
LAYOUTS = [ISO, *(day + clock for day in DAYS.split(",") for clock in CLOCKS.split(","))]
EIGHT_DIGITS = r"(19|20)\d{6}"  # 20241231
ID_NAME = re.compile(r"(?i:(\b|_)(id|uuid)|^(index|key|rownames|column 1|unnamed: 0))$|[a-z]I[Dd]$")
TOTAL = re.compile(r"(?i)(grand )?(total|sum|summe|gesamt|insgesamt|somme)s?\W*")
TIME = re.compile(r"(?i:(\b|_)(time|date|day|week|month|quarter|year|period|instant|epoch|t)$)")


def note_oddities(table: Table, notes: list[str]) -> None:
    """Note what looks like no part of the table: data as its names, no names, a total."""
    numbers = [name for name in table if read_number(name, ".") is not None]
    if len(numbers) > len(table) / 2:
        notes.append(f"the header looks like data ({', '.join(numbers[:3])}): is it missing?")
    unnamed = [name for place, name in enumerate(table, 1) if name == f"column {place}"]
    if len(unnamed) > len(table) / 2:
        notes.append("most columns have no name: does a line stand above the header?")
    for texts in table.values():
        if TOTAL.fullmatch(texts[-1]) and texts.count(texts[-1]) == 1:
            notes.append(f"the last row looks like a total ('{texts[-1]}'): delete it?")


def read_features(table: Table, rows: np.ndarray, card: dict) -> np.ndarray:
    """Return what the model sees of these rows; put on the card, and print, what each column is or
    why it is left out, and which cells could not be read."""
    columns, wide = [], max(map(len, table))
    for name in list(table):
        texts = table.pop(name)
        if name == card["target"]:
            continue
        texts = [texts[row] for row in rows]
        found = describe_column(name, texts, card)
        if isinstance(found, str):
            card["dropped"].append({"column": name, "reason": found})
            print(f"  {name:{wide}}  left out: {found}")
            continue
        feature = {"name": name, **found}
        column, problems = encode({name: texts}, card | {"features": [feature]})
        words = {texts[row] for row, _, _ in problems}
        if 0 < len(words) <= MAX_GAP_WORDS:  # rows to predict may have them too
            feature["gaps"] = sorted(words)
        add_range(feature, column[:, 0])
        if "%y" in feature.get("format", "") and feature["maximum"] > str(datetime.now(UTC)):
            note = f"'{name}' goes to {feature['maximum']}: two digits don't tell the century"
            card["notes"].append(note)
        card["features"].append(feature)
        columns.append(column)
        print(f"  {name:{wide}}  {sketch(feature)}")
        if problems:
            reason = "; ".join(f"row {rows[row] + 1} {why}" for row, _, why in problems[:3])
            card["dropped"].append({"column": name, "cells": len(problems), "reason": reason})
            print(f"  {'':{wide}}  {count(len(problems), 'gap')}: {reason}")
    if not columns:
        refuse("no column is left to predict from: the lines above say why")
    return np.hstack(columns)


def describe_column(name: str, texts: list[str], card: dict) -> dict | str:
    """Return a feature's type, or the reason why the column is left out."""
    cells = pd.Series([text for text in texts if text not in MISSING], dtype=str, name=name)
    choices, known = cells.unique(), len(cells)
    if known < MIN_ROWS:
        return f"known in only {count(known, 'row')}" if known else "empty"
    if len(choices) == 1 and known == len(texts):
        return f"always '{choices[0]}'"

    numbers = {text: read_number(text, card["decimal"]) for text in choices}
    numbers = cells.map(numbers).astype(float)
    readable, span = numbers.notna().mean(), numbers.max() - numbers.min()
    words = cells[numbers.isna()].nunique()
    is_mostly = readable >= MOSTLY or (readable > 0.5 and words == 1)  # a word for a gap
    is_number = readable == 1 or (is_mostly and len(choices) > FEW_CHOICES)
    if cells.str.fullmatch(r"0\d+").mean() > 0.01:
        is_number = False  # codes, such as 02139
    is_whole = is_number and (numbers.dropna() % 1 == 0).all()
    if not is_number or cells.str.fullmatch(EIGHT_DIGITS).mean() >= MOSTLY:
        layout = find_date_layout(cells, card["notes"])
        if layout:
            return {"type": "date", "format": layout}
    if ID_NAME.search(name) and len(choices) > FEW_CHOICES and (is_whole or not is_number):
        return "an identifier, by its name; rename it to keep it"
    if is_number:
        is_dense = len(choices) == len(texts) and len(texts) > MOSTLY * span
        counts_rows = is_whole and is_dense and numbers.min() in (0, 1)
        if counts_rows and not TIME.search(name):
            return "an identifier: whole numbers, all different"
        return {"type": "number"}
    if cells.str.lower().isin(["false", "true"]).all():
        return {"type": "boolean"}
    if len(choices) <= min(MAX_CHOICES, known // 2):
        return {"type": "category", "choices": sorted(choices)}
    if cells.str.split().str.len().mean() > 4:
        return "free text"
    if len(choices) == known:
        return "an identifier: every text is different"
    return f"{len(choices):,} different texts in {known:,} cells are too many for a choice"


def find_date_layout(cells: pd.Series, notes: list[str]) -> str | None:
    """Return how these texts write a date, None if they do not; note what had to be assumed."""

    def share(layout: str, counts: pd.Series) -> float:
        is_date = [read_date(text, layout) is not None for text in counts.index]
        return counts[is_date].sum() / counts.sum()

    counts = cells.value_counts()
    some = counts.head(20).clip(upper=1)  # texts, not cells: one may be a word for a gap
    likely = [layout for layout in LAYOUTS if share(layout, some) > 0.5]
    if ISO in likely and share(ISO, counts) == 1:  # the others would read it too
        return ISO
    shares = {layout: share(layout, counts) for layout in likely}
    best = max(shares, key=shares.get, default=None)
    if best is None or shares[best] < MOSTLY:
        return None
    swapped = best.replace("%m/%d", "%d/%m").replace("%m-%d-%Y", "%d-%m-%Y")
    if swapped != best and shares.get(swapped) == shares[best]:
        notes.append(f"'{cells[0]}' in '{cells.name}' is read as a date by {best}, not {swapped}")
    return best


def add_range(feature: dict, column: np.ndarray) -> None:
    """Add what the values tell: gaps, the default, how often what occurs, and of numbers and dates
    the range."""
    values = column[~np.isnan(column)]
    feature["missing"] = len(column) - len(values)  # rows
    feature["nullable"] = feature["missing"] > 0
    if feature["type"] in ("category", "boolean"):
        choices = feature.get("choices", [False, True])
        counts = np.bincount(values.astype(int), minlength=len(choices))
        feature["default"] = decode(feature, counts.argmax())
    else:
        counts = np.histogram(values - values.min(), bins=20)[0]
        if feature["type"] == "number":
            feature["integer"] = bool((values % 1 == 0).all() and abs(values).max() < 2**53)
        ends = np.percentile(values, [0, 50, 100], method="lower")
        for key, value in zip(("minimum", "default", "maximum"), ends):
            feature[key] = decode(feature, value)
    feature["counts"] = counts.tolist()  # of each choice, or in equal steps through the range


def sketch(feature: dict) -> str:
    """Return in one line what a feature is."""
    kind = "whole number" if feature.get("integer") else feature["type"]
    what = ", ".join(feature.get("choices", []))[:60]
    if "minimum" in feature:
        what = f"{feature['minimum']} to {feature['maximum']}"
    share = feature["missing"] / (sum(feature["counts"]) + feature["missing"])
    percent = np.clip(round(100 * share), 1, 99)
    gaps = f"   {percent} % gaps" if feature["nullable"] else ""
    return f"{kind:12}  {what}{gaps}"


# the models


def build_model(task: str, features: list[dict]) -> dict | BaseEstimator:
    """Return the estimators to compare, by name. Replace it to return others, or just one.

    They are fitted to what encode() makes of the features: columns by position. A classifier
    needs predict_proba.
    """
    kinds = np.array([feature["type"] for feature in features])
    dates, categories = np.flatnonzero(kinds == "date"), np.flatnonzero(kinds == "category")
    quantities = np.flatnonzero(kinds != "category")

    # a linear model wants gaps filled, numbers scaled and choices one-hot
    inputs = StandardScaler()
    if any(features[place]["nullable"] for place in quantities):
        inputs = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), inputs)
    cycles = (make_cycles(len(dates)), dates)
    one_hot, choices = make_one_hot(features)
    if choices or len(dates):
        inputs = make_column_transformer((inputs, quantities), cycles, (one_hot, choices))

    # boosting takes gaps as they are, and the places of choices as numbers; to take them for what
    # they are costs 1 to 2 ms a call, which few tables repay
    several = [place for place in categories if len(features[place]["choices"]) > 2]
    name, linear = "logistic regression", LogisticRegression(max_iter=1000)
    Boosting = HistGradientBoostingClassifier
    if task == "regression":
        name, linear = "ridge regression", RidgeCV(np.logspace(-2, 4, 13))
        Boosting = HistGradientBoostingRegressor
    common = {"max_leaf_nodes": 15, "random_state": 0}
    few = common | {"max_iter": 75, "learning_rate": 0.13}
    many = common | {"max_iter": 300, "learning_rate": 0.05}
    many |= {"early_stopping": True, "n_iter_no_change": 20}
    candidates = {"gradient boosting": Boosting(**few)}
    if several:
        candidates["boosting on categories"] = Boosting(categorical_features=several, **few)
    candidates["slow gradient boosting"] = Boosting(categorical_features=several, **many)
    if len(dates):
        everything = np.arange(len(features))
        with_cycles = make_column_transformer(("passthrough", everything), cycles)
        candidates = {key: make_pipeline(with_cycles, each) for key, each in candidates.items()}
    return {name: make_pipeline(inputs, linear), **candidates}


def make_one_hot(features: list[dict]) -> tuple[BaseEstimator, list[int]]:
    """Return what gives each choice, and each of a few whole numbers (they are often codes), a
    column of 0 and 1, and the columns that it takes: a feature's once for each of its values."""
    values: dict[int, list[int]] = {}  # of the feature at this place
    for place, feature in enumerate(features):
        if "choices" in feature:
            values[place] = list(range(len(feature["choices"])))
        elif feature.get("integer") and feature["maximum"] - feature["minimum"] < MAX_CODES:
            values[place] = list(range(feature["minimum"], feature["maximum"] + 1))
    columns = [place for place in values for _ in values[place]]
    rows = sum(features[0]["counts"]) + features[0]["missing"]
    if rows * len(columns) > MAX_DENSE:
        return OneHotEncoder(categories=[*values.values()], handle_unknown="ignore"), [*values]
    # OneHotEncoder takes 0.1 ms a feature, also for one row; numpy's function does the same
    codes = np.array([code for place in values for code in values[place]])
    return FunctionTransformer(partial(np.equal, codes)), columns


def make_cycles(columns: int) -> BaseEstimator:
    """Return what tells a date's place in the year, in the week and in the day."""
    cycles = []
    for days, parts, degree in ((365.2425, 12, 1), (7, 7, 0), (1, 8, 1)):  # 0: each day's own
        knots = np.tile(np.linspace(0, days, parts + 1)[:, None], columns)
        options = {"extrapolation": "periodic", "handle_missing": "zeros"}
        cycles.append(SplineTransformer(degree=degree, knots=knots, **options))
    return make_union(*cycles)


# which rows they are fitted to, and which they are tested on


def make_folds(X: np.ndarray, y: np.ndarray, card: dict) -> Folds:
    """Return pairs of rows to fit to and rows to test on; of a large table one is enough."""
    folds, words = later_folds(X, y, card), "later rows only"
    if not folds:
        folds, words = shuffled_folds(X, y, card), "shuffled"
    card["measured"] = f"{FOLDS} folds, {words}"
    if work(card) > LARGE_WORK:
        fit, test = folds[-1]
        some = np.random.default_rng(0).permutation(fit)[:LARGE_WORK]
        for label in card.get("classes", []):  # also rows of a rare one
            some = np.union1d(some, fit[y[fit] == label][:FOLDS])
        folds, card["measured"] = [(some, test)], f"{count(len(test), 'row')} kept out, {words}"
    print(f"\nmeasured on {card['measured']}")
    return folds


def work(card: dict) -> int:
    """Return what boosting's time grows with: it fits a tree a round for each class."""
    return card["rows"] * len(card.get("classes", ["one"]))


def later_folds(X: np.ndarray, y: np.ndarray, card: dict) -> Folds:
    """Return folds that look forward where the rows are in order of time, or in the reverse."""
    for feature, column in zip(card["features"], X.T):
        known = column[~np.isnan(column)]
        steps = np.diff(known)
        is_time = feature["type"] == "date" or TIME.search(feature["name"])
        is_long = len(np.unique(known)) >= 4 * FOLDS
        if is_time and is_long and min((steps < 0).mean(), (steps > 0).mean()) < DISORDER:
            break
    else:
        return []
    card["notes"].append(f"the rows are in order of time, by '{feature['name']}'")
    order = np.argsort(column, kind="stable")
    folds = [(order[fit], order[test]) for fit, test in TimeSeriesSplit(FOLDS).split(X)]
    if work(card) > LARGE_WORK:
        folds = folds[-1:]
    # the rows that all folds learn from, and those that one tests
    parts = (folds[0][0], np.concatenate([test for _, test in folds]))
    different = min(len(np.unique(y[part])) for part in parts)
    if different < len(card.get("classes", [])):
        card["notes"].append("but not every class has early and late rows: measured on any")
        return []
    return folds


def shuffled_folds(X: np.ndarray, y: np.ndarray, card: dict) -> Folds:
    """Return folds of rows in any order, those that are equal in all features in one fold."""
    places: dict[bytes, int] = {}  # of the first row with such features
    first = np.array([places.setdefault(row.tobytes(), place) for place, row in enumerate(X)])
    different = np.unique(first)
    repeats = len(y) - len(different)
    is_few = len(different) < max(2 * FOLDS, len(y) / MAX_REPEATS)
    is_rare = any((y[different] == label).sum() < FOLDS for label in card.get("classes", []))
    if is_few or is_rare:  # note: of a few combinations, as of three choices, new rows are old ones
        different = first = np.arange(len(y))
    if repeats and not is_few:
        note = f"{count(repeats, 'row')} with the features of another: kept in one fold"
        if is_rare:
            note = "rows repeat others, and a class has too few different ones to tell"
        card["notes"].append(note)

    # split the different rows, and let the others go where theirs goes
    Split = StratifiedKFold if "classes" in card else KFold
    split = Split(FOLDS, shuffle=True, random_state=0).split(different, y[different])
    tests = [np.isin(first, different[test]) for _, test in split]
    return [(np.flatnonzero(~test), np.flatnonzero(test)) for test in tests]


# how good they are


def compare(models: dict, X: np.ndarray, y: np.ndarray, folds: Folds, card: dict) -> tuple:
    """Return the model of the lowest loss, of about equal ones the first; its clones, one fitted to
    each fold; and their answers for the rows that they have not seen, fold after fold.

    Its scores, and those of a dummy that ignores the features, come on the card.
    """
    truth = np.concatenate([y[test] for _, test in folds])
    best, lowest = None, math.inf
    dummy, method = DummyRegressor(), "predict"
    if "classes" in card:
        dummy, method = DummyClassifier(), "predict_proba"
    for name, model in {"dummy": dummy, **models}.items():
        started = time.perf_counter()
        try:
            clones, answers = [], []
            for fit, test in folds:
                rows = X[fit]
                rows[:, np.isnan(rows).all(axis=0)] = 0.0  # boosting takes no column of NaN alone
                clones.append(clone(model).fit(rows, y[fit]))
                answers.append(getattr(clones[-1], method)(X[test]))
            answers = np.concatenate(answers).squeeze()  # a regressor's may be of shape (rows, 1)
            scores = score(truth, answers, card)
        except (ValueError, AttributeError) as error:  # too few rows of a class, no predict_proba
            print(f"  {name:23} can't be fitted: {error}")
            continue
        text = "   ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in scores.items())
        print(f"  {name:23} {text}   ({time.perf_counter() - started:.1f} s)", flush=True)
        loss = next(iter(scores.values()))
        if name == "dummy":
            card["baseline"] = scores
        elif best is None or loss < (1 - TOLERANCE) * lowest:
            best, lowest = (model, clones, answers), loss
            card |= {"estimator": name, "metrics": scores}
    if best is None:
        refuse("no model could be fitted: the lines above say why")
    return best


def score(y: np.ndarray, answers: np.ndarray, card: dict) -> dict[str, float]:
    """Return scores by scikit-learn's names, first the loss, in which the models compete."""
    if "classes" not in card:
        return {
            "root_mean_squared_error": metrics.root_mean_squared_error(y, answers),
            "mean_absolute_error": metrics.mean_absolute_error(y, answers),
            "r2": metrics.r2_score(y, answers),
        }
    labels = np.array(card["classes"])[answers.argmax(axis=1)]
    scores = {
        "log_loss": metrics.log_loss(y, answers, labels=card["classes"]),
        "accuracy": metrics.accuracy_score(y, labels),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, labels),
    }
    if len(card["classes"]) == 2:
        scores["roc_auc"] = metrics.roc_auc_score(y, answers[:, 1])
    return scores


def measure_importance(
    clones: list, X: np.ndarray, y: np.ndarray, folds: Folds, card: dict
) -> dict[str, float]:
    """Return how much shuffling each feature worsens the loss on unseen rows, largest first."""
    loss = "neg_root_mean_squared_error"
    if "classes" in card:
        log_loss = {"response_method": "predict_proba", "labels": card["classes"]}
        loss = metrics.make_scorer(metrics.log_loss, greater_is_better=False, **log_loss)
    options = {"scoring": loss, "n_repeats": FOLDS // len(folds), "random_state": 0}
    means = []
    for model, (_, test) in zip(clones, folds):
        rows = np.random.default_rng(0).permutation(test)[:IMPORTANCE_ROWS]
        found = permutation_importance(model, X[rows], y[rows], **options)
        means.append(found.importances_mean)
    mean = pd.Series(np.mean(means, axis=0), [feature["name"] for feature in card["features"]])
    return mean.sort_values(ascending=False, kind="stable").to_dict()


def note_leaks(card: dict) -> None:
    """Note what is too good to be true, or no good."""
    loss = next(iter(card["metrics"]))
    left = card["metrics"][loss] / (card["baseline"][loss] or 1.0)
    names = [f"'{name}'" for name in card["importance"]]
    gains = np.maximum(list(card["importance"].values()), 0.0)
    is_alone = len(gains) > 1 and gains[0] > 0.9 * gains.sum()
    question = f"is it known before '{card['target']}' is?"
    if left > 0.99:
        card["notes"].append("hardly better than the dummy: these columns say little")
    elif left < 0.5 and is_alone:
        card["notes"].append(f"{names[0]} tells almost all of it: {question}")
    elif left < 0.03:
        both = " and ".join(names[:2])
        card["notes"].append(f"almost nothing is left to guess, by {both}: {question}")


# how sure an answer is


def measure_uncertainty(answers: np.ndarray, y: np.ndarray, folds: Folds, card: dict) -> dict:
    """Return from answers for unseen rows what sets of labels, or intervals, need.

    Each class, or band of the prediction, has an error of its own that COVERAGE of its rows stay
    within (Mondrian conformal prediction: Angelopoulos and Bates, "A Gentle Introduction to
    Conformal Prediction", 2021). The errors are those of models like the one that is served,
    fitted to fewer rows: so it is neither split conformal prediction nor CV+, whose guarantees
    are exact.
    """
    truth = np.concatenate([y[test] for _, test in folds])
    if "classes" in card:
        group = np.searchsorted(card["classes"], truth)
        errors = 1 - answers[np.arange(len(truth)), group]
        limits = [conformal_quantile(errors[group == i], 1.0) for i in range(len(card["classes"]))]
        # a label is likely from this probability on; 0: too few rows to say
        return {"coverage": COVERAGE, "thresholds": [1 - limit for limit in limits]}
    bands = max(1, min(BANDS, len(truth) // BAND_ROWS))
    edges = np.unique(np.quantile(answers, np.linspace(0, 1, bands + 1)[1:-1]))
    group, errors = np.searchsorted(edges, answers, side="right"), np.abs(truth - answers)
    most = float(errors.max())
    return {
        "coverage": COVERAGE,
        "edges": edges.tolist(),  # a band is from one to the next
        "widths": [conformal_quantile(errors[group == i], most) for i in range(len(edges) + 1)],
        "minimum": float(y.min()),
        "maximum": float(y.max()),
    }


def conformal_quantile(errors: np.ndarray, most: float) -> float:
    """Return the error that COVERAGE of new rows stay within; the most where rows are too few."""
    rank = math.ceil((len(errors) + 1) * COVERAGE)
    return float(np.sort(errors)[rank - 1]) if rank <= len(errors) else most


# what is saved


def pick_examples(X: np.ndarray, y: np.ndarray, card: dict) -> list[dict]:
    """Return up to five real rows, of different classes or from low to high, as JSON has them."""
    middle, spread = np.nanmedian(X, axis=0), np.nanstd(X, axis=0) + 1e-9
    far = np.nansum(((X - middle) / spread) ** 2, axis=1) + 5 * np.isnan(X).sum(axis=1)
    picked = [int(far.argmin())]
    if "classes" in card:
        for label in card["classes"][:5]:
            rows = np.flatnonzero(y == label)
            near = np.nansum(((X[rows] - np.nanmedian(X[rows], axis=0)) / spread) ** 2, axis=1)
            row = int(rows[near.argmin()])
            if y[picked[0]] != label:
                picked.append(row)
    else:
        order = np.argsort(y)
        picked += [int(order[int(q * (len(y) - 1))]) for q in (0.05, 0.35, 0.65, 0.95)]
    examples = []
    for row in picked:
        values = {f["name"]: decode(f, value) for f, value in zip(card["features"], X[row])}
        examples.append({"features": values, "target": y[row].item()})
    return examples


def save(model: BaseEstimator, X: np.ndarray, card: dict) -> str:
    """Write model.joblib under another name, then rename it; return the file's SHA-256."""
    by_probability = True
    if "classes" in card:
        between = np.random.default_rng(0).permuted(X, axis=0)  # rows as the table might have them
        for rows in (X, between):
            most_probable = model.classes_[model.predict_proba(rows).argmax(axis=1)]
            by_probability &= bool((model.predict(rows) == most_probable).all())
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
    sys.stdout.reconfigure(errors="replace")  # what a log in cp1252 can't hold
    # again, by the name by which the API will find a fork's own classes
    importlib.import_module(Path(__file__).stem).main()

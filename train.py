"""Fit a model to a table, measure it on rows it has not seen, and save it with a card about both.

    python train.py                                                  # scikit-learn's wine data
    python train.py sales.csv --target price                         # your table, a CSV file
    python train.py passengers.csv --target survived --model notebook.joblib  # your own pipeline

For data from elsewhere replace load_table(), for other estimators build_model().
Left out: free text, and a search for the best settings (prepare() says how to make one).
"""

import argparse
import csv
import hashlib
import io
import math
import os
import pickle
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

# boosting's threads wait for each other at each step: on a shared machine, slower than one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")

import joblib
import numpy as np
import pandas as pd
from pandas.tseries.api import guess_datetime_format
from sklearn import datasets, ensemble, impute, inspection, linear_model, metrics, model_selection
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, OneHotEncoder, StandardScaler

MODEL_PATH = Path(os.environ.get("MODEL_PATH") or "model.joblib")


def main() -> None:
    started = time.perf_counter()
    before = load_before()  # what model.joblib holds now, of last month perhaps

    # read the table, decide what each column is, turn it into numbers, choose the folds
    X, y, folds, card = prepare(**read_options(), before=before)

    # compare a dummy and the candidates of build_model(), or clones of the given one (prepare() left
    # it on the card until now), on rows that they have not seen: a clone for each fold
    best, clones, answers = compare(find_models(X, y, folds, card), X, y, folds, card)
    card["importance"] = measure_importance(clones, X, y, folds, card)
    tested = np.concatenate([test for _, test in folds])
    card["uncertainty"] = measure_uncertainty(answers, y[tested], y, card)
    if len(card.get("classes", [])) == 2 == len(set(y[tested])):
        card["cutoffs"] = measure_cutoffs(answers, y[tested], card)
    card["examples"] = pick_examples(answers, X[tested], y[tested], card)
    note_results(answers, y[tested], card)

    # fit the best to all rows, unless it was given, and save it with its card
    if hasattr(best, "estimator_"):  # the given one in its wrapper, a DataFrameEstimator
        print(f"keeping the {card['estimator']}, as it was given")
    else:
        print(f"keeping the {card['estimator']}, fitting it to {len(y):,} rows", flush=True)
        best = clone(best).fit(X, y)
    if card["estimator"] != "dummy":
        print("what matters most: " + ", ".join(list(card["importance"])[:3]))
    for note in card["notes"]:
        print(f"  note: {note}")
    if before:
        say_before(before, y, card)
    sha256 = save(best, X, card)  # with some rows of X, by which /explain explains
    print(f"saved {MODEL_PATH}: sha256 {sha256}, {time.perf_counter() - started:.1f} s in all")
    print("next: bash start.sh; where it runs already, the new model is served by itself")


def prepare(path=None, model: str = "", before: dict | None = None, **options: str) -> tuple:
    """Return X, float64 of shape (rows, features), the target y, folds, and the card so far; the
    options are those of the command line. A notebook can look for settings, to be pasted into build_model(), by
    RandomizedSearchCV(estimator, settings, cv=folds).fit(X, y).best_params_"""
    content, about = load_table(path)
    encoding, notes = find_encoding(content, options.get("encoding"))
    table, separator = read_frame(content, encoding)
    told = about | {key: value for key, value in options.items() if value is not None}
    told = find_options(told, table, before["card"] if before else {})
    if model:
        given = load_given(model)  # which refuses a classifier without probabilities
        told["task"] = "classification" if hasattr(given, "predict_proba") else "regression"
    card = start_card(find_column(told.get("target"), table), told, notes)
    cells = pd.Series(table.head(1000).to_numpy().ravel("F")).value_counts(sort=False)
    card["decimal"], _, _ = find_writing(cells, card, separator)
    target, table = read_target(table, card)
    y, rows = np.array(target.tolist()), target.index
    if before:
        before["X"], _ = encode(table.loc[rows], before["card"])
    groups = table.loc[rows, find_column(told["group"], table)] if "group" in told else None
    if model:
        how = {"sep": separator, "decimal": card["decimal"], "encoding": encoding}
        X = read_given(given, io.BytesIO(content), how, table, target, card)
    else:
        X = read_features(table, rows, card, describe_column)
    return X, y, make_folds(X, y, groups, card), card


def start_card(target: str, told: dict, notes: list[str]) -> dict:
    """Return the card, which tells API and page all that they know; the steps above fill it in."""
    packages = ("scikit-learn", "numpy", "pandas", "joblib")
    return {
        "name": told.get("name", "table"),  # for people, like the next two
        "title": told.get("title", f"Predict {target}"),
        "description": told.get("description", f"Predicts {target} from a table's columns."),
        "trained": date.today().isoformat(),
        "task": "",  # "classification", with "classes", the labels in order; or "regression"
        "target": target,  # its column's name
        "decimal": ".",  # the table's mark; a feature may have its own
        # in column order, each with "name", "type", "nullable", "gaps" (texts), "missing" (rows),
        # "default" and "counts": a number with "minimum", "maximum", "integer", "decimal", perhaps
        # "unit"; a date with "minimum", "maximum", "format"; a category with "choices", perhaps
        # "open"; a boolean
        "features": [],
        "estimator": "",  # what was kept, in words
        "metrics": {},  # its scores on rows that it had not seen, a loss first
        "baseline": {},  # the same of the dummy, which ignores the features
        "measured": "",  # which rows these were
        "importance": {},  # feature to what shuffling it costs, largest first
        "notes": notes,  # what a careful reader should know; first, if it is no better than that
        # of two classes "cutoffs": what taking the rarer label for the answer earlier brings
        "uncertainty": {},  # see measure_uncertainty()
        "examples": [],  # a few real rows as JSON has them, a typical one first
        "rows": 0,  # trained on
        "dropped": [],  # columns, rows and cells left out, each with the reason
        "told": told,  # by the command line or the card before: the next run's defaults
        "versions": {"python": sys.version.split()[0]} | {p: version(p) for p in packages},
    }


# the story ends here: below is how each step is done, with the care that real tables need


class Refusal(ValueError):
    """What is wrong, in one line, and what to do."""


OPTIONS = {  # of the command line, and of prepare()
    "target": "the column to predict; left out: the last one",
    "task": "classification or regression; left out: told from the target",
    "title": "the page's heading",
    "description": "the line below it",
    "drop": "columns to leave out, separated by commas",
    "group": "a column whose rows of one value (a person, a station) stay in one fold",
    "empty": "what an empty cell of the target means, such as no",
    "decimal": "the decimal mark, where no cell tells",
    "encoding": "of the file, where it is told wrong",
}


def read_options() -> dict[str, str | None]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", nargs="?", help="a CSV file; left out: the wine data")
    parser.add_argument("--model", help="a file with your fitted pipeline, to serve as it is")
    choices = {"task": ["classification", "regression"], "decimal": [".", ","]}
    for name, text in OPTIONS.items():
        parser.add_argument(f"--{name}", choices=choices.get(name), help=text)
    return vars(parser.parse_args())


def load_before() -> dict:
    """Return what will be replaced, nothing if it can't be read."""
    with suppress(Exception), warnings.catch_warnings(action="ignore"):  # it may raise anything
        before = joblib.load(MODEL_PATH)
        return before if "told" in before["card"] else {}
    return {}


def find_options(told: dict, table: pd.DataFrame, before: dict) -> dict:
    """Return what was told, and where nothing was, what the last time, if it was of this table."""
    if told.get("drop"):
        names = [find_column(name.strip(), table) for name in told["drop"].split(",")]
        told["drop"] = ",".join(names)
    features, target = before.get("features", []), before.get("target")
    known = [feature for feature in features if feature["name"] in table]
    is_same = target in table and told.get("target") in (None, target)
    if is_same and 2 * len(known) > len(features):
        for key, value in before["told"].items():
            if key not in told and (key != "group" or value in table):
                told[key] = ",".join(value) if isinstance(value, list) else value
                print(f"as the last time: --{key} {told[key]}")
    # JSON can't hold what a shell sends that is no UTF-8; --drop "" takes it back
    return {key: text.encode(errors="replace").decode() for key, text in told.items() if text}


# from a file to a table of texts

MISSING = {"", "?", "-", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null"}
MAX_COLUMNS = 2_000  # a form of more is no form
MAX_ROW_CHARACTERS = 1_000_000  # a longer row is no row: a quote that nobody closed, or an attack


def load_table(path: str | None) -> tuple[bytes, dict]:
    """Return a table as CSV, and OPTIONS of its own. Replace it for other sources:
    `return pandas.read_sql(query, connection).to_csv(index=False).encode(), {}` is enough."""
    if path is not None:
        return Path(path).read_bytes(), {"name": Path(path).stem}
    wine = datasets.load_wine(as_frame=True)
    table = wine.data.set_axis(wine.data.columns.str.replace("_", " "), axis=1)
    table["wine"] = np.array(["Barolo", "Grignolino", "Barbera"])[wine.target]
    about = "Tells three wines apart by 13 measurements (M. Forina et al., PARVUS, 1988)."
    options = {"name": "wine", "title": "Barolo, Grignolino or Barbera?", "description": about}
    return table.to_csv(index=False).encode(), options


def find_encoding(content: bytes, told: str | None = None) -> tuple[str, list[str]]:
    """Return how a text is encoded, and a note where that had to be assumed."""
    if told or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return told or "utf-16", []
    if b"\0" in content:
        raise Refusal("the file is no text: export the table as CSV")
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8", "replace")
    bad = sum(part.count("\ufffd") for part in iter(partial(text.read, 2**20), ""))
    beyond_ascii = len(content.translate(None, bytes(range(128))))
    encoding = "cp1252" if bad > beyond_ascii / 20 else "utf-8-sig"
    note = f"not all of the file is UTF-8: it is read as {encoding}, --encoding overrides"
    return encoding, [note] if bad else []


def read_table(content: bytes, encoding: str | None = None) -> tuple[list, str, Iterator]:
    """Return the columns' names, the separator, and an iterator over the rows, lists of texts: one
    that is too short is filled with gaps, one that is too long comes as it is."""
    encoding, _ = find_encoding(content, encoding)
    text = io.TextIOWrapper(io.BytesIO(content), encoding, "replace", newline="")
    sample = text.read(100_000)
    best = (0, 1, ";", 0)  # rows and their cells, the separator, lines above the header
    # what splits most of the first rows alike; of equals the comma last, it may be a decimal mark
    for mark in ";\t|,":
        lines = csv.reader(io.StringIO(sample, newline=""), delimiter=mark, skipinitialspace=True)
        rows = list(filter(None, islice(lines, 100))) or [[]]
        [(width, times)] = Counter(map(len, rows)).most_common(1)
        for place, row in enumerate(rows):
            if len(row) >= max(2, width - 1) and 2 * sum(map(bool, row)) > width:
                break  # a line above the header has fewer cells, or most of them are empty
        is_header = place == 0 or not all(map(PLAIN.fullmatch, row))  # else it is of one column
        if is_header and width > 1 and (times, width) > best[:2]:
            best = (times, width, mark, place)
    _, _, separator, above = best
    rows = islice(read_rows(text, separator), above, None)
    header, first = next(rows, []), list(islice(rows, 9))
    if first and all(len(row) == len(header) + 1 and row[-1] for row in first):
        header = ["", *header]  # R's names of the rows have no name
    if len(header) > MAX_COLUMNS:
        raise Refusal(f"the table has more than {MAX_COLUMNS:,} columns")
    names: list[str] = []
    for place, name in enumerate(header, 1):
        name = name.strip() or f"column {place}"
        while name in names:
            name += f" ({place})"
        names.append(name)
    filled = (row + [""] * (len(names) - len(row)) for row in chain(first, rows))
    return names, separator, filled


def read_rows(text: io.TextIOBase, separator: str) -> Iterator[list[str]]:
    """Yield from its start the rows that are not blank, without ever holding more than one."""
    text.seek(0)
    has_blanks = f'{separator} "' in text.read(100_000)  # before its quotes; else a cell keeps them
    text.seek(0)
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    size, width, row = 0, 0, []

    def read_lines() -> Iterator[str]:
        nonlocal size
        while line := text.readline(MAX_ROW_CHARACTERS):
            size += len(line)
            if size >= MAX_ROW_CHARACTERS:
                raise Refusal(f"a row has over {MAX_ROW_CHARACTERS:,} characters")
            yield line
        yield "\n"  # a blank row: the last one, unless a quote has swallowed it

    for row in csv.reader(read_lines(), delimiter=separator, skipinitialspace=has_blanks):
        lines = filter(None, re.split(r"[\r\n]+", separator.join(row)))
        split = [line.split(separator) for line in lines]
        if len(split) > 1 and set(map(len, split)) == {width}:
            size = 0  # two stray quotes have made one row of many
            yield from split
            row = []
        elif row:
            size, width = 0, len(row)  # many blank rows are as bad as a long one
            yield row[: MAX_COLUMNS + 1]
    if row:
        raise Refusal("a quote near its end is never closed")


def read_frame(content: bytes, encoding: str) -> tuple[pd.DataFrame, str]:
    """Return the table, all texts, and its separator."""
    try:
        names, separator, rows = read_table(content, encoding)
    except (LookupError, UnicodeError):
        raise Refusal(f"'{encoding}' is no encoding of this file: give one, cp1252 say") from None
    cells = []
    for place, row in enumerate(rows, 1):
        if any(row[len(names) :]):
            counts = f"row {place} has {len(row)} cells, the header {len(names)}"
            raise Refusal(f'{counts}: is a quote in a cell written \\" instead of ""?')
        cells.append([cell.strip() for cell in row[: len(names)]])
    table = pd.DataFrame(cells, columns=names, dtype=str)
    table = table[(table != "").any(axis=1) & (table != names).any(axis=1)]  # the header again
    if table.empty or len(names) == 1:
        raise Refusal("the table has no rows, or one column: it needs a header and two or more")
    return table, separator


def find_column(name: str | None, table: pd.DataFrame) -> str:
    """Return this column's name, or the last one's that is not empty."""
    if name is None:
        return table.columns[(table != "").any()][-1]
    if name not in table:
        raise Refusal(f"the table has no column '{name}', but these: {', '.join(table)[:300]}")
    return name


# from a text to a number, and back

MAX_NUMBER = 1e30  # the square of a larger one overflows inside many estimators
PLAIN = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?", re.ASCII)
NUMBER = re.compile(  # < - US$ - 1,234.5 e6 mi.
    r"(?a)[<>~]?=? ?([-+]?)((?:US\$|Rs\.? ?|[$€£¥₹] ?|[A-Z]{3} )-?|)"
    r"([.,]?\d[\d.,' \u2019\xa0\u202f]*?)([eE][-+]?\d+|)[ \xa0]?([^\d\s.,()+-][^\d,()]{0,15}|)"
)
DIGITS = re.compile(  # here with a decimal point: 1,234.5 or 1,23,456 or 1234. or .5; 007 is a code
    r"([1-9]\d?\d?([,' \u2019\xa0\u202f]\d{3})+|[1-9]\d?(,\d\d)+,\d{3}|0|[1-9]\d*|(?=\.\d))(\.\d*)?"
)
MAGNITUDES = {"k": 1e3, "K": 1e3, "M": 1e6, "m": 1e6, "million": 1e6, "Mio.": 1e6, "B": 1e9}
MAGNITUDES |= {"bn": 1e9, "billion": 1e9, "Mrd.": 1e9, "lakh": 1e5, "crore": 1e7}


def split_number(text: str) -> tuple[dict[str, float], str]:
    """Return what a text means by the decimal mark, 1,234 two numbers, 007 none; and the unit."""
    if clock := re.fullmatch(r"(?a)(\d{1,3}):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?", text):
        # beside 1:02:11 the short 59:30 is of minutes and seconds, so another unit
        minutes = 60 * float(clock[1]) + float(clock[2]) + float(clock[3] or 0) / 60
        return dict.fromkeys(".,", minutes), "min of h:mm:ss" if clock[3] else "min"
    text = text.replace("\u2212", "-")  # a typographer's minus
    text = re.sub(r"^\((.+)\)$|^(.+)-$", r"-\1\2", text)  # (12) or 12- is -12
    parts = NUMBER.fullmatch(text)
    if not parts:
        return {}, ""
    sign, before, digits, power, unit = parts.groups()
    size, _, rest = unit.partition(" ")
    factor, meanings = -1 if "-" in sign + before else 1, {}
    if size in MAGNITUDES and (before or size != "m"):  # meters, or millions of money
        factor, unit = factor * MAGNITUDES[size], rest
    for mark, plain in ((".", digits), (",", digits.translate(str.maketrans(".,", ",.")))):
        if DIGITS.fullmatch(plain):
            meanings[mark] = float(re.sub(r"[^\d.]", "", plain) + power) * factor
    return meanings, (before.strip(" -") + unit).strip()


def read_number(text: str, decimal: str, unit: str = "") -> float | None:
    """Return the number, without a unit or with this one; else None."""
    if PLAIN.fullmatch(text) and len(text) < 16 and (decimal == "." or "." not in text):
        return float(text)
    meanings, own = split_number(text)
    value = meanings.get(decimal, max(meanings.values(), default=math.inf))
    if own == "%" and unit == "":  # beside 0.12
        own, value = "", value / 100
    return value if own in ("", unit) and abs(value) <= MAX_NUMBER else None


def find_writing(counts: pd.Series, card: dict, separator: str = ",") -> tuple[str, str, str]:
    """Return the decimal mark and the unit of most numbers, by how often there is each text, and
    a text that means two numbers, if any; of the whole table, given the separator of its cells."""
    marks, units, unclear = Counter(), Counter(), ""
    for text, times in counts.items():
        meanings, unit = split_number(text)
        units[unit] += times
        if len(meanings) == 1:
            marks.update(meanings.keys())
        elif len(set(meanings.values())) == 2:
            unclear = unclear or text
    mark = card["decimal"] if marks["."] == marks[","] else max(marks, key=marks.get)
    if unclear and separator != "," and marks["."] == marks[","] and "decimal" not in card["told"]:
        mark = ","  # as no cell tells, and commas don't separate them
        card["notes"].append(f"'{unclear}' is read with a decimal comma: --decimal . overrides")
    if counts.index.str.contains(r"\d ?[kKB]$").any():
        del units["m"]  # beside thousands it is no unit, but who knows
    del units[""]
    unit = max(units, key=units.get, default="")
    least = MOSTLY if unit == "%" else 0.5  # some per cents beside fractions are no unit
    is_shared = units[unit] >= least * counts.sum() or unit in "$€£¥₹"
    return card["told"].get("decimal", mark), unit if is_shared else "", unclear


ISO = "ISO 8601"
LAYOUTS = (
    "%Y-%m-%d %m-%d-%Y %d-%m-%Y %d-%b-%Y %b-%d-%Y %Y-%b-%d %b-%Y %Y-%b %m-%Y %Y-%m %m%d%Y %d%m%Y"
)
EIGHT_DIGITS = r"(19|20)\d{6}|\d{4}(19|20)\d\d"  # 20241231 or 12312024
DATE = re.compile(r"(?s)(.*?)(?:[t ,]+(\d+:\d\d)(:\d\d)?(?:\.\d+)? ?([ap]m)?(?: utc| gmt)?)?")
WORD = re.compile(r"\d+|jan|feb|m[aä]r|mrz|apr|ma[yi]|jun|jul|aug|sep|o[ck]t|nov|de[cz]|q[1-4]")
ENGLISH = {"mär": "mar", "mrz": "mar", "mai": "may", "okt": "oct", "dez": "dec"}
ENGLISH |= {"q1": "jan", "q2": "apr", "q3": "jul", "q4": "oct"}  # the first month of a quarter


def read_date(text: str, layout: str = ISO) -> float | None:
    """Return the days since 1970-01-01, in UTC where a zone is told, or None; ISO is always read."""
    try:
        if layout == ISO or re.fullmatch(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d\S*)?", text):
            moment = datetime.fromisoformat(text)
        else:  # Fri, 5. Januar 2024 6:00 PM
            day, clock, seconds, half = DATE.fullmatch(text.lower()).groups("")
            if re.match(r"[a-pr-z]\d", day):  # P10022024 is no date
                return None
            day = "-".join(ENGLISH.get(word, word) for word in WORD.findall(day))
            if re.search(r"\D\d\d$", day) and layout != "%m-%Y":  # the year has two digits
                layout = layout.replace("-%Y", "-%y")
            if clock:
                day += f" {clock}{seconds or ':00'}{half}"
                layout += " %I:%M:%S%p" if half else " %H:%M:%S"
            moment = datetime.strptime(day, layout)
        if moment.tzinfo:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    return (moment - datetime(1970, 1, 1)) // timedelta(milliseconds=1) / 86_400_000


def encode(columns: Mapping[str, Sequence[str]], card: dict) -> tuple[np.ndarray, list]:
    """Return what the model sees, float64 of shape (rows, features), and what could not be read:
    the row, the feature and a reason. There, in a gap, or without a column, is NaN; a date is days
    since 1970-01-01, a category its choice's place (another text of an open one the next)."""
    rows = max((len(columns[name]) for name in columns), default=0)
    X, problems = np.empty((rows, len(card["features"]))), []
    for place, feature in enumerate(card["features"]):
        name, kind, choices = feature["name"], feature["type"], feature.get("choices", [])
        places = dict(zip(choices, range(len(choices))))
        other = len(choices) if "open" in feature else None
        texts, values = [text.strip() for text in columns.get(name, [""] * rows)], {}
        for text in set(texts):  # each different text is read once
            if text in MISSING or text in feature.get("gaps", ()):
                values[text] = math.nan
            elif kind == "number":
                mark = feature.get("decimal", card["decimal"])
                values[text] = read_number(text, mark, feature.get("unit", ""))
            elif kind == "date":
                values[text] = read_date(text, feature["format"])
            elif kind == "boolean":
                values[text] = {"false": 0, "true": 1}.get(text.lower())
            else:  # 1.0 is 1
                values[text] = places.get(text, places.get(text.removesuffix(".0"), other))
        X[:, place] = [values[text] for text in texts]
        reason = "none of the choices" if kind == "category" else f"no {kind}"
        for row in np.flatnonzero(np.isnan(X[:, place])).tolist():
            if values[texts[row]] is None:
                problems.append((row, name, f"is '{texts[row][:100]}', {reason}"))
            elif not feature.get("nullable", True):
                problems.append((row, name, "is missing"))
    return X, problems


def decode(feature: dict, value: float) -> object:
    """Return what JSON has for a value of the array: encode() the other way round."""
    if math.isnan(value):
        return None
    if feature["type"] in ("category", "boolean"):
        return [*feature.get("choices", [False, True]), "another"][int(value)]
    if feature["type"] == "number":
        return int(value) if feature["integer"] else float(value)
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=round(value * 86_400_000))
    return moment.isoformat() if value % 1 else moment.date().isoformat()


def check_file(columns: Mapping[str, Sequence[str]], card: dict) -> None:
    """Refuse a file to predict in which the same digits seem to stand for another number or day."""
    for feature in card["features"]:
        name, layout = feature["name"], feature.get("format", "")
        texts = pd.Series(columns.get(name, []), dtype=str).str.strip().drop_duplicates()
        if feature["type"] == "number":
            mark = feature.get("decimal", card["decimal"])
            found, _, unclear = find_writing(texts.value_counts(), card | {"decimal": mark})
            if unclear and found != mark:
                raise Refusal(f"'{name}' seems to have another decimal mark than '{mark}'")
        if feature["type"] == "date":
            other = layout.translate(str.maketrans("dm", "md"))
            days, others = [texts.map(partial(read_date, layout=each)) for each in (layout, other)]
            if others.count() > days.count():
                raise Refusal(f"'{name}' seems to have day and month the other way round")


# what the columns are, the target first

MOSTLY = 0.9  # of a column's cells decide what it is; the others are read as gaps, and named
MIN_ROWS = 10  # fewer say nothing about a model
FOLDS = 5  # of the cross-validation; a class needs as many rows
MAX_CLASSES = 100
MAX_GUESSED_CLASSES = 10  # different whole numbers in the target; more are a quantity
MAX_CHOICES = 200  # texts in one column; more make a list that nobody scrolls
FEW_CHOICES = 20  # so few are choices, and no identifier, also where most are numbers
ID_NAME = re.compile(r"(?i:(\b|_)(id|uuid)|^(index|key|rownames|column 1|unnamed: 0))$|[a-z]I[Dd]$")
TIME = re.compile(r"(?i:(\b|_)(time|date|day|week|month|quarter|year|period|instant|epoch|t)$)")


def read_target(table: pd.DataFrame, card: dict) -> tuple[pd.Series, pd.DataFrame]:
    """Return the target where it is known, numbers or labels as texts; and the rows to describe."""
    name = card["target"]
    cells = table[name].replace("", card["told"].get("empty", ""))
    is_label = (cells == "+").sum() >= FOLDS  # then so is "-"
    known = cells[~cells.isin(MISSING - {"-"} if is_label else MISSING)]
    mark, unit, _ = find_writing(known.value_counts()[:1000], card)
    y = known.map(partial(read_number, decimal=mark, unit=unit)).astype(float).dropna()
    why = "no number"
    rare = (y.map(y.value_counts()) < FOLDS).mean()  # so many of the rows, if it were classes
    most = MAX_GUESSED_CLASSES if rare <= 1 - MOSTLY else 2
    is_quantity = len(y) > len(known) / 2 and ((y % 1).any() or y.nunique() > most)
    steps = np.diff(np.unique(y))
    if is_quantity and most > 2 and len(steps) < FEW_CHOICES < steps.sum() / 10:
        # codes, of parties say, are far apart, and no multiples of a step as prices are
        is_quantity = (y % 1).any() or np.gcd.reduce(steps.astype(int)) > 1
    card["task"] = card["told"].get("task", "regression" if is_quantity else "classification")
    if card["task"] == "classification":
        whole = known.str.removesuffix(".0")  # 1.0 is 1
        known = known.mask(whole.isin(known), whole)
        y = known[known.map(known.value_counts()) >= FOLDS]
        why = f"in fewer than {FOLDS} rows"
        card["classes"] = sorted(set(y))
    card["rows"] = len(y)
    print(f"{len(y):,} rows, {table.shape[1]} columns; {card['task']} of '{name}' (see --task)")
    others = known.drop(y.index)
    for left_out, reason in ((cells.drop(known.index), "empty or NA"), (others, why)):
        if len(left_out):
            reason = f"'{name}' is {reason}: {quote_cells(left_out)}"
            card["dropped"].append({"rows": len(left_out), "reason": reason})
            print(f"  {len(left_out):,} rows left out: {reason}")
    if len(others) > 0.02 * len(known):
        card["notes"].insert(0, f"{len(others):,} of {len(known):,} rows are left out: {reason}")
    if len(y) < MIN_ROWS or y.nunique() < 2 or len(card.get("classes", [])) > MAX_CLASSES:
        words = f"'{name}' has {y.nunique()} different values in {len(y)} usable rows"
        raise Refusal(f"{words}: it needs 2 to {MAX_CLASSES} in {MIN_ROWS}; see --task and --empty")
    # a first row without a target may be no row, but units or a second header
    return y, table.drop(index=others.index[others.index < 2])


def quote_cells(cells: pd.Series) -> str:
    """Return the first few of those that are left out, and where they are."""
    return ", ".join(f"'{text[:100]}' in row {row + 1}" for row, text in cells[:3].items())


def read_features(table: pd.DataFrame, rows: pd.Index, card: dict, describe) -> np.ndarray:
    """Return what the model sees of the rows to learn from; all rows tell what a column can be."""
    columns, wide = [], max(map(len, table))
    for name in table.columns.drop(card["target"]):
        texts = table.pop(name)
        feature = describe(texts, card)
        if isinstance(feature, dict):
            X, _ = encode({name: texts}, card | {"features": [{"name": name, **feature}]})
            odd = texts[np.isnan(X[:, 0]) & ~texts.isin(MISSING)]
            # words stand for a gap, in rows to predict too; a text with digits is misread
            feature["gaps"] = sorted(set(odd[~odd.str.contains(r"\d")]))
            feature["nullable"] = bool(np.isnan(X).any())
            column = pd.Series(X[:, 0], texts.index, name=name)[rows]
            if column.isna().all():
                feature = "empty where the target is known"
        if isinstance(feature, str):
            card["dropped"].append({"column": name, "reason": feature})
            print(f"  {name:{wide}}  left out: {feature}")
            continue
        what = add_range(feature, column, card["notes"])
        card["features"].append({"name": name, **feature})
        columns.append(column.to_numpy())
        if len(odd):
            reason = quote_cells(odd)
            card["dropped"].append({"column": name, "cells": len(odd), "reason": reason})
            what += f"   {len(odd):,} unreadable: {reason}"
        kind = "open category" if "open" in feature else feature["type"]
        print(f"  {name:{wide}}  {kind:13}  {what}")
    if not columns:
        raise Refusal("no column is left to predict from: the lines above say why")
    return np.column_stack(columns)


def describe_column(texts: pd.Series, card: dict) -> dict | str:
    """Return a feature's type, or the reason why the column is left out."""
    name, told = texts.name, card["told"]
    counts = texts[~texts.isin(MISSING)].value_counts()
    known = counts.sum()
    if name in [*told.get("drop", "").split(","), told.get("group")]:
        return "by --drop or --group"
    if known < MIN_ROWS:
        return f"known in only {known} rows" if known else "empty"
    if len(counts) == 1 and known == len(texts):
        return f"always '{counts.index[0]}'"
    mark, unit, _ = find_writing(counts[:1000], card)
    values = np.array([read_number(text, mark, unit) for text in counts.index], float)
    readable = counts[~np.isnan(values)].sum() / known
    odd = counts.index[np.isnan(values)]
    least = 0.5 if len(odd) == 1 and not re.search(r"\d", odd[0]) else MOSTLY  # a word for a gap
    is_number = readable == 1 or (readable >= least and len(counts) > FEW_CHOICES)
    for pattern, share in ((r"0\d", 0.01), ("[<>]", 0.5)):  # codes such as 02139; ages such as <5
        is_number &= counts[counts.index.str.match(pattern)].sum() <= share * known
    is_eight = counts[counts.index.str.fullmatch(EIGHT_DIGITS)].sum() >= MOSTLY * known
    if (not is_number or is_eight) and (layout := find_layout(texts, counts, card["notes"])):
        return {"type": "date", "format": layout}
    if ID_NAME.search(name) and len(counts) > FEW_CHOICES and not (values % 1 > 0).any():
        again = f"; --group {name} keeps its rows together" if len(counts) < known / 2 else ""
        return f"an identifier, by its name; rename it to keep it{again}"
    counter = map(str, range(int(texts.iloc[0] == "1"), len(texts) + 1))
    if not TIME.search(name) and all(text == row for text, row in zip(texts, counter)):
        return "an identifier: it counts the rows; shuffle them to keep it"
    if is_number:
        return {"type": "number", "decimal": mark} | ({"unit": unit} if unit else {})
    if counts.index.str.lower().isin(["false", "true"]).all():
        return {"type": "boolean"}
    whole = counts.index.str.removesuffix(".0")
    counts = counts.groupby(counts.index.where(~whole.isin(counts.index), whole)).sum()  # 1.0 is 1
    # the share of texts seen once is the chance that the next row has a new one (I. J. Good, 1953)
    is_open = len(counts) > MAX_CHOICES or (counts == 1).sum() >= max(2, 0.002 * known)
    least = FOLDS if len(counts) > MAX_CHOICES else 2
    choices = counts[counts >= least].nlargest(MAX_CHOICES - 1) if is_open else counts
    if choices.sum() < known / 4:
        is_text = np.average(counts.index.str.count(" "), weights=counts) > 3
        return "free text" if is_text else f"{len(counts):,} texts in {known:,} cells are too many"
    feature = {"type": "category", "choices": sorted(choices.index)}
    return feature | {"open": True} if is_open else feature


def find_layout(texts: pd.Series, counts: pd.Series, notes: list[str]) -> str | None:
    """Return how these texts write a date, None if they do not; note what had to be assumed."""
    some, dates = counts.index[:: len(counts) // 1000 + 1].to_series(), {}
    some = some[some.str.contains(r"\d")]  # no words for a gap
    for layout in (ISO, *LAYOUTS.split()):
        dates[layout] = some.map(partial(read_date, layout=layout)).notna().sum()
    best, *others = [layout for layout in dates if dates[layout] == max(dates.values())]
    is_date = dates[best] >= max(1, MOSTLY * len(some))
    if not is_date or best == ISO or not others:  # what is ISO is read with any of them
        return best if is_date else None
    if some.str.match(r"\d+\.").any():  # only the day stands before a point
        return others[0]
    steps = {}  # where the rows are in order, of more equal length if it is the right one
    for layout in (best, *others):
        days = texts.map(partial(read_date, layout=layout)).dropna().to_numpy(float)
        if is_in_order(days):
            steps[layout] = np.ptp(np.diff(days))
    if not steps:
        notes.append(f"'{counts.index[0]}' in '{texts.name}' is read as a date, month first")
    return min(steps, key=steps.get, default=best)


def is_in_order(values: np.ndarray) -> bool:
    """Return whether many different values only go up, or only down."""
    steps = np.diff(values[~np.isnan(values)])
    is_long = len(np.unique(values)) >= 4 * FOLDS
    return is_long and min((steps < 0).mean(), (steps > 0).mean()) < 0.001  # a few are errors


def add_range(feature: dict, column: pd.Series, notes: list[str]) -> str:
    """Add the default, counts and range, told in words; note a value that may stand for a gap."""
    values = column.dropna().to_numpy()
    feature["missing"] = len(column) - len(values)  # rows
    gaps = f"   {feature['missing']:,} gaps" if feature["missing"] else ""
    if feature["type"] in ("category", "boolean"):
        choices = feature.get("choices", ["false", "true"])
        counts = np.bincount(values.astype(int), minlength=len(choices) + ("open" in feature))
        feature |= {"default": decode(feature, counts.argmax()), "counts": counts.tolist()}
        return ", ".join(choices)[:60] + gaps
    if feature["type"] == "number":
        feature["integer"] = bool((values % 1 == 0).all() and abs(values).max() < 2**53)
    feature["counts"] = np.histogram(values - values.min(), bins=20)[0].tolist()
    ends = [decode(feature, end) for end in np.percentile(values, [0, 50, 100], method="lower")]
    feature |= dict(zip(("minimum", "default", "maximum"), ends))
    for end in (values.min(), values.max()):
        others = values[values != end]
        is_often = len(values) - len(others) >= FOLDS and len(np.unique(others)) >= FEW_CHOICES
        if is_often and abs(others - end).min() > np.ptp(others):
            notes.append(f"{show(end)} in '{column.name}' is far from all others: is it a gap?")
    return f"{ends[0]} to {ends[2]} {feature.get('unit', '')}".rstrip() + gaps


# a model that was there before, or one by names: the array becomes a DataFrame again


class DataFrameEstimator(BaseEstimator):
    """Give an estimator that takes columns by name a DataFrame: a given model the cells that
    pandas.read_csv would have made, one of build_model() those that JSON has."""

    def __init__(self, estimator, columns=None, labels=None):
        self.estimator = estimator
        self.columns = columns  # by their keys: a dtype, a layout, or a cell for each value
        self.labels = labels  # the estimator's own, by the card's

    def learn(self, frame: pd.DataFrame, X: np.ndarray, card: dict) -> None:
        self.columns = {}
        for feature, values, (key, column) in zip(card["features"], X.T, frame.items()):
            self.columns[key] = column.dtype
            if feature["type"] == "date":
                longest = max(column.dropna().astype(str), key=len)
                layout = guess_datetime_format(longest, feature["format"].startswith("%d"))
                self.columns[key] = "" if column.dtype.kind == "M" else layout or "%Y-%m-%d"
            elif feature["type"] != "number":
                different, rows = np.unique(values, return_index=True)  # NaN is one of them
                self.columns[key] = column[rows].set_axis(different)
                if "open" in feature:
                    self.columns[key][len(feature["choices"])] = "another"

    def make_frame(self, X: np.ndarray) -> pd.DataFrame:
        frame = {}
        for numbers, (key, cells) in zip(X.T, self.columns.items()):
            values = pd.Series(numbers)
            if isinstance(cells, pd.Series):
                values = values.map(cells)
            elif isinstance(cells, str):  # a layout, or "" where the notebook has parsed the dates
                moments = pd.to_datetime((values * 86_400_000).round(), unit="ms")
                values = moments.dt.strftime(cells) if cells else moments
            elif (numbers % 1 == 0).all() and (abs(numbers) < 2**63).all():
                values = values.astype(cells)
            frame[key] = values
        return pd.DataFrame(frame)

    def ask(self, frame: pd.DataFrame, method: str) -> np.ndarray:
        if not hasattr(self.estimator_, "feature_names_in_"):  # then it was fitted to an array
            frame = frame.to_numpy()
        with joblib.parallel_config(backend="sequential"):  # threads are slower for one row
            return getattr(self.estimator_, method)(frame)

    def fit(self, X, y):
        labels = np.array([self.labels.get(text, text) for text in y.tolist()])
        self.estimator_ = clone(self.estimator).fit(self.make_frame(X), labels)
        self.classes_ = np.array(list(self.labels.values()))
        return self

    def predict(self, X):
        return np.ravel(self.ask(self.make_frame(X), "predict"))

    def predict_proba(self, X):
        theirs = np.ravel(self.estimator_.classes_).tolist()
        places = [theirs.index(label) for label in self.labels.values()]
        return self.ask(self.make_frame(X), "predict_proba")[:, places]


def load_given(path: str) -> BaseEstimator:
    """Return the fitted model in a file of joblib or pickle."""
    try:
        with warnings.catch_warnings(action="error", category=InconsistentVersionWarning):
            model = joblib.load(path)
        getattr(model, "predict_proba" if is_classifier(model) else "predict")
    except Exception as error:  # noqa: BLE001 a pickle may raise anything
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        todo = "save a fitted model here, its own functions imported from a module beside train.py"
        raise Refusal(f"'{path}' can't be served ({why}): {todo}") from None
    return model


def read_given(model, file, how: dict, table: pd.DataFrame, y: pd.Series, card: dict) -> np.ndarray:
    """Do what read_features() does, for the columns that a model takes and in its order. That its
    answers are those straight from pandas.read_csv is checked: else it is another in silence."""
    given = DataFrameEstimator(model, labels={})
    given.estimator_ = model
    try:
        frame = pd.read_csv(file, index_col=False, **how)
        name_of = dict(zip(frame, table))  # pandas has a.1 for a (2)
        target = frame.pop(frame.columns[table.columns.get_loc(card["target"])])[y.index]
        keys = getattr(model, "feature_names_in_", frame.columns)
        frame = frame.loc[y.index, keys].reset_index(drop=True)
        try:
            predicted = given.ask(frame, "predict")
        except Exception:  # noqa: BLE001 a notebook may have parsed the dates
            for key, texts in frame.select_dtypes("str").items():
                layout = find_layout(texts.dropna(), texts.value_counts(), [])
                if layout:
                    days = texts.map(partial(read_date, layout=layout), na_action="ignore")
                    frame[key] = pd.to_datetime(days.astype(float), unit="D")
            predicted = given.ask(frame, "predict")
    except Exception as error:  # noqa: BLE001 an estimator may raise anything
        raise Refusal(f"the model can't answer for this table ({error!r:.300})") from None
    ask = partial(given.ask, method="predict")
    if "classes" in card:
        given.labels = match_labels(model, predicted, target, y, card)
        given.classes_ = np.array(list(given.labels.values()))
        ask = partial(given.ask, method="predict_proba")
    key_of = {name_of[key]: key for key in frame}
    table = table[[*key_of, *table.columns.drop([*key_of])]]
    X = read_features(table, y.index, card, partial(describe_given, ask, frame, key_of))

    card["given"] = given
    given.learn(frame, X, card)
    made = given.make_frame(X)
    same = np.isclose(ask(made), ask(frame), rtol=1e-9, atol=1e-12, equal_nan=True)
    same = same.reshape(len(frame), -1).all(axis=1)
    words = f"same answers as from pandas.read_csv(): {same.sum():,} of {len(same):,} rows"
    print(words)
    if not same.all():
        row, key = (made[~same].astype(str) != frame[~same].astype(str)).stack().idxmax()
        words += f"; not of row {y.index[row] + 1}, where '{key}' is '{made.at[row, key]}'"
        card["notes"].insert(0, f"{words} instead of '{frame.at[row, key]}'")
    return X


def match_labels(model, predicted, target: pd.Series, y: pd.Series, card: dict) -> dict:
    """Return the model's label for each of the card's, which the notebook may have numbered."""
    theirs = np.ravel(getattr(model, "classes_", [])).tolist()
    numbers = pd.factorize(target, sort=True)[0]  # in LabelEncoder's order
    for cells in (target, y, numbers):
        labels = dict(sorted(zip(y, cells.tolist())))
        if set(labels.values()) == set(theirs):
            break
    else:
        raise Refusal(f"the model's labels are {theirs}, those of the table {card['classes']}")
    if cells is numbers:
        often = pd.crosstab(np.ravel(predicted), y.to_numpy()).idxmax(axis=1)
        if set(often) == set(y):  # each number has a text of its own that it stands for most often
            labels = dict(sorted(zip(often, often.index)))
        words = ", ".join(f"{labels[text]} is '{text}'" for text in sorted(labels, key=labels.get))
        card["notes"].append(f"the model's labels are numbers: {words}")
    return labels


def describe_given(ask, frame: pd.DataFrame, key_of: dict, texts: pd.Series, card: dict):
    """Do what describe_column() does, but lose nothing: else the column is a category of texts."""
    if texts.name not in key_of:
        return "the model doesn't take it"
    key, choices = key_of[texts.name], sorted(set(texts) - MISSING)
    found, is_number = describe_column(texts, card), frame[key].dtype.kind in "biuf"
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        if isinstance(found, str) and np.array_equal(ask(frame.drop(columns=key)), ask(frame)):
            del frame[key]
            return "the model answers the same without it"
    if found == "free text" or frame[key].isna().all():
        raise Refusal(f"the model needs column '{texts.name}', which is free text or empty")
    if is_number and all(read_number(text, card["decimal"]) is not None for text in choices):
        return {"type": "number"}
    if not is_number and isinstance(found, dict) and found["type"] == "date":
        return found
    found = {"type": "category", "choices": choices}
    return found if is_number else found | {"open": True}  # the model may refuse what is new


# the models

LARGE_WORK = 50_000  # rows times classes: beyond, one fold is enough, and so many rows to fit to


def build_model(card: dict) -> dict[str, BaseEstimator] | BaseEstimator:
    """Return the estimators to compare by name, the quickest first, or just one: replace it. They
    are fitted to what encode() returns; a classifier needs predict_proba."""
    features, classes = card["features"], len(card.get("classes", ["one"]))
    name, Boosting = "logistic regression", ensemble.HistGradientBoostingClassifier
    linear = linear_model.LogisticRegression(max_iter=max(100, 2000 // classes))
    if card["task"] == "regression":
        name, Boosting = "ridge regression", ensemble.HistGradientBoostingRegressor
        linear = linear_model.RidgeCV(np.logspace(-2, 4, 13))

    # a linear model wants numbers in the range that it learned from, gaps filled, choices one-hot
    inputs = [MinMaxScaler(clip=True), StandardScaler()]
    if any(feature["nullable"] for feature in features):  # else 0.2 ms a call for nothing
        inputs.append(impute.SimpleImputer(strategy="median"))
    inputs = make_pipeline(*inputs)
    gaps = np.flatnonzero(~have_few_gaps(card))
    dates = [place for place, feature in enumerate(features) if feature["type"] == "date"]
    sizes = np.array([len(feature.get("choices", [])) for feature in features])
    one_hot, chosen = OneHotEncoder(handle_unknown="ignore"), np.flatnonzero(sizes)
    if 0 < card["rows"] * sizes.sum() <= 10_000_000:  # more cells would take too much memory
        # that takes 0.1 ms a feature, also for one row; numpy's function does the same
        places = np.concatenate([np.arange(size) for size in sizes])
        one_hot = FunctionTransformer(partial(np.equal, places))
        chosen = np.repeat(np.arange(len(sizes)), sizes)
    if dates or gaps.size or sizes.any():
        inputs = make_column_transformer(
            (inputs, np.flatnonzero(sizes == 0)),
            (impute.MissingIndicator(features="all"), gaps),
            (one_hot, chosen),
            (FunctionTransformer(calendar), dates),
        )

    # boosting takes gaps as they are; the quick one the places of choices as numbers, the slow one
    # as what they are, for 1 to 2 ms a call; each round fits a tree for each class
    rounds = max(10, 2000 // classes)
    quick = {"max_iter": min(75, rounds), "learning_rate": 0.13, "max_leaf_nodes": 15}
    quick = Boosting(random_state=0, early_stopping=False, **quick)
    is_enough = card["rows"] > 20 * classes  # to stop early by a tenth of them, of each class
    slow = {"max_iter": min(400, rounds), "learning_rate": 0.06, "early_stopping": is_enough}
    slow |= {"n_iter_no_change": 20, "categorical_features": np.flatnonzero(sizes > 2)}
    slow = Boosting(random_state=0, **slow)
    if dates:
        added = (FunctionTransformer(calendar), dates)
        columns = make_column_transformer(("passthrough", np.arange(len(features))), added)
        quick, slow = make_pipeline(columns, quick), make_pipeline(columns, slow)
    linear = make_pipeline(inputs, linear)
    return {name: linear, "gradient boosting": quick, "slow gradient boosting": slow}


def have_few_gaps(card: dict) -> np.ndarray:
    """Return for each feature whether too few rows have a gap to learn what it means."""
    few = min(30, 0.05 * card["rows"])
    return np.array([feature["missing"] <= few for feature in card["features"]])


def calendar(days: np.ndarray) -> np.ndarray:
    """Return of dates the place in the year and in the day, also as waves, and a column a weekday."""
    shares = np.hstack([days / 365.2425 % 1, days % 1])
    turns = 2 * np.pi * shares
    weekdays = [(days + 3) // 1 % 7 == number for number in range(7)]
    return np.nan_to_num(np.hstack([shares, np.sin(turns), np.cos(turns), *weekdays]))


# which rows they are fitted to, and which they are tested on

Folds = list[tuple[np.ndarray, np.ndarray]]  # rows to fit to, and rows to test on


def make_folds(X: np.ndarray, y: np.ndarray, groups: pd.Series | None, card: dict) -> Folds:
    """Return pairs of rows to fit to and rows to test on; of a large table one is enough. Rows of a
    group, or equal in all features, stay together."""
    classes = card.get("classes", [])
    folds = later_folds(X, y, card) if groups is None else []
    words = "later rows only"
    if not folds:
        words, Split, together = "shuffled", model_selection.KFold, pd.DataFrame(X)
        if groups is not None:
            words, together = f"by whole groups of '{groups.name}'", groups
        elif classes:
            Split = model_selection.StratifiedKFold
        keys = pd.factorize(pd.util.hash_pandas_object(together, index=False))[0]
        first = np.unique(keys, return_index=True)[1]  # the first row of each
        is_rare = any((y[first] == label).sum() < FOLDS for label in classes)
        if groups is None and (is_rare or len(first) < max(2 * FOLDS, len(y) / 10)):
            keys = first = np.arange(len(y))  # note: of so few combinations, new rows are old ones
        if len(first) == 1:
            raise Refusal(f"'{groups.name}' has one value: --group needs two or more")
        split = Split(min(FOLDS, len(first)), shuffle=True, random_state=0)
        for _, test in split.split(first, y[first]):
            is_test = np.isin(keys, test)
            folds.append((np.flatnonzero(~is_test), np.flatnonzero(is_test)))
    card["measured"] = f"{len(folds)} folds, {words}"
    if len(y) * max(1, len(classes)) > LARGE_WORK:
        fit, test = folds[-1]
        folds = [(np.random.default_rng(0).permutation(fit)[:LARGE_WORK], test)]
        card["measured"] = f"{len(test):,} rows kept out, {words}"
    print(f"\nmeasured on {card['measured']}")
    return folds


def later_folds(X: np.ndarray, y: np.ndarray, card: dict) -> Folds:
    """Return folds by time, where a date, a year and a month in columns of their own, seconds since
    1970, or even steps of a time are in order."""
    features, columns, classes = [*card["features"]], [*X.T], len(card.get("classes", []))
    named = dict(zip([feature["name"].lower() for feature in features], columns))
    if "year" in named and "month" in named:
        features.append({"name": "year and month", "type": "date"})
        columns.append(372 * named["year"] + 31 * named["month"] + named.get("day", 0))
    for feature, column in zip(features, columns):
        steps = np.diff(column)
        steps = steps[steps != 0]
        is_even = TIME.search(feature["name"]) and np.allclose(steps, steps[:1])
        is_epoch = 5e8 < np.nanmin(column) and np.nanmax(column) < 3e9
        if is_in_order(column) and (feature["type"] == "date" or is_even or is_epoch):
            card["notes"].append(f"the rows are in order of time, by '{feature['name']}'")
            order = np.argsort(column, kind="stable")
            early, *_, late = np.array_split(y[order], FOLDS + 1)
            if len(set(early)) < classes or len(set(late)) < min(2, classes):
                card["notes"].append("but not every class has early and late rows: measured on any")
                break
            split = model_selection.TimeSeriesSplit(FOLDS).split(X)
            return [(order[fit], order[test]) for fit, test in split]
    return []


# how good they are


def show(value: float) -> str:
    """Return a number as people read it: 69,780 or 0.4217."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def find_models(X: np.ndarray, y: np.ndarray, folds: Folds, card: dict) -> dict[str, BaseEstimator]:
    """Return the given model, or those of build_model(), by name; refuse what can't be saved."""
    given = card.pop("given", None)
    if given is not None:
        words = "models like the one that is served"
        fit, _ = folds[0]
        try:
            if FrozenEstimator in map(type, given.get_params().values()):
                raise TypeError("a part of it is frozen")
            clone(given).fit(X[fit], y[fit])
        except Exception as error:  # noqa: BLE001 an estimator may raise anything
            given.estimator = FrozenEstimator(given.estimator_)
            words = "the very model that is served, which may have seen these rows"
            card["notes"].insert(0, f"the scores are of {words} ({error!r:.300})")
        card["measured"] += f", {words}"
        steps = getattr(given.estimator_, "steps", [("", given.estimator_)])
        return {type(steps[-1][1]).__name__: given}
    models = build_model(card)
    if not isinstance(models, dict):
        models = {type(models).__name__: models}
    for model in models.values():
        if isinstance(model, DataFrameEstimator):
            frame = {}
            for feature, values in zip(card["features"], X.T):
                frame[feature["name"]] = [decode(feature, value) for value in values]
            model.learn(pd.DataFrame(frame), X, card)
            model.labels = dict(zip(card.get("classes", []), card.get("classes", [])))
    try:
        pickle.dumps(models)
    except Exception as error:  # noqa: BLE001 an estimator may raise anything
        todo = "write a model's functions into a module beside train.py, and import them"
        raise Refusal(f"the models can't be saved ({error!r:.300}): {todo}") from None
    return models


def compare(models: dict, X: np.ndarray, y: np.ndarray, folds: Folds, card: dict) -> tuple:
    """Return the best model, or the dummy if none is better; clones of it, each fitted to a fold;
    and their answers for the rows that they have not seen. Scores come on the card."""
    dummy = DummyClassifier() if "classes" in card else DummyRegressor()
    truth, best, least = np.concatenate([y[test] for _, test in folds]), (), np.inf
    for name, model in {"dummy": dummy, **models}.items():
        print(f"  {name:23}", end="", flush=True)
        started, clones, answers = time.perf_counter(), [], []
        try:
            for fit, test in folds:
                rows = X[fit]
                rows[:, np.isnan(rows).all(axis=0)] = 0.0  # boosting takes no column of NaN alone
                clones.append(clone(model).fit(rows, y[fit]))
                answers.append(ask(clones[-1], X[test], card))
            answers = np.concatenate(answers)
            scores, losses = score(truth, answers, card), losses_of(truth, answers, card)
        except (ValueError, AttributeError, TypeError) as error:  # such as no predict_proba
            print(f"can't be fitted: {error}")
            continue
        text = "   ".join(f"{key.replace('_', ' ')} {show(value)}" for key, value in scores.items())
        print(f"{text}   ({time.perf_counter() - started:.1f} s)", flush=True)
        if name == "dummy":
            card["baseline"] = scores
        elif len(models) > 1:
            # a later model, which is slower, has to be better by more than luck
            gains = least - losses
            luck = 1.5 * gains.std() / math.sqrt(len(gains))  # standard errors
            if gains.mean() <= (0 if best[0] is dummy else luck):
                continue
        best, least = (model, clones, answers), losses
        card |= {"estimator": name, "metrics": scores}
    if best[0] is dummy and len(models) == 1:
        raise Refusal("the model can't be fitted: the line above says why")
    return best


def ask(model: BaseEstimator, X: np.ndarray, card: dict) -> np.ndarray:
    """Return predictions, or the probabilities of the card's classes."""
    if "classes" not in card:
        return np.asarray(model.predict(X), float).ravel()  # some have a column
    answers = np.asarray(model.predict_proba(X), float)
    if answers.shape[1] < len(card["classes"]):  # in none of the rows that it has seen
        seen, answers = answers, np.zeros((len(X), len(card["classes"])))
        answers[:, np.searchsorted(card["classes"], model.classes_)] = seen
    return answers / answers.sum(axis=1, keepdims=True)  # of float32 it may be a little off


def losses_of(y: np.ndarray, answers: np.ndarray, card: dict) -> np.ndarray:
    """Return each row's squared error, or minus the logarithm of its label's probability."""
    if "classes" not in card:
        return (y - answers) ** 2
    own = answers[np.arange(len(y)), np.searchsorted(card["classes"], y)]
    return -np.log(own.clip(1e-15))


def score(y: np.ndarray, answers: np.ndarray, card: dict) -> dict[str, float]:
    """Return scores by scikit-learn's names, first the loss, in which the models compete."""
    if "classes" not in card:
        scores = {"root_mean_squared_error": metrics.root_mean_squared_error(y, answers)}
        scores["mean_absolute_error"] = metrics.mean_absolute_error(y, answers)
        scores["r2"] = metrics.r2_score(y, answers)
        return scores
    scores = {"log_loss": metrics.log_loss(y, answers, labels=card["classes"])}
    labels = np.array(card["classes"])[answers.argmax(axis=1)]
    scores["accuracy"] = metrics.accuracy_score(y, labels)
    scores["balanced_accuracy"] = metrics.balanced_accuracy_score(y, labels)
    if len(card["classes"]) == 2 == len(set(y)):
        scores["roc_auc"] = metrics.roc_auc_score(y, answers[:, 1])
    return scores


def measure_importance(clones: list, X: np.ndarray, y: np.ndarray, folds: Folds, card: dict):
    """Return how much shuffling each feature worsens the loss on unseen rows, largest first."""

    def loss(model: BaseEstimator, X: np.ndarray, y: np.ndarray) -> float:
        mean = losses_of(y, ask(model, X, card), card).mean()
        return -mean if "classes" in card else -math.sqrt(mean)

    options = {"scoring": loss, "n_repeats": FOLDS // len(folds), "random_state": 0}
    costs = pd.Series(0.0, [feature["name"] for feature in card["features"]])
    for model, (_, test) in zip(clones, folds):
        rows = np.random.default_rng(0).permutation(test)[:500]  # enough to rank the features
        found = inspection.permutation_importance(model, X[rows], y[rows], **options)
        costs += found.importances_mean / len(folds)
    return costs.sort_values(ascending=False, kind="stable").to_dict()


# how sure an answer is, from answers for rows that the models had not seen

COVERAGE = 0.9  # the share of truths that intervals and sets of likely labels hold


def measure_uncertainty(answers: np.ndarray, truth: np.ndarray, y: np.ndarray, card: dict) -> dict:
    """Return the error that COVERAGE of the rows of each class, or band of the prediction, stay
    within (Mondrian: Angelopoulos and Bates, "A Gentle Introduction to Conformal Prediction", 2021).
    No exact guarantee: the models are like the one that is served, but fitted to fewer rows."""
    if "classes" in card:
        groups, group = len(card["classes"]), np.searchsorted(card["classes"], truth)
        errors, most = 1 - answers[np.arange(len(truth)), group], 1.0
    else:
        bands = max(1, min(5, len(truth) // 50))  # each with errors of its own
        edges = np.unique(np.quantile(answers, np.linspace(0, 1, bands + 1)[1:-1]))
        group, errors = np.searchsorted(edges, answers, side="right"), np.abs(truth - answers)
        groups, most = len(edges) + 1, errors.max()
    widths = np.zeros(groups)
    for place in range(groups):
        own = np.sort([*errors[group == place], most])  # where the rows are too few, it is the most
        widths[place] = own[math.ceil(len(own) * COVERAGE) - 1]
    if "classes" in card:  # a label is likely from this probability on
        return {"coverage": COVERAGE, "thresholds": (1 - widths).tolist()}
    ends = {"minimum": float(y.min()), "maximum": float(y.max())}  # an interval keeps their sign
    return {"coverage": COVERAGE, "edges": edges.tolist(), "widths": widths.tolist(), **ends}


def measure_cutoffs(answers: np.ndarray, truth: np.ndarray, card: dict) -> dict:
    """Return the rarer of two labels, and what taking it from a probability on would give."""
    label = min(card["classes"], key=truth.tolist().count)
    is_label, rows = truth == label, []
    for cutoff in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        taken = answers[:, card["classes"].index(label)] >= cutoff
        precision = float(is_label[taken].mean()) if taken.any() else None
        rows.append([cutoff, precision, float(taken[is_label].mean())])
    return {"label": label, "rows": rows}


# what is told, and what is saved


def note_results(answers: np.ndarray, truth: np.ndarray, card: dict) -> None:
    """Note what is too good to be true, or no good."""
    loss, notes = next(iter(card["metrics"])), card["notes"]
    left = card["metrics"][loss] / (card["baseline"][loss] or 1.0)
    names, gains = zip(*card["importance"].items())
    if left > 0.99:
        word = "worse" if left > 1 else "hardly better"
        word = "no better" if card["estimator"] == "dummy" else word
        notes.insert(0, f"{word} than the dummy, which ignores all columns")
    elif left < 0.5 and len(gains) > 1 and gains[0] > 0.9 * np.maximum(gains, 0).sum():
        words = f"is it known before '{card['target']}' is? --drop leaves a column out"
        notes.append(f"'{names[0]}' tells almost all of it: {words}")
    losses = losses_of(truth, answers, card)
    worst = losses.argmax()
    if "classes" not in card and losses[worst] > 0.5 * losses.sum():  # a total, perhaps
        words = f"{show(truth[worst])} where about {show(answers[worst])} was expected"
        notes.append(f"one row alone, {words}, makes over half of all error: is it right?")


def say_before(before: dict, y: np.ndarray, card: dict) -> None:
    """Print what the model of before was, and how good it is on the rows of now."""
    old, loss = before["card"], next(iter(card["metrics"]))
    if old["target"] != card["target"] or loss not in old["metrics"]:
        print(f"it replaces a model of something else: '{old['title']}'")
        return
    then, now = show(old["metrics"][loss]), show(card["metrics"][loss])
    print(f"before: {old['estimator']}, of {old['rows']:,} rows, {old['trained']}")
    print(f"  {loss.replace('_', ' ')} {then}; now {now}")
    with suppress(Exception):  # it may take no gap, where now there are some
        if old.get("classes") == card.get("classes"):
            found = score(y, ask(before["model"], before["X"], card), card)[loss]
            print(f"  {show(found)} on these rows, of which it may know some")
    names, olds = ({feature["name"] for feature in each["features"]} for each in (card, old))
    for word, changed in (("new", names - olds), ("gone", olds - names)):
        if changed:
            print(f"  {word}: {', '.join(sorted(changed))}")


def pick_examples(answers: np.ndarray, X: np.ndarray, y: np.ndarray, card: dict) -> list[dict]:
    """Return up to five real rows as JSON has them: of those that are answered well, the nearest to
    the middle of their class, the largest class first; or of low to high, the middle first."""
    losses = losses_of(y, answers, card)
    parts = np.array_split(y.argsort(kind="stable"), 5)
    parts.insert(0, parts.pop(2))
    if "classes" in card:
        parts = [np.flatnonzero(y == label) for label in pd.Series(y).value_counts().index[:5]]
    is_choice = ["minimum" not in feature for feature in card["features"]]
    spread, examples = pd.DataFrame(X).std(), []
    for part in parts:
        table = pd.DataFrame(X[part], part)
        middle = table.median()
        middle[is_choice] = table.mode().reindex([0]).loc[0][is_choice]
        far = ((table - middle).abs() / spread).clip(upper=2).fillna(2).sum(axis=1)
        row = far[losses[part] <= np.median(losses[part])].idxmin()
        values = {f["name"]: decode(f, value) for f, value in zip(card["features"], X[row])}
        examples.append({"features": values, "target": y[row].item()})
    return examples


def save(model: BaseEstimator, X: np.ndarray, card: dict) -> str:
    """Write model.joblib under another name, then rename it; return the file's SHA-256."""
    by_probability, random = True, np.random.default_rng(0)
    if "classes" in card:  # also of rows as the table might have them
        rows = np.vstack([X[:LARGE_WORK], random.permuted(X, axis=0)[:LARGE_WORK]])
        likely = model.classes_[model.predict_proba(rows).argmax(axis=1)]
        by_probability = bool((np.ravel(model.predict(rows)) == likely).all())
    low, high = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
    for place, feature in enumerate(card["features"]):
        if "minimum" not in feature:  # another text of an open category is as good as unseen
            last = len(feature["choices"]) - 1 if "open" in feature else np.inf
            low[place], high[place] = 0, last
    artifact = {
        "model": model,
        "card": card,
        "background": random.permutation(X)[:100],  # to explain an answer by
        "by_probability": by_probability,  # the predicted label is always the most probable one
        "low": low,
        "high": high,
        "rarely_missing": have_few_gaps(card),  # there a gap is as good as unseen
    }
    new = MODEL_PATH.with_name(f".{MODEL_PATH.name}.{os.getpid()}")
    try:
        joblib.dump(artifact, new, compress=3)
        new.replace(MODEL_PATH)
    except OSError as error:
        words = f"'{MODEL_PATH}' can't be written ({error.strerror}): set MODEL_PATH"
        raise Refusal(words) from None
    finally:
        new.unlink(missing_ok=True)
    return hashlib.sha256(MODEL_PATH.read_bytes()).hexdigest()


def run() -> None:
    """Do it all, or say in one line why not, with exit code 2."""
    try:
        main()
    except (Refusal, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # what a log in cp1252 can't hold
    import train  # again, by the name by which the API will find a fork's own classes

    train.run()

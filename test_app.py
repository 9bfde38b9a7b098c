"""Test train.py, main_api.py, main_ui.py and start.sh with real parts: uvicorn, urllib, AppTest.

    python -m pytest -q        # under a minute; rows come from the cards, so any model will do

Values are worked out by hand, or by scikit-learn called directly. Two tests need more, and are
skipped without it: one a browser (Playwright and Debian's Chromium), one the command schemathesis.
"""

import csv
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

os.environ["OMP_NUM_THREADS"] = "1"  # before scikit-learn is imported, as in train.py

import joblib
import numpy as np
import pytest
import uvicorn
from sklearn import metrics
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.dummy import DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import train

HERE = Path(__file__).parent
MODEL = Path(os.environ.get("MODEL_PATH", HERE / "model.joblib")).resolve()
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ENV = os.environ | {"PATH": PATH, "PYTHONPATH": str(HERE)}
PORTS = itertools.count(20_000 + os.getpid() % 10_000)
OPEN = build_opener(ProxyHandler({})).open  # whatever http_proxy says


class Given(RegressorMixin, BaseEstimator):
    """Answers with its first feature, so that what is measured can be worked out by hand; it raises
    at 666, and above 1000 it takes as many seconds as are beyond."""

    def fit(self, X, y):
        return self

    def predict(self, X):
        if 666 in X[:, 0]:
            raise ValueError("unlucky")
        time.sleep(max(X[:, 0].max() - 1000, 0))
        return X[:, 0].copy()


class GivenLabels(ClassifierMixin, BaseEstimator):
    """The same: its first feature is the probability of the second label."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return np.stack([1 - X[:, 0], X[:, 0]], axis=1)

    def predict(self, X):
        return self.classes_[(X[:, 0] > 0.5).astype(int)]


class Watched(DummyRegressor):
    """Remembers what it was fitted to, and holds each question against it."""

    is_fair = staticmethod(lambda fitted, asked: True)

    def fit(self, X, y):
        self.X_, self.y_ = X, y
        return super().fit(X, y)

    def predict(self, X):
        assert self.is_fair(self.X_, X)
        return super().predict(X)


def quick(task, features):
    """Stand in for build_model(), whose three candidates take a second."""
    linear = LinearRegression() if task == "regression" else LogisticRegression()
    return make_pipeline(SimpleImputer(), StandardScaler(), linear)


def csv_of(header, *columns):
    return "\n".join([header, *(",".join(map(str, row)) for row in zip(*columns))])


def fit(folder, table, *options, build=quick):
    """Train on a table as `python train.py` does; return what it saved and what it printed."""
    path = folder / "model.joblib"
    if table is not None:
        (folder / "table.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["train.py", str(folder / "table.csv"), *options])
        patch.setattr(train, "MODEL_PATH", path)
        patch.setattr(train, "build_model", build)
        train.main()
    return SimpleNamespace(**joblib.load(path), printed=printed.getvalue(), path=path)


def mixed() -> bytes:
    """Return a table with all that tables have: gaps, an identifier, dates, awkward names, a
    decimal comma, a label too rare to learn, a cell that can't be read."""
    rng = np.random.default_rng(0)
    lines = ['id;class;_x;"say ""hi""";;a;a;model_config;Größe;back\\slash;prediction;x;kind;price']
    for i in range(200):
        x, size, colour = rng.normal(), rng.uniform(1000, 9000), rng.choice(["rot", "grün", "None"])
        kind = "A" if x > 0.5 else "B" if colour == "rot" else "c d"
        day = date(2023, 12, 1) + timedelta(int(rng.integers(90)))
        cells = [i + 1, f"{x:.3f}".replace(".", ","), rng.integers(9), colour if i % 7 else "?"]
        cells += [f"{size:,.2f} €".translate({44: ".", 46: ","}), i % 3, "yes" if x > 0 else "no"]
        cells += [rng.choice(["true", "FALSE"]), i % 11 if i % 5 else ""]
        cells += ["much" if i == 8 else f"{rng.normal():.2f}".replace(".", ","), rng.integers(6)]
        cells += [f"{day:%d.%m.%Y}", {0: "", 1: "rare"}.get(i % 100, kind)]
        cells += [f"{size / 100 + 5 * x + day.weekday():.1f}".replace(".", ",")]
        lines.append(";".join(map(str, cells)))
    return "\r\n".join(lines).encode("utf-8-sig")


@pytest.fixture(autouse=True, scope="session")
def interrupts():
    """Ctrl-C and `kill` end the tests as they end, with all that they started; start.sh could not
    trap Ctrl-C if it were ignored here, as under nohup."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler)


@pytest.fixture(autouse=True)
def tracebacks(caplog):
    """Nothing that a test asks of the API leaves a traceback in its log."""
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The models of most tests: the one that is here, and some trained on made-up tables."""
    folders, x = map(tmp_path_factory.mktemp, itertools.repeat("model")), np.arange(-40, 0) / 2
    return {
        "here": SimpleNamespace(path=MODEL, **joblib.load(MODEL)),
        "kind": fit(next(folders), mixed(), "--target", "kind", build=train.build_model),
        "price": fit(next(folders), mixed(), build=train.build_model),
        "given": fit(next(folders), csv_of("x,y", x, x), build=lambda *_: Given()),
    }


# train.py


@pytest.mark.parametrize(
    ("text", "point", "comma"),
    [
        ("-5", -5, -5), ("1e3", 1000, 1000), ("12 %", 12, 12), ("1 234", 1234, 1234),
        ("0.125", 0.125, None), ("0,125", None, 0.125), ("22.152", 22.152, 22152),
        ("1,234.50 €", 1234.5, None), ("1.234,5", None, 1234.5), ("12'345.6", 12345.6, None),
        ("-$1,234,567", -1234567, None), (".5", 0.5, None), ("12,34", None, 12.34),
        ("1e30", 1e30, 1e30), ("-1e-3", -0.001, -0.001),
        ("1\u00a0234,5", None, 1234.5), ("1\u202f234.5", 1234.5, None), ("\u22125", -5, -5), ("--5", None, None),
        *((text, None, None) for text in ("007", "1e31", "1e400", "1,2,3", "12a", "٣", "nan", "€")),
    ],
)  # fmt: skip
def test_read_number(text, point, comma):
    """A number as people write it, by the decimal mark; 007 is a code."""
    assert (train.read_number(text, "."), train.read_number(text, ",")) == (point, comma)


def test_dates(tmp_path):
    """Dates in any usual format become days since 1970-01-01, in UTC where the text says so."""
    dates = [date(2023, 12, 31) + timedelta(5 * i) for i in range(30)]
    layouts = "%d.%m.%Y", "%m/%d/%Y", "%Y%m%d", "%d.%m.%Y 18:00", "%d-%b-%y", "%b %d %Y"
    columns = [[f"{day:{layout}}" for day in dates] for layout in layouts]
    columns[4] = [text.lstrip("0") for text in columns[4]]  # 5-Jan-24
    clocks = itertools.cycle(["T23:00+01:00", "T00:00+02:00"])  # 22:00 in UTC, or of the day before
    columns += [[f"{day}{clock}" for day, clock in zip(dates, clocks)]]
    few = [date(2024, i * 5 % 12 + 1, 25 if i > 27 else i % 12 + 1) for i in range(30)]
    columns += [[f"{day:%d/%m/%Y}" for day in few], np.arange(30) % 7]  # two tell day from month
    saved = fit(tmp_path, csv_of("a,b,c,d,e,f,g,h,y", *columns), "--task", "regression")
    table = {name: list(map(str, cells)) for name, cells in zip("abcdefgh", columns)}
    X, problems = train.encode(table, saved.card)
    days = 19722 + 5 * np.arange(30)  # 54 years with 13 leap days, less one day
    assert X[:, 7].tolist() == [(day - date(1970, 1, 1)).days for day in few]
    for column, shift in zip(X.T, [0, 0, 0, 0.75, 0, 0, 22 / 24 - np.arange(30) % 2]):
        assert column == pytest.approx(days + shift)
    assert (problems, saved.card["features"][0]["minimum"]) == ([], "2023-12-31")
    assert saved.card["features"][3]["maximum"] == "2024-05-24T18:00:00"


@pytest.mark.parametrize(
    ("cells", "options", "decimal", "note"),
    [
        (["0.5", "1.234"], [], ".", None),
        (["1,5", "1.234"], [], ",", None),
        (["1.234", "1.235"], [], ".", r"'1\.23(.)' is read as 1\.23\1; --decimal , makes it 123\1"),
        (["1.234", "1.235"], ["--decimal", ","], ",", None),
        (["0.5", "1,5"], [], None, "'0.5' and '1,5' differ in the decimal mark: say --decimal"),
        (["0.5", "1,5"], ["--decimal", ","], ",", None),
    ],
)  # fmt: skip
def test_decimal(cells, options, decimal, note, tmp_path, capsys):
    """The decimal mark is told from the cells, noted where unclear, refused where torn."""
    table = "x;y\n" + "".join(f"{cell};{i % 2}\n" for i in range(10) for cell in cells)
    if decimal is None:
        with pytest.raises(SystemExit):
            fit(tmp_path, table)
        assert note in capsys.readouterr().err
        return
    card = fit(tmp_path, table, *options).card
    notes = [text for text in card["notes"] if "decimal" in text]
    assert (card["decimal"], len(notes)) == (decimal, 1 if note else 0)
    assert all(re.fullmatch(note, text) for text in notes)
    number = card | {"features": [{"name": "x", "type": "number"}]}
    assert train.encode({"x": ["1.234"]}, number)[0] == (1.234 if decimal == "." else 1234)


@pytest.mark.parametrize(
    ("content", "names", "rows"),
    [
        ("a\tb\n1\tü\n".encode("utf-16"), ["a", "b"], [["1", "ü"]]),
        ("a;Größe €\n1;–\n".encode("cp1252"), ["a", "Größe €"], [["1", "–"]]),
        ("a|b\n1|2".encode("utf-8-sig"), ["a", "b"], [["1", "2"]]),
        (b'"a\nb",c\r\n\r\n1,"x, y"\r\n', ["a\nb", "c"], [["1", "x, y"]]),
        (b"a;b\n1,5;2,5\n1,25;3\n", ["a", "b"], [["1,5", "2,5"], ["1,25", "3"]]),
        ("a,b\n1\u20282,3\x85\n".encode(), ["a", "b"], [["1\u20282", "3\x85"]]),
        (b"a,a,,a\n1,2,3,4\n", ["a", "a (2)", "column 3", "a (3)"], [["1", "2", "3", "4"]]),
        (b"a,b,c\n1\n1,2,3,4\n", ["a", "b", "c"], [["1", "", ""], ["1", "2", "3", "4"]]),
        (b"a,b\n" + b'1,"see;"""\n' * 20_000, ["a", "b"], [["1", 'see;"']] * 20_000),
        (b"", "is empty", None),
        (b"\x89PNG\r\n\x00\x00", "not a text file", None),
        (b'a,b\n"1,2\n3,4\n', "a quote near its end is never closed", None),
        (b'a,b\n1,"2\n3,4\n5,6', "a quote near its end is never closed", None),
        (b'a,b\n1,"2\n3"\n', ["a", "b"], [["1", "2\n3"]]),
        (b"a,b\n" + b"1" * 2_000_000, "a row has over 1,000,000 characters", None),
        (b"," * 1_000_000, "a row has over 1,000,000 characters", None),
        (b"," * 5_000, "more than 2,000 columns", None),
    ],
)  # fmt: skip
def test_read_table(content, names, rows):
    """What is no table is refused at once, without much memory: the API reads files of strangers."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        found, _, cells = train.read_table(content)
        assert (found, list(cells)) == (names, rows)
    except ValueError as error:
        assert rows is None, error
        assert names in str(error)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert time.monotonic() - started < 3


def test_train_mixed_table(trained):
    """Each column is kept as it is named, or left out with a reason; so are rows and cells."""
    card, printed = trained["kind"].card, trained["kind"].printed
    features = {f["name"]: f for f in card["features"]}
    assert list(features) == [
        "class", "_x", 'say "hi"', "column 5", "a", "a (2)", "model_config", "Größe", "back\\slash",
        "prediction", "x", "price",
    ]  # fmt: skip
    assert "".join(f["type"][0] for f in features.values()) == "nncnncbnnndn"
    assert [n for n, f in features.items() if f["nullable"]] == ['say "hi"', "Größe", "back\\slash"]
    assert features['say "hi"']["choices"] == ["None", "grün", "rot"]
    sizes = features["column 5"]
    assert 1000 <= sizes["minimum"] < 1500 < sizes["default"] < 8500 < sizes["maximum"] < 9000
    assert [features[name]["integer"] for name in ("_x", "Größe", "class")] == [True, True, False]
    assert "2023-12-01" <= features["x"]["minimum"] < features["x"]["default"] < "2024-02-28"
    assert (card["decimal"], card["classes"], card["rows"]) == (",", ["A", "B", "c d"], 196)
    few = "'kind' is a label of fewer than 5 rows: 'rare' in row 2, 'rare' in row 102"
    assert card["dropped"][:2] == [
        {"rows": 2, "reason": "'kind' is empty or NA"},
        {"rows": 2, "reason": few},
    ]
    identifier = {"column": "id", "reason": "an identifier, by its name"}
    much = {"column": "back\\slash", "cells": 1, "reason": "row 9 is 'much', no number"}
    assert trained["price"].card["dropped"] == [identifier, much]
    assert much in card["dropped"]  # by its row in the table, also where rows before it are out
    sha256 = hashlib.sha256(trained["kind"].path.read_bytes()).hexdigest()
    for words in (
        "196 rows, 14 columns; classification",
        few,
        "19 % gaps",
        "much",
        "dummy",
        sha256,
    ):
        assert words in printed
    assert re.search(r"\n  back.slash +number .* 1 % gaps\n", printed)
    for each in (card, trained["price"].card):
        loss = next(iter(each["metrics"]))
        assert list(each["metrics"]) == list(each["baseline"])
        assert each["metrics"][loss] < 0.5 * each["baseline"][loss]


@pytest.mark.parametrize("name", ["kind", "price"])
def test_train_keeps_a_fit_to_all_rows(name, trained, tmp_path):
    """The model sees what encode() makes of the table, and the one that is saved sees all rows."""
    names, _, rows = train.read_table(mixed())
    table = dict(zip(names, zip(*rows)))
    known = [name == "price" or label not in ("", "rare") for label in table["kind"]]
    X, y = train.encode(table, trained[name].card)[0][known], np.array(table[name])[known]
    if name == "price":
        y = np.char.replace(y, ",", ".").astype(float)
        watched = fit(tmp_path, mixed(), build=lambda *_: Watched()).model
        np.testing.assert_array_equal(watched.X_, X)
        np.testing.assert_array_equal(watched.y_, y)
    kept, again = trained[name].model, clone(trained[name].model).fit(X, y)
    np.testing.assert_array_equal(kept.predict(X), again.predict(X))
    if name == "kind":
        np.testing.assert_array_equal(kept.predict_proba(X), again.predict_proba(X))
    background = trained[name].background
    assert background.shape == (100, X.shape[1])
    assert set(map(bytes, background)) <= set(map(bytes, X))


def test_train_keeps_the_lower_loss(tmp_path):
    """Of y = 1, -1, 1, ... a constant c is off by the root of 1 + c²; what is within 1 % of an
    earlier candidate is not worth a change."""
    table = csv_of("x,y", np.arange(40) / 4, [1, -1] * 20)
    for offs, kept in (([0.2, 0], "b"), ([0, 0.2], "a"), ([0.1, 0], "a"), ([0.4, 0.2, 0.3], "b")):
        models = [DummyRegressor(strategy="constant", constant=c) for c in offs]
        candidates = dict(zip("abc", models))
        saved = fit(tmp_path, table, "--task", "regression", build=lambda *_, c=candidates: c)
        off = candidates[kept].constant
        assert (saved.card["estimator"], saved.model.constant) == (kept, off)
        loss = math.hypot(1, off)
        assert saved.card["metrics"]["root_mean_squared_error"] == pytest.approx(loss)
        assert f"root mean squared error {loss:.4g}" in saved.printed


def test_train_candidates(tmp_path):
    """Ridge regression knows days of the week and codes; boosting is kept where it is better."""
    days, code = [date(2024, 1, 1) + timedelta(i * 3) for i in range(150)], np.arange(150) ** 2 % 5
    y = [[0, 5, 1, 7, 2, 9, 3][day.weekday()] + 4 * (c == 1) for day, c in zip(days, code)]
    table = csv_of("day,code,y", days, code, y)
    card = fit(tmp_path, table, "--task", "regression", build=train.build_model).card
    assert (card["estimator"], card["metrics"]["r2"] > 0.95) == ("ridge regression", True)
    a, b = np.random.default_rng(0).normal(size=(2, 300))
    table = csv_of("a,b,y", a, b, np.where(a * b > 0, "same", "other"))
    saved = fit(tmp_path, table, build=train.build_model)
    assert "gradient boosting" in saved.card["estimator"]
    assert "logistic regression" in saved.printed
    assert saved.card["metrics"]["accuracy"] > 0.9


def test_train_importance(tmp_path):
    """Shuffling a feature of y = 3a - 2b adds an error of the root of 2, times 3 or 2."""
    a, b, c = np.random.default_rng(0).normal(size=(3, 2000))
    saved = fit(tmp_path, csv_of("b,c,a,y", b, c, a, 3 * a - 2 * b))
    expected = {"a": 3 * math.sqrt(2), "b": 2 * math.sqrt(2), "c": 0}
    assert saved.card["importance"] == pytest.approx(expected, rel=0.1, abs=0.01)
    assert list(saved.card["importance"]) == ["a", "b", "c"]
    assert "what matters most: a, b, c" in saved.printed


def test_train_measures_classes(tmp_path):
    """The scores are scikit-learn's own; a label is likely from where nine of ten of it begin, of
    19 rows the 18th: the smallest share of 19 + 1 that is 0.9."""
    k = np.arange(1, 20)
    p, y = np.concatenate([k * 0.02, 1 - k * 0.03]), np.repeat(["no", "yes"], 19)
    card = fit(tmp_path, csv_of("x,y", p, y), build=lambda *_: GivenLabels()).card
    labels = np.where(p > 0.5, "yes", "no")
    assert card["metrics"] == pytest.approx({
        "log_loss": metrics.log_loss(y, np.stack([1 - p, p], axis=1)),
        "accuracy": metrics.accuracy_score(y, labels),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, labels),
        "roc_auc": metrics.roc_auc_score(y == "yes", p),
    })  # fmt: skip
    assert card["uncertainty"] == {"coverage": 0.9, "thresholds": pytest.approx([0.64, 0.46])}
    assert card["estimator"] == "GivenLabels"
    assert card["examples"][0] == {"features": {"x": 0.02}, "target": "no"}
    assert card["examples"][1]["target"] == "yes"


DAYS = [date(2024, 1, 1) + timedelta(i) for i in range(60)]


@pytest.mark.parametrize(
    ("name", "x", "measured", "asked", "note"),
    [
        ("x", DAYS, "5 folds, later rows only", 50, "the rows are in order of time, by 'x'"),
        ("x", DAYS[::-1], "5 folds, later rows only", 50, "the rows are in order of time, by 'x'"),
        ("x", np.arange(60) // 2 * 1.5, "5 folds, shuffled", 60, "30 rows with the features of another"),
        ("x", np.arange(60_000) * 1.5, "12,000 rows kept out, shuffled", 12_000, ""),
        ("time", np.arange(60_000) / 7, "10,000 rows kept out, later rows only", 10_000, "of time"),
    ],
)  # fmt: skip
def test_train_measures_on_unseen_rows(name, x, measured, asked, note, tmp_path, monkeypatch):
    """Rows in order of time are asked about when they are later than all that was learned, equal
    rows stay in one fold, and a large table is measured once, on rows kept out."""
    parts = []

    def is_fair(seen, rows):
        is_later = seen.max() < rows.min() or "later" not in measured
        parts.append(rows[:, 0])
        return is_later and not set(seen[:, 0]) & set(rows[:, 0])

    monkeypatch.setattr(Watched, "is_fair", staticmethod(is_fair))
    table = csv_of(f"{name},y", x, np.arange(len(x)) * 7 % 13)
    saved = fit(tmp_path, table, build=lambda *_: Watched())
    assert (saved.card["measured"], len(saved.model.X_)) == (measured, len(x))
    assert note in " ".join(saved.card["notes"])
    rows = np.concatenate(parts[: 5 if "folds" in measured else 1])
    assert len(rows) == asked
    assert rows.max() == saved.model.X_.max() or asked == 12_000


@pytest.mark.parametrize(
    ("header", "make", "note"),
    [
        ("a,b,y", lambda a, b, noise: (a, b, a + b + noise), None),
        ("a,b,y", lambda a, b, noise: (a, b, a + noise / 9), "'a' tells almost all of it: is it known before 'y' is?"),
        ("a,b,y", lambda a, b, noise: (a, b, 3 * a + 2 * b), "almost nothing is left to guess, by 'a' and 'b': is it"),
        ("a,b,y", lambda a, b, noise: (a, b, noise), "hardly better than the dummy"),
        ("1.5,b,2", lambda a, b, noise: (a, b, a + b + noise), "the header looks like data (1.5, 2): is it missing?"),
        ("a,b,y", lambda a, b, noise: ([f"{i % 9 + 1}/{i % 8 + 1}/2024" for i in range(100)], b, b + noise),
         "is read as a date by %m/%d/%Y, not %d/%m/%Y"),
    ],
)  # fmt: skip
def test_train_notes(header, make, note, tmp_path):
    """What a careful reader should know is noted and printed, and nothing where there is nothing."""
    a, b, noise = np.random.default_rng(5).normal(size=(3, 100))
    saved = fit(tmp_path, csv_of(header, *make(a, b, noise)))
    assert [note in text for text in saved.card["notes"]] == ([True] if note else [])
    assert (f"note: {''.join(saved.card['notes'])}" in saved.printed) == bool(note)


def test_train_leaves_out(tmp_path):
    """Columns that no model can use, each with its reason; codes stay as they are written."""
    n, words = range(60), ["one", "two", "three", "four", "five", "six"]
    columns = {
        "number": ([i + 1 for i in n], "an identifier: whole numbers, all different"),
        "user_id": ([i // 2 * 7 for i in n], "an identifier, by its name"),
        "name": ([f"Anna {i}" for i in n], "an identifier: every text is different"),
        "story": ([" ".join(words[i % 2 :]) + str(i // 2) for i in n], "free text"),
        "same": (["x" for _ in n], "always 'x'"),
        "gaps": (["NA" for _ in n], "empty"),
        "many": ([f"w{i * 2 // 3}" for i in n], "39 different texts in 59 cells are too many"),
        "zip": ([f"00{i % 7}" for i in n], ""),
        "some": (["x" if i % 2 else "" for i in n], ""),
        "y": ([i * 0.3 if i < 59 else "sold" for i in n], ""),
    }
    card = fit(tmp_path, csv_of(",".join(columns), *(cells for cells, _ in columns.values()))).card
    reasons = {entry.get("column"): entry["reason"] for entry in card["dropped"]}
    for name, (_, reason) in columns.items():
        assert reasons.get(name, "").startswith(reason), name
        assert (name in reasons) == bool(reason)
    assert (reasons[None], card["rows"]) == ("'y' is no number: 'sold' in row 60", 59)
    assert [f["name"] for f in card["features"]] == ["zip", "some"]
    assert card["features"][0]["choices"][0] == "000"


def test_train_wine(tmp_path, monkeypatch):
    """Without a table it is scikit-learn's wine data, with the names of the original."""
    monkeypatch.setattr(train, "MODEL_PATH", tmp_path / "model.joblib")
    monkeypatch.setattr(train, "build_model", quick)
    monkeypatch.setattr(sys, "argv", ["train.py", "--title", "Which?"])
    train.main()
    card = joblib.load(tmp_path / "model.joblib")["card"]
    assert (card["title"], card["target"], card["rows"]) == ("Which?", "wine", 178)
    assert (len(card["features"]), card["features"][0]["name"]) == (13, "alcohol")
    assert (card["classes"], card["dropped"]) == (["Barbera", "Barolo", "Grignolino"], [])


def test_train_knows_late_classes(tmp_path):
    """Where the first rows lack a class, later rows can't be asked about."""
    table = csv_of("day,y", DAYS, ["old"] * 40 + ["new"] * 20)
    card = fit(tmp_path, table).card
    assert card["measured"] == "5 folds, shuffled"
    assert "but some classes are too rare to measure it on later rows only" in card["notes"]
    repeats = csv_of("a,y", [1] * 30 + list(range(30)), ["same"] * 30 + ["else"] * 30)
    notes = fit(tmp_path, repeats).card["notes"]
    assert "rows repeat others, and a class has too few different ones to tell" in notes


def test_train_twice_is_the_same(trained, tmp_path):
    again = fit(tmp_path, mixed(), build=train.build_model)
    assert again.path.read_bytes() == trained["price"].path.read_bytes()


def test_train_sees_order_in_a_date_with_a_gap(tmp_path):
    table = csv_of("day,y", ["", *DAYS[1:]], np.arange(60) * 7 % 13)
    assert fit(tmp_path, table).card["measured"] == "5 folds, later rows only"


@pytest.mark.parametrize(
    ("name", "x", "kept"),
    [
        ("n", range(40), False), ("n", range(1, 41), False), ("n", range(58, 98), True),
        ("year", range(1970, 2010), True), ("customer_id", [i * 3 // 4 for i in range(40)], False),
        ("price index", [i * 5 % 97 for i in range(40)], True), ("", [3 * i for i in range(40)], False),
    ],
)  # fmt: skip
def test_train_knows_identifiers(name, x, kept, tmp_path):
    """Row numbers and what is called an identifier are left out; a height or a year is not."""
    card = fit(tmp_path, csv_of(f"{name},b,y", x, np.arange(40) % 9 / 2, np.arange(40) % 2)).card
    reasons = [entry["reason"][:13] for entry in card["dropped"]]
    assert reasons == ([] if kept else ["an identifier"])


ROWS = [(i % 7 / 2, i % 2) for i in range(40)]


@pytest.mark.parametrize(
    ("header", "rows", "options", "words"),
    [
        ("", [], [], "is not a table: it is empty"),
        ("a", [[1], [2]], [], "has one column"),
        ("a,y", [], [], "it has a header and no rows"),
        ("a,b", [*ROWS, (1, 2, 3)], [], "row 41 has 3 cells, the header 2"),
        ("price,y", ROWS, ["--target", "prize"], "no column 'prize': did you mean --target 'price'?"),
        ("a,y", [(a, 0) for a, _ in ROWS], [], "has 1 classes"),
        ("a,y", [(a, 0.5) for a, _ in ROWS], ["--task", "regression"], "is always 0.5"),
        ("a,y", ROWS[:8], [], "0 classes of 5 rows or more"),
        ("a,y", [(i / 3, f"label {i % 101}") for i in range(505)], [], "has 101 classes"),
        ("a,y", ROWS[:9], ["--task", "regression"], "9 usable rows: give 10 or more"),
        ("a,y", [(1, y) for _, y in ROWS], [], "no column is left to predict from"),
        (None, [], [], "table.csv' can't be read (No such file"),
    ],
)  # fmt: skip
def test_train_refuses(header, rows, options, words, tmp_path, capsys):
    """Exit code 2, one line on stderr, and the old model is still there."""
    (tmp_path / "model.joblib").write_text("old")
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, None if header is None else "\n".join(lines), *options)
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n"), error[:10]) == (2, 1, "train.py: ")
    assert words in error
    assert (tmp_path / "model.joblib").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"model.joblib", "table.csv"}


# main_api.py


def ask(url, body=None, kind="application/json"):
    """Return the status and the answer, JSON without NaN, or a text; what is no text is sent as
    JSON. No answer tells where the files are, and a 503 when to try again."""
    data = body.encode() if isinstance(body, str) else body
    if not isinstance(data, bytes | None):
        data = json.dumps(body).encode()
    try:
        response = OPEN(Request(url, data, {"Content-Type": kind}), timeout=30)
    except HTTPError as error:
        response = error
    with response:
        text = response.read().decode()
    assert str(HERE) not in text
    assert response.headers["Retry-After"] == ("1" if response.status == 503 else None)
    if response.headers["Content-Type"] == "application/json":
        text = json.loads(text, parse_constant=pytest.fail)
    return response.status, text


@contextmanager
def serve(path, app=None, code=None, **env):
    """Serve a model in a thread, by a main_api.py of its own: nothing is left when the tests end."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MODEL_PATH": str(path), **env}.items():
            patch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("main_api", code or HERE / "main_api.py")
        main_api = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(main_api)
    app = app or main_api.app
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    api = SimpleNamespace(main_api=main_api, exit_code=None)

    def run():
        try:
            server.run()
        except SystemExit as end:
            api.exit_code = end.code

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        if server.started:
            api.address = server.servers[0].sockets[0].getsockname()
            api.url = f"http://127.0.0.1:{api.address[1]}"
        yield api
    finally:
        server.should_exit = True
        thread.join(5)


@pytest.fixture(scope="session")
def apis(trained):
    """The models, served side by side in one process."""
    with ExitStack() as stack:
        served = {name: stack.enter_context(serve(each.path)) for name, each in trained.items()}
        for name, api in served.items():
            vars(api).update(vars(trained[name]))
        yield served


@pytest.fixture(params=["here", "kind", "price"])
def api(request, apis):
    return apis[request.param]


@pytest.fixture
def given(apis):
    return apis["given"]


def random_rows(card, n):
    """Return rows as JSON has them, within the training range."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(n):
        row = {}
        for f in card["features"]:
            value = f["default"]
            if f["nullable"] and rng.random() < 0.2:
                value = None
            elif f["type"] == "number":
                value = rng.uniform(f["minimum"], f["maximum"])
            elif f["type"] != "date":
                value = rng.choice(f.get("choices", [False, True])).item()
            elif f["minimum"][:10] < f["maximum"][:10]:
                first, last = (date.fromisoformat(f[end][:10]) for end in ("minimum", "maximum"))
                days = int(rng.integers((last - first).days))
                value = (last - timedelta(days)).isoformat()
            row[f["name"]] = value
        rows.append(row)
    return rows


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def rows_of(columns):
    """Return the answer for columns as those for rows."""
    probabilities = columns.pop("probabilities", {})
    rows = [dict(zip(columns, cells)) for cells in zip(*columns.values())]
    for row, shares in zip(rows, zip(*probabilities.values())):
        row["probabilities"] = dict(zip(probabilities, shares))
    return rows


def spell(value, card):
    """Return a value as the table writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return (
        value or "" if isinstance(value, str | None) else repr(value).replace(".", card["decimal"])
    )


def to_csv(rows, card):
    text = io.StringIO()
    lines = [[spell(value, card) for value in row.values()] for row in rows]
    csv.writer(text, delimiter=";").writerows([list(rows[0]), *lines])
    return text.getvalue()


def read_csv(text):
    return list(csv.reader(io.StringIO(text), delimiter=";"))


def expect(api, rows):
    """Return the answers by the model called directly on what encode() makes of the rows' texts,
    and by the card's numbers."""
    card, sure = api.card, api.card["uncertainty"]
    texts = {f["name"]: [spell(row[f["name"]], card) for row in rows] for f in card["features"]}
    X, problems = train.encode(texts, card)
    assert problems == []
    answers = [{"prediction": p, "warnings": []} for p in api.model.predict(X).tolist()]
    for answer, x in zip(answers, X[:, None]):
        p = answer["prediction"]
        if "classes" in card:
            values = dict(zip(card["classes"], api.model.predict_proba(x)[0].tolist()))
            enough = [c for c, t in zip(card["classes"], sure["thresholds"]) if values[c] >= t]
            others = sorted(set(enough) - {p}, key=lambda c: -values[c])
            answer |= {"probabilities": values, "likely": [p, *others]}
        else:
            width = sure["widths"][sum(p >= edge for edge in sure["edges"])]
            ends = sure["at_least"], sure["at_most"]
            middle = np.clip(p, *ends)
            answer["interval"] = np.clip([middle - width, middle + width], *ends).tolist()
    return answers


def is_same(a, b):
    """Tell whether two answers are equal, numbers to 9 digits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12))


def test_health_and_model(api):
    assert ask(api.url + "/health") == (200, {"status": "ok"})
    sha256 = hashlib.sha256(api.path.read_bytes()).hexdigest()
    assert ask(api.url + "/model") == (200, api.card | {"sha256": sha256})


def test_predict(api):
    """A row, columns and a file are answered as the model itself answers what encode() makes of
    them, the file with the decimal mark of the table."""
    rows = [example["features"] for example in api.card["examples"]] + random_rows(api.card, 300)
    expected = expect(api, rows)
    for row, answer in zip(rows[:20], expected):
        assert is_same(ask(api.url + "/predict", row), (200, answer))
    status, columns = ask(api.url + "/predict/batch", columns_of(rows))
    assert status == 200
    assert is_same(rows_of(columns), expected)
    text = to_csv(rows, api.card)
    status, answers = ask(api.url + "/predict/csv", text, "text/csv")
    header, *answers = read_csv(answers)
    added = ["prediction", "low", "high", "warnings", "problem"]
    if classes := api.card.get("classes"):
        added[1:3] = [*(f"probability of {label}" for label in classes), "likely"]
    assert header == [*rows[0], *(f"{a} (model)" if a in rows[0] else a for a in added)]
    assert [cells[: len(rows[0])] for cells in answers] == read_csv(text)[1:]
    for cells, answer in zip(answers, expected):
        cells = cells[len(rows[0]) :]
        numbers = [c.replace(api.card["decimal"], ".") for c in cells]
        if classes:
            labels = [answer["prediction"], " or ".join(answer["likely"])]
            assert [cells[0], cells[-3]] == labels
            assert is_same(list(map(float, numbers[1:-3])), list(answer["probabilities"].values()))
        else:
            ends = [answer["prediction"], *answer["interval"]]
            assert is_same(list(map(float, numbers[:3])), ends)
        assert cells[-2:] == ["", ""]


def test_predict_without_nullable(api):
    """null, and a field left out, are a gap; in columns and in a file too."""
    row = api.card["examples"][0]["features"]
    gaps = {f["name"]: None for f in api.card["features"] if f["nullable"]}
    known = {name: value for name, value in row.items() if name not in gaps}
    [expected] = expect(api, [row | gaps])
    for body in (known, row | gaps):
        assert is_same(ask(api.url + "/predict", body), (200, expected))
    _, columns = ask(api.url + "/predict/batch", columns_of([known]) | gaps)
    assert is_same(rows_of(columns), [expected])


def test_predict_outside(api):
    """What is outside the training range is predicted, with a sentence."""
    row = api.card["examples"][0]["features"]
    for f in api.card["features"]:
        for end, sign, words, day, when in (
            ("maximum", 1, "above {}, the highest", "9000-01-01", "after {}, the latest"),
            ("minimum", -1, "below {}, the lowest", "0100-01-01", "before {}, the earliest"),
        ):
            if f["type"] == "number":
                value = f[end] + sign * (1.5 + abs(f[end]))
                words = f"{value:.10g} is {words.format(f'{f[end]:.10g}')}"
            elif f["type"] == "date":
                value, words = day, f"{day} is {when.format(f[end])}"
            else:
                continue
            status, answer = ask(api.url + "/predict", row | {f["name"]: value})
            assert (status, answer["warnings"]) == (200, [f"{f['name']} {words} in training"])


def test_predict_refuses(api):
    """422 names the place of what can't be predicted, and repeats none of it."""
    row, url = api.card["examples"][0]["features"], api.url + "/predict"
    for f in api.card["features"]:
        name = f["name"]
        wrong = {
            "number": ["12", True, math.nan, math.inf, "1e400", 1.1e30, -1.1e30, [], {}],
            "boolean": ["true", 1, math.nan],
            "category": ["never heard of", 1, True],
            "date": ["31.12.2023", "soon", 20240101],
        }[f["type"]]
        for value in wrong if f["nullable"] else [*wrong, None]:
            body = json.dumps(row | {name: value}).replace('"1e400"', "1e400")
            status, answer = ask(url, body)
            assert (status, [entry["loc"] for entry in answer["detail"]]) == (422, [["body", name]])
            assert answer["detail"][0].keys() == {"loc", "msg", "type"}
            assert value != "never heard of" or "'never heard of' is not one of" in str(answer)
            # of a column the first
            many = columns_of([row] * 9) | {name: [row[name]] * 7 + [value] * 2}
            status, answer = ask(url + "/batch", many)
            places = [entry["loc"] for entry in answer["detail"]]
            assert (status, places) == (422, [["body", name, 7]])
        rest = {other: value for other, value in row.items() if other != name}
        assert ask(url, rest)[0] == (200 if f["nullable"] else 422)
    status, answer = ask(url, row | {"f0": 1})
    assert (status, answer["detail"][0]["loc"]) == (422, ["body", "f0"])
    if len(row) > 1:
        status, answer = ask(url + "/batch", columns_of([row] * 3) | {name: [row[name]] * 2})
        assert (status, "equally many rows" in answer["detail"][0]["msg"]) == (422, True)


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "words"),
    [
        ("/predict", b"", "application/json", 422, "EOF"),
        ("/predict", b"{", "application/json", 422, "EOF"),
        ("/predict", b"[]", "application/json", 422, "object"),
        ("/predict", b"null", "application/json", 422, "object"),
        ("/predict", b"\xff", "application/json", 422, "expected value"),
        ("/predict", b"[" * 9999, "application/json", 422, "recursion"),
        ("/predict", b'{"\\ud800": 1}', "application/json", 422, ""),
        ("/predict", b'{"x": 1}', "application/json; charset=utf-8", 200, ""),
        ("/predict", b'{"x": 1}', "text/plain", 415, "Send the header"),
        ("/predict", b'{"x": 1}', "text/plain;x=json", 415, "Send the header"),
        ("/predict/batch", {"x": []}, "application/json", 422, "at least 1"),
        ("/predict/batch", {"x": [-1.0] * 10_000}, "application/json", 200, ""),
        ("/predict/batch", {"x": [-1.0] * 10_001}, "application/json", 422, "at most 10000"),
        ("/predict/batch", {"x": 1}, "application/json", 422, "list"),
        ("/predict/csv", "x\n1\n", "text/csv; charset=utf-8", 200, "x,prediction,low,high"),
        ("/predict/csv", "x\n1\n", "application/json", 415, "Send the header 'Content-Type: text/csv'"),
        ("/predict/csv", "x\n" + "1\n" * 100_000, "text/csv", 200, ""),
        ("/predict/csv", "x\n" + "1\n" * 100_001, "text/csv", 422, "more than 100,000 rows"),
        ("/predict/csv", "x\n", "text/csv", 422, "it has no rows"),
        ("/predict/csv", "z\n1\n", "text/csv", 422, "it has no column 'x'"),
        ("/predict/csv", "x;z\n1,5;0.5\n", "text/csv", 422, "'1,5' is no number where '.' is the decimal mark"),
        ("/predict/csv", b"", "text/csv", 422, "it is empty"),
        ("/predict/csv", b'x,z\n"1,2\n', "text/csv", 422, "never closed"),
        ("/explain", b'{"x": "1"}', "application/json", 422, "valid number"),
    ],
)  # fmt: skip
def test_statuses(path, body, kind, status, words, given):
    found, answer = ask(given.url + path, body, kind)
    assert (found, words in str(answer)) == (status, True)
    if status == 200 and path == "/predict/csv":
        assert answer.count("\n") == body.count("\n")


def test_dates_at_the_ends_of_time(api):
    """A date is predicted or refused; none breaks an answer."""
    row = api.card["examples"][0]["features"]
    for feature in (f for f in api.card["features"] if f["type"] == "date"):
        for text, status in (("", 422), ("9999-12-31T23:59:59.9", 422), ("0001-01-02", 200)):
            found, answer = ask(api.url + "/predict", row | {feature["name"]: text})
            assert found == status
            assert status == 422 or "0001-01-02 is before" in answer["warnings"][0]


def test_too_large(given):
    """413 by the length alone; half a request, with its Content-Type, leaves nothing in the log."""
    for path, kind, limit in (("", "application/json", 10), ("/csv", "text/csv", 50)):
        for length in (limit * 2**20, limit * 2**20 + 1):
            head = f"POST /predict{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
            with socket.create_connection(given.address, 0.3) as s:
                s.sendall(f"{head}Content-Length: {length}\r\n\r\n{{".encode())
                answer = b""
                with suppress(TimeoutError):
                    answer = s.recv(99)
            assert (b" 413 " in answer) == (length > limit * 2**20)
    assert ask(given.url + "/predict", {"x": -1.0})[0] == 200


def test_at_most_20_reasons(tmp_path):
    names, columns = [f"c{i}" for i in range(25)], np.random.default_rng(0).normal(size=(26, 20))
    with serve(fit(tmp_path, csv_of(",".join([*names, "y"]), *columns)).path) as api:
        for path in ("/predict", "/predict/batch"):
            status, answer = ask(api.url + path, {})
            assert (status, len(answer["detail"])) == (422, 20)


def test_csv(given):
    """Rows and columns keep their order and their texts, over several calls of the model; what
    can't be read keeps its place, with the reason."""
    rows = [[str(i), f"{i / 10}", 'a "b"\nc;d'] for i in range(2500)]
    rows[7][1], rows[9], rows[1003][1], rows[2001][1] = "abc", ["9", "0.9"], "", "666"
    rows[1500] += ["more"]
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([["prediction", "x", ""], *rows])
    status, text = ask(given.url + "/predict/csv", text.getvalue(), "text/csv")
    header, *lines = read_csv(text)
    added = ["prediction (model)", "low", "high", "warnings", "problem"]
    assert (status, header) == (200, ["prediction", "x", "column 3", *added])
    problems = {
        7: "x is 'abc', no number",
        1003: "x is missing",
        1500: "the row has 4 cells, the header 3",
        2001: "the model has no answer for this row",
    }
    rows[9] += [""]
    assert [line[:3] for line in lines] == [row[:3] for row in rows]
    assert {i: line[-1] for i, line in enumerate(lines) if line[-1]} == problems
    for i, line in enumerate(lines):
        # the table's x are -20 to -0.5, and the model's errors 0
        warning = f"x {i / 10:.10g} is above -0.5, the highest in training"
        numbers = ["" if i in problems else str(i / 10)] + ["" if i in problems else "0.0"] * 2
        assert line[3:-1] == [*numbers, "" if i in problems else warning], i


def test_intervals(tmp_path):
    """By hand: of predictions up to 100 the truth is 1 off, of larger ones 10; 19 rows are too few
    for two bands, and the 18th of their errors holds nine of ten."""
    x = np.arange(2, 202, 2)
    y = x + np.where(x > 100, 10, 1) * np.where(x // 2 % 2, 1, -1)
    with serve(fit(tmp_path, csv_of("x,y", x, y), build=lambda *_: Given()).path) as api:
        answer = ask(api.url + "/predict/batch", {"x": [20, 99, 103, 0.5, -5]})[1]
    assert answer["interval"] == [[19, 21], [98, 100], [93, 113], [0, 1.5], [0, 1]]
    k = np.arange(1, 20)
    few = fit(tmp_path, csv_of("x,y", k * 50, k * 49), build=lambda *_: Given()).card
    assert few["uncertainty"]["widths"] == [18]


@pytest.mark.parametrize("threshold", [0.5, 0.6])
def test_likely(threshold, tmp_path):
    """By hand: "no" is likely from 0.64 on, "yes" from 0.46, and what is predicted always. That is
    what the model says, also where another label is more probable."""
    k, model = np.arange(1, 20), GivenLabels()
    if threshold != 0.5:
        model = FixedThresholdClassifier(model, threshold=threshold)
    table = csv_of("x,y", [*k * 0.02, *1 - k * 0.03], np.repeat(["no", "yes"], 19))
    with serve(fit(tmp_path, table, build=lambda *_: model).path) as api:
        answer = ask(api.url + "/predict/batch", {"x": [0.45, 0.47, 0.52, 0.9]})[1]
        third = ["yes"] if threshold == 0.5 else ["no", "yes"]
        assert answer["likely"] == [["no"], ["no", "yes"], third, ["yes"]]
        assert answer["prediction"] == ["no", "no", third[0], "yes"]
        assert answer["probabilities"]["yes"] == [0.45, 0.47, 0.52, 0.9]
        assert ask(api.url + "/explain", {"x": 0.52})[1]["prediction"] == third[0]


def test_coverage(tmp_path):
    """Nine of ten of fresh rows, and not much less in any class or fifth of the predictions, though
    large values are less sure and one class is rare; an interval keeps the sign of all."""

    def draw(n, seed):
        a, b, e = np.random.default_rng(seed).normal(size=(3, n))
        labels = np.where(a + b + e > 2, "rare", np.where(b + e > 0, "up", "down"))
        return a, b, np.abs(a * 10 + 30 + e * np.abs(a + 3)), labels

    a, b, y, labels = draw(2000, 0)
    fresh_a, fresh_b, fresh_y, fresh_labels = draw(5000, 1)
    body = {"a": fresh_a.tolist(), "b": fresh_b.tolist()}
    with serve(fit(tmp_path, csv_of("a,b,y", a, b, y)).path) as api:
        answer = ask(api.url + "/predict/batch", body)[1]
    low, high = np.array(answer["interval"]).T
    assert low.min() >= 0
    for part in np.array_split(np.argsort(answer["prediction"]), 5):
        assert 0.85 <= np.mean((low <= fresh_y)[part] & (fresh_y <= high)[part]) <= 0.95
    with serve(fit(tmp_path, csv_of("a,b,y", a, b, labels)).path) as api:
        likely = ask(api.url + "/predict/batch", body)[1]["likely"]
    for label in ("rare", "up", "down"):
        holds = [label in likely[row] for row in np.nonzero(fresh_labels == label)[0]]
        assert 0.85 <= np.mean(holds) <= 0.97


def test_explain(api):
    """The shares add up to the difference from the average of the table's rows."""
    row = api.card["examples"][-1]["features"]
    status, answer = ask(api.url + "/explain", row)
    [expected], average = expect(api, [row]), api.model.predict(api.background)
    value = expected["prediction"]
    assert (status, answer["prediction"]) == (200, pytest.approx(value))
    if "classes" in api.card:
        average = api.model.predict_proba(api.background)[:, api.card["classes"].index(value)]
        value = expected["probabilities"][value]
    assert answer["value"] == pytest.approx(value)
    assert answer["value"] - answer["average"] == pytest.approx(sum(answer["shares"].values()))
    if len(row) < 49:  # of more features fewer rows, to bound the work
        assert answer["average"] == pytest.approx(average.mean())
    assert answer["shares"].keys() == row.keys()
    sizes = [abs(share) for share in answer["shares"].values()]
    assert sizes == sorted(sizes, reverse=True)


def test_explain_linear(tmp_path):
    """In a linear model a share is the coefficient times the distance from the mean."""
    a, b = np.random.default_rng(0).normal(size=(2, 200))
    saved = fit(tmp_path, csv_of("a,b,y", a, b, 3 * a - 2 * b))
    with serve(saved.path) as api:
        answer = ask(api.url + "/explain", {"a": 0.5, "b": 1.5})[1]
    of_a, of_b = (
        3 * (0.5 - saved.background[:, 0].mean()),
        -2 * (1.5 - saved.background[:, 1].mean()),
    )
    assert answer["shares"] == pytest.approx({"a": of_a, "b": of_b})
    assert answer["value"] == pytest.approx(3 * 0.5 - 2 * 1.5)


def test_openapi(api):
    """The documentation shows every feature, and examples that work."""
    paths = ask(api.url + "/openapi.json")[1]["paths"]
    assert paths.keys() >= {"/health", "/model", "/predict/csv"}
    for path in ("/predict", "/predict/batch", "/explain"):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert list(schema["properties"]) == [f["name"] for f in api.card["features"]]
        assert schema["additionalProperties"] is False
        statuses = {ask(api.url + path, example)[0] for example in schema["examples"]}
        assert statuses == {200}
        assert paths[path]["post"]["responses"].keys() == {"200", "400", "413", "415", "422", "503"}


def test_queue(given):
    """While the model works the loop is free; who waits shares the next call; a row that makes it
    raise fails alone."""
    with ThreadPoolExecutor(30) as pool:
        started = time.monotonic()
        first = pool.submit(ask, given.url + "/predict", {"x": 1000.5})
        time.sleep(0.1)
        values = [666, *(1000.2 - i / 1000 for i in range(20))]
        others = [pool.submit(ask, given.url + "/predict", {"x": x}) for x in values]
        assert ask(given.url + "/health")[0] == 200
        assert not first.done()
        status, answer = others[0].result()
        assert (status, answer["detail"][0]["type"]) == (422, "no_answer")
        assert [other.result()[1]["prediction"] for other in others[1:]] == values[1:]
        # 0.5 s, then 0.2 s for each half without the one that raises, not for each row
        assert 0.5 < time.monotonic() - started < 2


def test_lone_row_among_batches(given):
    """A batch's calls let others in between: one row waits for one of them, not for all ten."""
    with ThreadPoolExecutor(2) as pool:
        batch = pool.submit(ask, given.url + "/predict/batch", {"x": [1000.1] * 10_000})
        time.sleep(0.25)
        started = time.monotonic()
        assert ask(given.url + "/predict", {"x": -1.0})[0] == 200
        assert time.monotonic() - started < 0.5
        assert not batch.done()
        assert batch.result()[0] == 200


def test_too_much_waits(given):
    """Beyond a limit the answer is 503; what is answered, has failed, or was asked by clients that
    have gone counts no more."""
    with serve(given.path) as api, ThreadPoolExecutor(4) as pool:
        api.main_api.MAX_WAITING_ROWS = 20_000

        def send(x, rows=10_000):
            return ask(api.url + "/predict/batch", {"x": [x] * rows})[0]

        assert sorted(pool.map(send, [1000.08] * 4)) == [200, 200, 503, 503]
        assert send(666.0) == 422
        busy = pool.submit(ask, api.url + "/predict", {"x": 1001.5})
        time.sleep(0.1)
        body = json.dumps({"x": [1000.03] * 9_999}).encode()
        head = "POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for _ in range(2):
            with socket.create_connection(api.address) as s:
                s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.2)
        assert send(1000.03) == 503
        more = pool.submit(send, -1.0, 1)  # 20,000 rows with it
        assert (busy.result()[0], more.result()) == (200, 200)
        time.sleep(1.5)
        assert list(pool.map(send, [-1.0] * 2)) == [200, 200]


def test_too_many_files(given):
    """A fifth file at once is 503; files that are answered, refused or given up count no more."""
    url = given.url + "/predict/csv"
    head = "POST /predict/csv HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
    with ThreadPoolExecutor(5) as pool:
        for _ in range(2):
            files = list(pool.map(lambda _: ask(url, "x\n1000.6\n", "text/csv")[0], range(5)))
            assert sorted(files) == [200] * 4 + [503]
            for _ in range(5):
                assert ask(url, "z\n1\n", "text/csv")[0] == 422
                with socket.create_connection(given.address) as s:
                    s.sendall(f"{head}Content-Length: 99\r\n\r\nx\n1".encode())
            time.sleep(0.5)


def test_login_is_honoured(given, tmp_path):
    """Dependencies of the app, a login say, hold for all its routes; and the app beside it, in the
    same process, still answers."""
    code, app = (HERE / "main_api.py").read_text(), "app = FastAPI("
    assert code.count(app) == 1
    login = "def refuse():\n    raise HTTPException(401)\n\n\n"
    edited = code.replace(app, f"{login}{app}dependencies=[Depends(refuse)], ")
    (tmp_path / "edited.py").write_text(edited)
    with serve(given.path, code=tmp_path / "edited.py") as api:
        for path in ("/predict", "/predict/batch", "/explain"):
            assert ask(api.url + path, {"x": 1})[0] == 401
        assert ask(api.url + "/predict/csv", "x\n1\n", "text/csv")[0] == 401
        assert ask(api.url + "/model")[0] == 401
        assert ask(given.url + "/predict", {"x": -1.0})[0] == 200


def test_another_model(trained, given):
    """An app that is started again, with another model, describes that one only."""
    with serve(trained["kind"].path) as api:
        pass
    api.main_api.MODEL_PATH = given.path
    with serve(given.path, api.main_api.app) as api:
        assert ask(api.url + "/predict", {"x": -1.0})[0] == 200
        assert ask(api.url + "/openapi.json")[1] == ask(given.url + "/openapi.json")[1]


def test_new_model(trained, tmp_path, caplog):
    """A new file is served without a restart, what is in flight is answered by the model it began
    with; a bad file is refused in a line, and the model of before goes on."""

    def put(content):
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(tmp_path / "model.joblib")

    def wait(words):
        for _ in range(100):
            if words in caplog.text:
                return caplog.clear()
            time.sleep(0.05)
        raise AssertionError(words)

    put(trained["given"].path.read_bytes())
    with serve(tmp_path / "model.joblib") as api, ThreadPoolExecutor(1) as pool:
        before = pool.submit(ask, api.url + "/predict/batch", {"x": [1000.2] * 9_999})
        time.sleep(0.3)
        put(trained["kind"].path.read_bytes())
        wait("the new ")
        row = trained["kind"].card["examples"][0]
        status, answer = ask(api.url + "/predict", row["features"])
        assert (status, answer["prediction"] in trained["kind"].card["classes"]) == (200, True)
        assert ask(api.url + "/model")[1]["target"] == "kind"
        assert "price" in str(ask(api.url + "/openapi.json")[1]["paths"]["/predict"])
        assert ask(api.url + "/predict", {"x": 1})[0] == 422
        assert before.result()[1]["prediction"] == [1000.2] * 9_999
        put(b"no model")
        wait("only in part")
        assert ask(api.url + "/model")[1]["target"] == "kind"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "can't be read .*: run `python train.py`"),
        ("older", "was saved by scikit-learn 1.5.0, this is .*: run `python train.py`"),
        ("other", "was saved by another train.py: run `python train.py`"),
        ("truncated", "was not saved by train.py, or only in part .*: run `python train.py`"),
        ("pointer", "is a Git LFS pointer: run `git lfs pull`"),
        ("pinned", "has SHA-256 [0-9a-f]{64}, but MODEL_SHA256 is 'abc'"),
        ("right", None),
    ],
)
def test_bad_model(name, words, trained, tmp_path, monkeypatch, caplog):
    """Nothing is served: exit code 3, and one line says what was found and what to type."""
    good, path = trained["price"].path.read_bytes(), tmp_path / name
    content = {"truncated": good[: len(good) // 2], "pinned": good, "right": good}
    content["pointer"] = b"version https://git-lfs.github.com/spec/v1"
    if name in ("older", "other"):
        saved = joblib.load(trained["price"].path)
        if name == "other":
            del saved["model"]
        with monkeypatch.context() as patch:
            patch.setattr("sklearn.base.__version__", "1.5.0")
            joblib.dump(saved, path)
    elif name != "missing":
        path.write_bytes(content[name])
    pins = {"pinned": "abc", "right": hashlib.sha256(good).hexdigest().upper()}
    with serve(path, MODEL_SHA256=pins.get(name, "")) as api:
        assert api.exit_code == (3 if words else None)
    lines = [line for line in caplog.messages if "main_api.py" in line]
    assert len(lines) == (1 if words else 0)
    assert all(re.fullmatch(f"main_api.py: '{path}' {words}", line) for line in lines)
    assert "Traceback" not in caplog.text


@pytest.mark.skipif(not shutil.which("schemathesis"), reason="schemathesis is not installed")
def test_schemathesis(api, tmp_path):
    """All checks of schemathesis against /openapi.json find nothing."""
    # note: JSON Schema can't say that columns are equally long, so a valid batch may be refused
    (tmp_path / "schemathesis.toml").write_text(
        '[[operations]]\ninclude-path-regex = "/predict/(batch|csv)"\n'
        'checks.positive_data_acceptance.expected-statuses = ["2xx", 422]\n'
    )
    command = ["schemathesis", "run", api.url + "/openapi.json", "--checks", "all"]
    command += ["--max-examples", "30", "--seed", "1"]
    run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


# main_ui.py


@pytest.fixture
def open_page(monkeypatch):
    """Return a function that draws a tab of the page, as a link with such an address does."""
    from streamlit.testing.v1 import AppTest  # takes a second: only where it is needed

    def open_page(url, tab="One row", query=()):
        monkeypatch.setenv("API_URL", url)
        page = AppTest.from_file(str(HERE / "main_ui.py"), default_timeout=30)
        page.query_params.update(query)
        page.session_state["page:tab"] = tab
        return page.run()

    return open_page


def words_on(page) -> str:
    """Return the texts on the page as people see them."""
    assert not page.exception
    texts, alerts = ["title", "header", "metric", "markdown", "text", "code"], ["error", "warning"]
    kinds = [*texts, *alerts, "success", "info"]
    words = "\n".join(str(element.value) for kind in kinds for element in page.get(kind))
    return re.sub(r"\\(?=[^\w\s])|\u2060|\*\*", "", words)


def bars_of(chart) -> list[float]:
    """Return the lengths of a chart's bars, which are all within its ends."""
    from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df

    bars = convert_arrow_bytes_to_pandas_df(chart.proto.data.data)["value"].tolist()
    low, high = json.loads(chart.proto.spec)["encoding"]["x"]["scale"]["domain"]
    assert low <= min(bars) <= max(bars) <= high
    return bars


def try_example(page):
    examples = page.button_group(key="page:try")
    return examples.select(examples.options[0]).run()


def test_page_example(api, open_page):
    """An example fills the form and the address; the answer, its range or labels, its reasons and
    the truth stand beside it; the address brings all of it back."""
    page, example = try_example(open_page(api.url)), api.card["examples"][0]
    answer, why = (ask(api.url + p, example["features"])[1] for p in ("/predict", "/explain"))
    shares = list(why["shares"].values())
    shares[9:] = [sum(shares[9:])] if len(shares) > 10 else shares[9:]
    for each in (page, open_page(api.url, query=page.query_params)):
        words, [metric] = words_on(each), each.metric
        *charts, reasons = [bars_of(chart) for chart in each.get("vega_lite_chart")[:-1]]
        assert "This is a real row of the table" in words
        assert metric.label.replace("\\", "") == api.card["target"]
        assert reasons == pytest.approx(shares)
        value = re.sub(r"\\|\u2060", "", metric.value)
        if "classes" in api.card:
            assert value == answer["prediction"]
            assert f"Likely {' or '.join(answer['likely'])}:" in words
            ranked = sorted(answer["probabilities"].values(), reverse=True)
            assert charts[0] == pytest.approx(ranked[:10])
        else:
            low, high = answer["interval"]
            found = [value, *re.search(r"Likely (\S+) to (\S+):", words).groups()]
            found = [float(text.replace(",", "")) for text in found]
            assert found == pytest.approx([answer["prediction"], low, high], abs=(high - low) / 10)


def test_page_predict(api, open_page):
    """Predict asks for what is in the form: the defaults at first, and gaps where they may be."""
    page = open_page(api.url)
    page.button(key="page:predict").click().run()
    row = {f["name"]: None if f["nullable"] else f["default"] for f in api.card["features"]}
    page.session_state["page:tab"] = "For programmers"
    page.run()
    body = shlex.split(page.code[0].value)[-1]
    assert json.loads(body) == row
    assert json.loads(page.code[1].value) == ask(api.url + "/predict", row)[1]


def test_page_refuses(apis, open_page):
    """What can't be predicted is said with the feature's name; what is outside with a warning."""
    api = apis["price"]
    for value, words in (("13,5", "class: Input should be a valid number"), ("", "class"),
                         ("1e40", "class: Input should be at most 1e+30"),
                         ("99", "the highest in training")):  # fmt: skip
        page = open_page(api.url)
        page.text_input(key="_class").set_value(value)
        page.button(key="page:predict").click().run()
        assert words in words_on(page)
        assert len(page.metric) == (1 if value == "99" else 0)
    page = open_page(api.url, query={"_kind": "Z", "_a": "1"})
    assert "kind: 'Z' is not one of" in words_on(page)
    assert not page.metric


@pytest.mark.parametrize("name", ["kind", "price"])
def test_page_what_if(name, apis, open_page):
    """For each feature one chart: the model's answers along it, over how often the table has what,
    with a dashed line at the value of the form."""
    api = apis[name]
    row, page = api.card["examples"][0]["features"], try_example(open_page(api.url))
    for f in api.card["features"]:
        page.selectbox(key="page:what-if").select(f["name"]).run()
        spec = json.loads(page.get("vega_lite_chart")[-1].proto.spec)
        layers = seen, points, dashed = [layer["data"]["values"] for layer in spec["layer"]]
        for point in itertools.chain(*layers):  # as the API has it
            if f["type"] == "date":
                day = date(1970, 1, 1) + timedelta(milliseconds=point["at"])
                point["at"] = day.isoformat()
            elif f["type"] == "boolean":
                point["at"] = point["at"] == "true"
        values = list(dict.fromkeys(point["at"] for point in points))
        if f["type"] in ("number", "date"):
            ends = [f["minimum"], f["maximum"]]
            assert is_same([min(values), max(values)], ends)
        else:
            assert values == f.get("choices", [False, True])
        assert [point["value"] for point in seen][: len(f["counts"])] == f["counts"]
        assert [point["at"] for point in dashed] == [row[f["name"]]]
        columns = columns_of([row | {f["name"]: value} for value in values])
        answer = ask(api.url + "/predict/batch", columns)[1]
        lines = answer.get("probabilities", {api.card["target"]: answer["prediction"]})
        for point in points:
            assert is_same(lines[point["label"]][values.index(point["at"])], point["value"])


def test_page_many_rows(api, open_page):
    """A file is predicted, in its order; which rows can't be, and why, is said first."""
    rows = [example["features"] for example in api.card["examples"]]
    text = to_csv([row | {"mine": "kept"} for row in [*rows, rows[0]]], api.card)
    page = open_page(api.url, "Many rows")
    file = ("t.csv", text.strip().encode() + b";one more", "text/csv")
    page.file_uploader(key="page:file").set_value(file).run()
    assert f"{len(rows)} of {len(rows) + 1} rows predicted" in words_on(page)
    first, problems = (frame.value for frame in page.dataframe)
    assert problems["row"].tolist() == [len(rows) + 1]
    assert "cells, the header" in problems["problem"][0]
    found = first.iloc[:-1, 0].tolist()
    predictions = [answer["prediction"] for answer in expect(api, rows)]
    assert found == (predictions if "classes" in api.card else pytest.approx(predictions))
    assert first["mine"].tolist() == ["kept"] * (len(rows) + 1)
    for content, words in ((b"z\n1\n", "has no column"), (b"", "empty")):
        page.file_uploader(key="page:file").set_value(("t.csv", content, "text/csv")).run()
        assert words in words_on(page)
        assert not page.dataframe


def test_page_about(api, open_page):
    page = open_page(api.url, "About the model")
    words, card = words_on(page), api.card
    assert f"trained on {card['rows']:,} rows" in words
    assert hashlib.sha256(api.path.read_bytes()).hexdigest() in words
    for text in [*card["notes"], *(entry["reason"] for entry in card["dropped"])]:
        assert text.rstrip(".") in words
    key = "accuracy" if "classes" in card else "mean_absolute_error"
    shown = page.table[0].value["model"][key.replace("_", " ")]
    assert float(shown.replace(",", "")) == pytest.approx(card["metrics"][key], rel=1e-3)
    gains = [max(0, gain) for gain in card["importance"].values()][:10]
    assert bars_of(page.get("vega_lite_chart")[0]) == pytest.approx(gains)
    assert page.dataframe[0].value["name"].tolist() == [f["name"] for f in card["features"]]


def test_page_without_api(given, open_page, monkeypatch):
    """No API: a sentence and a way to try again; of a page that was there nothing is lost."""
    page = open_page("http://127.0.0.1:9")
    assert "The model is not there" in words_on(page)
    monkeypatch.setenv("API_URL", given.url)
    page.button(key="page:retry").click().run()
    assert given.card["title"] in words_on(page)
    page.text_input(key="_x").set_value("-1.5")
    monkeypatch.setenv("API_URL", "http://127.0.0.1:9")
    page.button(key="page:predict").click().run()
    assert "The model is not there" in words_on(page)
    monkeypatch.setenv("API_URL", given.url)
    page.button(key="page:retry").click().run()
    assert page.metric[0].value.replace("\\", "").startswith("-1.5")


def test_page_with_another_model(apis, open_page, monkeypatch):
    """After another model has come: a sentence, its form, and no answer to values of the old one."""
    page = try_example(open_page(apis["kind"].url))
    monkeypatch.setenv("API_URL", apis["price"].url)
    page.button(key="page:predict").click().run()
    assert [toast.value[:21] for toast in page.toast] == ["The model has changed"]
    assert page.title[0].value == apis["price"].card["title"]
    assert page.text_input(key="_class").value
    assert not page.metric
    assert not page.error
    page.button(key="page:predict").click().run()
    assert page.metric
    assert not page.toast


@pytest.mark.parametrize("is_public", ["1", ""])
def test_page_public_api(is_public, given, open_page, monkeypatch):
    """A curl line that works where the visitor is, if the page's port answers under /api."""
    monkeypatch.setenv("PUBLIC_API", is_public)
    monkeypatch.setattr("streamlit.runtime.context.ContextProxy.url", "https://a.b:1/c?_d=e")
    page = open_page(given.url, "For programmers")
    url = "https://a.b:1/api" if is_public else given.url
    assert page.code[0].value.startswith(f"curl {url}/predict ")
    assert (f"{url}/docs" in words_on(page)) == bool(is_public)


# start.sh


def free_port() -> int:
    """Return a new port, below the range from which outgoing connections take theirs."""
    for port in PORTS:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Started:
    """A command as a process on free ports, the leader of a group that ends with the test."""

    def __init__(self, *command, cwd="/", **env):
        env = {"API_PORT": str(free_port()), "UI_PORT": str(free_port())} | env
        self.port, self.page_port = env["API_PORT"], env["UI_PORT"]
        self.api, self.page = (f"http://127.0.0.1:{n}" for n in (self.port, self.page_port))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        pipes |= {"cwd": cwd, "env": ENV | env, "start_new_session": True}
        self.process = subprocess.Popen(command, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def wait(self):
        for _ in range(600):
            assert self.process.poll() is None, "it ended before it was ready"
            with suppress(OSError):
                return OPEN(f"{self.page}/_stcore/health", timeout=1).read()
            time.sleep(0.1)
        raise AssertionError(f"{self.page} is not ready")

    def signal(self, name, of=None):
        """Send a signal to start.sh, or to the child that serves `of`; Ctrl-C goes to the group."""
        pid, number = self.process.pid, signal.Signals[name]
        if of:
            pid = int(subprocess.check_output(["pgrep", "-P", str(pid), "-f", of]))
        (os.killpg if name == "SIGINT" else os.kill)(pid, number)

    def end(self, seconds):
        """Assert that it ends in time with nothing left; return the exit code and stderr."""
        error = self.process.communicate(timeout=seconds)[1]
        with pytest.raises(ProcessLookupError):  # else something is left running
            os.killpg(self.process.pid, 0)
        assert "Traceback" not in error
        return self.process.returncode, error


@pytest.fixture(scope="module")
def started(trained, tmp_path_factory):
    """Copies of start.sh for the events below, all at once to save time: from another folder
    through a link, with CDPATH, a relative MODEL_PATH and a proxy, in a path with spaces, without
    the run bit. One has a watch that is quick to notice."""
    folder = tmp_path_factory.mktemp("a path")
    (folder / "scripts" / "code").mkdir(parents=True)
    shutil.copytree(HERE / ".streamlit", folder / "code" / ".streamlit")
    for path in [*HERE.glob("*.py"), HERE / "start.sh"]:
        shutil.copyfile(path, folder / "code" / path.name)
    shutil.copy(trained["given"].path, folder / "mine.joblib")
    (folder / "scripts" / "start").symlink_to("../code/start.sh")
    script = (folder / "code" / "start.sh").read_text()
    for slow, quick in (("sleep 10", "sleep 0.2"), ("ANSWER_SECONDS=5", "ANSWER_SECONDS=1"),
                        ("\nKILL_SECONDS=7", "\nKILL_SECONDS=2")):  # fmt: skip
        assert script.count(slow) == 1
        script = script.replace(slow, quick)
    (folder / "code" / "quick.sh").write_text(script)
    env = {"MODEL_PATH": "mine.joblib", "CDPATH": str(folder / "scripts"), "cwd": folder}
    env |= dict.fromkeys(("http_proxy", "all_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    scripts = {"hung": "code/quick.sh", "busy": "code/quick.sh"}
    with ExitStack() as stack:
        copies = {}
        for event in ("hung", "busy", "SIGINT", "API", "page"):
            command = ["bash", scripts.get(event, "scripts/start")]
            copies[event] = stack.enter_context(Started(*command, **env))
        yield copies


needs_pgrep = pytest.mark.skipif(not shutil.which("pgrep"), reason="pgrep is not installed")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net/tcp to read")
def test_start_listens(started):
    """The API for this machine alone, the page for all."""
    copy, listening = started["SIGINT"], {}
    copy.wait()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, port = line.split()[1].split(":")
        if line.split()[3] == "0A":
            listening.setdefault(str(int(port, 16)), []).append(address)
    assert listening[copy.port] == ["0100007F"]  # 127.0.0.1
    assert listening[copy.page_port] == ["00000000"]


@needs_pgrep
def test_start_tells_hung_from_busy(started):
    """An API that no longer answers ends all, with a line; one that only computes goes on."""
    hung, busy = started["hung"], started["busy"]
    hung.wait()
    busy.wait()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, busy.api + "/predict", {"x": 1005.5})
        hung.signal("SIGSTOP", of="main_api")
        code, error = hung.end(20)
        assert (code, error.count("start.sh: the API hangs: ")) == (1, 1)
        assert answer.result()[0] == 200
    assert busy.process.poll() is None


@pytest.mark.parametrize(("event", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_start_and_stop(event, code, started):
    """docker stop and Ctrl-C: what is in flight is answered, and both end."""
    copy = started["busy" if event == "SIGTERM" else "SIGINT"]
    copy.wait()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, copy.api + "/predict", {"x": 1001.0})
        time.sleep(0.2)
        copy.signal(event)
        assert answer.result()[1]["prediction"] == 1001
    assert copy.end(5)[0] == code


@needs_pgrep
@pytest.mark.parametrize(("name", "file"), [("API", "main_api"), ("page", "main_ui")])
def test_start_ends_when_one_is_killed(name, file, started):
    """Both end, with its code; an API that hears nothing any more is killed by another Ctrl-C."""
    copy = started[name]
    copy.wait()
    if name == "page":
        copy.signal("SIGSTOP", of="main_api")
    copy.signal("SIGKILL", of=file)
    if name == "page":
        time.sleep(1)
        assert copy.process.poll() is None
        copy.signal("SIGINT")
    code, error = copy.end(2)
    assert (code, f"start.sh: the {name} ended with code 137\n" in error) == (137, True)


# a python that says it is 3.10, and has all packages
OLD = f"""[ $1 = -V ] && exec echo Python 3.10.13
exec '{sys.executable}' -c "import sys; sys.version_info = (3, 10); $2" uvicorn"""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"API_PORT": "99999"}, "'99999' is no port: set API_PORT or UI_PORT"),
        ({"UI_PORT": "abc"}, "'abc' is no port: set API_PORT or UI_PORT"),
        ({"UI_PORT": "080"}, "'080' is no port: "),
        ({"API_PORT": "7860", "UI_PORT": "7860"}, "port 7860 can't be both API_PORT and UI_PORT"),
        ({"API_PORT": "taken"}, "is taken: stop what uses it, or set API_PORT or UI_PORT"),
        ({"UI_PORT": "taken"}, "is taken: stop what uses it, or set API_PORT or UI_PORT"),
        ({"PATH": ["bash", "dirname", "readlink"]}, "curl is missing: install it"),
        ({"PATH": ["bash", "dirname", "readlink", "curl"]}, "no python is found, 3.11 or newer"),
        ({"python": OLD}, "Python 3.10.13 is found, 3.11 or newer with the packages is needed"),
        ({"python": f"exec '{sys.executable}' -I -S \"$@\""}, "or 'pip install -r requirements"),
        ({"MODEL_PATH": "none"}, "run `python train.py`"),
    ],
)  # fmt: skip
def test_start_refuses(settings, words, tmp_path):
    """One line that says what to do, and nothing left running."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        env = {name: taken if value == "taken" else value for name, value in settings.items()}
        for tool in env.get("PATH", ()):  # nothing but these
            (tmp_path / tool).symlink_to(shutil.which(tool))
            env["PATH"] = str(tmp_path)
        if python := env.pop("python", None):
            (tmp_path / "python").write_text(f"#!/bin/sh\n{python}\n")
            (tmp_path / "python").chmod(0o755)
            env["PATH"] = f"{tmp_path}:{PATH}"
        with Started("bash", str(HERE / "start.sh"), **env) as copy:
            code, error = copy.end(30)
    lines = error.splitlines()
    if "MODEL_PATH" in settings:
        assert lines.pop() == "start.sh: the API ended with code 3"
        assert "startup failed" in lines.pop()
    assert (code, len(lines)) == (3 if "MODEL_PATH" in settings else 1, 1)
    assert words in error
    assert error.startswith("start.sh: ") or code == 3


# what leaves the machine


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_secrets_and_tables_stay_here(tmp_path):
    """Neither git nor `hf upload`, which obeys .gitignore, takes them, but the one named table; and
    only what is named goes into the image."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    shutil.copy(HERE / ".gitignore", tmp_path)
    stay = [".env", ".env.local", ".streamlit/secrets.toml", "customers.csv", "data/a.parquet"]
    leave = ["table.csv", "model.joblib", ".streamlit/config.toml", "train.py", "requirements.txt"]
    command = ["git", "-C", tmp_path, "check-ignore", "--no-index", *stay, *leave]
    assert subprocess.check_output(command, text=True).split() == stay
    image = (HERE / ".dockerignore").read_text().splitlines()
    patterns = [line for line in image if not line.startswith("#")]
    assert patterns[0] == "*"
    assert not [p for p in patterns if p.startswith("!") and "*" in p and p != "!*.py"]


# in a browser


def test_browser(trained, tmp_path):
    """What AppTest can't: a link reopens the form with its answer, and a file goes up, comes down."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("Debian's Chromium is not installed")
    card, path = trained["here"].card, tmp_path / "table.csv"
    path.write_text(to_csv([example["features"] for example in card["examples"]], card), newline="")
    with ExitStack() as stack:
        env = {"MODEL_PATH": str(MODEL)}
        copy = stack.enter_context(Started("bash", str(HERE / "start.sh"), **env))
        copy.wait()
        browser = stack.enter_context(playwright.sync_playwright()).chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
        )
        stack.callback(browser.close)
        page = browser.new_page()
        page.goto(copy.page)
        page.get_by_role("button", name="Predict", exact=True).click()
        page.get_by_test_id("stMetric").wait_for()
        page.goto(page.url)
        page.get_by_test_id("stMetric").wait_for()
        page.get_by_role("tab", name="Many rows").click()
        page.locator("input[type=file]").set_input_files(path)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the result").click()
        expected = ask(copy.api + "/predict/csv", path.read_bytes(), "text/csv")[1]
        assert download.value.path().read_bytes() == expected.encode()

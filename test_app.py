"""Test train.py, main_api.py, main_ui.py and start.sh with real parts: uvicorn, HTTP, AppTest.

    python -m pytest -q        # under a minute; any model in model.joblib will do

Values are worked out by hand, or by scikit-learn called directly. Two tests need more, and are
skipped without it: one a browser (Playwright and Debian's Chromium), one the command schemathesis.
"""

import csv
import gzip
import hashlib
import importlib
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
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, redirect_stdout, suppress
from datetime import date, timedelta
from functools import partial
from http.client import HTTPConnection
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # before scikit-learn is imported, as in train.py

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import uvicorn
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sklearn import metrics
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    KFold,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from starlette.applications import Starlette
from starlette.routing import Route

import train

HERE = Path(__file__).parent
MODEL = Path(os.environ.get("MODEL_PATH", HERE / "model.joblib")).resolve()
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ENV = os.environ | {"PATH": PATH, "PYTHONPATH": str(HERE), "no_proxy": "*"}
PORTS = itertools.count(20_000 + os.getpid() * 40 % 10_000)
DAYS = [date(2024, 1, 1) + timedelta(i) for i in range(60)]
CALLS = []  # of Given, for each the rows that it was fitted to, and those it was asked about
JSON, CSV = "application/json", "text/csv"
GERMAN = ["Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September"]
GERMAN += ["Oktober", "November", "Dezember"]
K, N = np.arange(1, 20), np.arange(100)
LABELS = {"x": np.concatenate([K * 0.02, 1 - K * 0.03]), "y": np.repeat(["no", "yes"], 19)}


# models whose answers can be worked out by hand


class Given(BaseEstimator):
    """Answers with its first feature; raises at 666, NaN at 777; takes a second at 1001."""

    def fit(self, X, y):
        self.fitted_, self.classes_ = X, np.unique(y)
        return self

    def predict(self, X):
        CALLS.append((self.fitted_, X))
        if 666 in X[:, 0]:
            raise ValueError("unlucky")
        slow = X[(1000 < X) & (X < 1010)]
        time.sleep(max(slow, default=1000) - 1000)
        X = np.where(X == 777, np.nan, np.nan_to_num(X))
        return X[:, :1].astype(object)  # as some that are not scikit-learn's do


class GivenLabels(ClassifierMixin, Given):
    """Takes its first feature for the probability of the second label."""

    def predict_proba(self, X):
        return np.stack([1 - X[:, 0], X[:, 0]], axis=1)

    def predict(self, X):
        return self.classes_[(X[:, 0] > 0.5).astype(int)]


class Lookup(Given):
    """Answers with what it was made with for its first feature."""

    def __init__(self, answers=None):
        self.answers = answers

    def predict(self, X):
        return np.array([self.answers[x] for x in X[:, 0]])


class OddLabels(GivenLabels):
    """Answers as some that are not scikit-learn's do: float32, and a column of objects."""

    def predict_proba(self, X):
        return super().predict_proba(X).astype(np.float32)

    def predict(self, X):
        return self.classes_[(X[:, :1] > 0.6).astype(int)].astype(object)


def quick(card):
    """Stand in for build_model(), whose candidates take a second."""
    linear = LinearRegression() if card["task"] == "regression" else LogisticRegression()
    return make_pipeline(SimpleImputer(), StandardScaler(), linear)


# tables, and models trained on them


def csv_of(columns):
    """Return a table from its columns by name."""
    rows = zip(*columns.values())
    return "\n".join(",".join(map(str, row)) for row in [columns, *rows])


def fit(folder, table, *options, build=quick):
    """Train as `python train.py` does, on a table or without; return what it saves and prints."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.joblib"
    if table is not None:
        (folder / "table.csv").write_text(table, newline="")
        options = (str(folder / "table.csv"), *options)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["train.py", *options])
        patch.setattr(train, "MODEL_PATH", path)
        patch.setattr(train, "build_model", build)
        train.run()
    return SimpleNamespace(**joblib.load(path), printed=printed.getvalue(), path=path)


def mixed() -> str:
    """Return a table with all that tables have: gaps, dates, awkward names, a cell in error."""
    names = 'id;class;_x;"say ""hi""";;a;a;model_config;Größe;back\\slash;prediction;x;kind;price'
    lines, noise = ["\ufeff" + names], np.random.default_rng(0).normal(size=200)
    for i in range(200):
        x, size = (i * 37 % 101 - 50) / 25, 1000 + i * 53 % 800 * 10
        colour, day = ["rot", "grün", "None"][i % 3], date(2023, 12, 1) + timedelta(i * 37 % 90)
        kind = "A" if x + noise[i] > 0.5 else "B" if colour == "rot" else "c d"
        price = size / 100 + 5 * x + 4 * day.weekday() + 9 * (i % 4 == 1) + noise[i]
        cells = [i + 1, x, i * 7 % 9, colour if i % 7 else "?", f"{size:,.2f} €", i % 4]
        cells += ["yes" if x > 0 else "no", ["true", "FALSE"][i % 5 // 3], i % 11 if i % 5 else ""]
        cells += ["much" if i == 8 else f"{noise[i]:.2f}", i % 6, f"{day:%d,%m,%Y}"]
        cells += [{0: "", 1: "rare"}.get(i % 100, kind), f"{price:.1f}"]
        lines.append(";".join(map(str, cells)).translate({44: ".", 46: ","}))
    return "\r\n".join(lines)


# nothing is left running, and nothing fails in silence


@pytest.fixture(autouse=True, scope="session")
def interrupts():
    """Ctrl-C, also under nohup, `kill` and a closed terminal end all that was started."""
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
        signal.signal(signal.Signals[name], signal.default_int_handler)


@pytest.fixture(autouse=True)
def tracebacks(caplog):
    """Nothing that a test asks of the API leaves a traceback in its log."""
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info]


# the API in a thread, and asking it


def load_api(path, folder=HERE, **env):
    """Return a main_api.py of its own, with such settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MODEL_PATH": str(path), **env}.items():
            patch.setenv(name, value)
        patch.delitem(sys.modules, "main_api", raising=False)
        patch.syspath_prepend(folder)
        return importlib.import_module("main_api")


@contextmanager
def serve(app):
    """Serve an app in a thread, which leaves nothing behind; yield its address."""
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "it ended before it was ready"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(5)


@pytest.fixture(scope="session")
def apis(tmp_path_factory):
    """The models of most tests, side by side: what is here, and some of made-up tables."""
    folders, x = map(tmp_path_factory.mktemp, itertools.repeat("model")), np.arange(-40, 0) / 2
    c = np.random.default_rng(0).normal(size=(30, 1000))
    linear = {f"c{i}": c[i] for i in range(30)} | {"y": 3 * c[7] - 2 * c[1]}
    k = np.arange(2, 202, 2)
    steps = {"x": k, "y": k + np.where(k > 100, 10, 1) * np.where(k // 2 % 2, 1, -1)}
    sixty = FixedThresholdClassifier(GivenLabels(), threshold=0.6)
    models = {
        "here": SimpleNamespace(path=MODEL, **joblib.load(MODEL)),
        "kind": fit(next(folders), mixed(), "--target", "kind", build=train.build_model),
        "price": fit(next(folders), mixed(), build=train.build_model),
        "linear": fit(next(folders), csv_of(linear)),
        "given": fit(next(folders), csv_of({"x": x, "y": x}), build=lambda *_: Given()),
        "steps": fit(next(folders), csv_of(steps), build=lambda *_: Given()),
        "labels": fit(next(folders), csv_of(LABELS), build=lambda *_: GivenLabels()),
        "sixty": fit(next(folders), csv_of(LABELS), build=lambda *_: sixty),
    }
    with ExitStack() as stack:
        for model in models.values():
            model.url = stack.enter_context(serve(load_api(model.path).app))
            model.sha256 = hashlib.sha256(model.path.read_bytes()).hexdigest()
        yield models


@pytest.fixture(params=["here", "kind", "price", "linear"])
def api(request, apis):
    return apis[request.param]


def ask(url, body=None, kind=JSON):
    """Return the status and the answer, read as JSON where it is; send what is no text as JSON."""
    if not isinstance(body, str | bytes | None):
        body = json.dumps(body)
    data = body.encode() if isinstance(body, str) else body
    host, path = url.removeprefix("http://").split("/", 1)
    with closing(HTTPConnection(host, timeout=30)) as connection:
        method = "GET" if body is None else "POST"
        connection.request(method, f"/{path}", data, {"Content-Type": kind})
        response = connection.getresponse()
        text = response.read().decode()
    assert str(HERE) not in text  # no answer tells where the files are
    assert response.headers["Retry-After"] == ("1" if response.status == 503 else None)
    if response.headers["Content-Type"] == JSON:
        text = json.loads(text, parse_constant=pytest.fail)
    return response.status, text


def announce(url, path, kind, length, body=b"{", seconds=0.3, method="POST"):
    """Send a body of such a length, or a part; return the answer's status, None if none comes."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=seconds)
    connection.request(method, path, body, {"Content-Type": kind, "Content-Length": length})
    with closing(connection), suppress(TimeoutError):
        return connection.getresponse().status


def edit(path, edits):
    """Return the text of a file of ours, edited as a fork would."""
    code = (HERE / path).read_text()
    for old, new in edits.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    return code


def rows_of(api):
    """Return the rows of the table that the file keeps, as JSON has them."""
    rows = []
    for numbers in api.background:
        features = zip(api.card["features"], numbers)
        rows.append({f["name"]: train.decode(f, number) for f, number in features})
    return rows


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def to_csv(rows, api):
    """Return rows as the table would write them."""
    return pd.DataFrame(rows).to_csv(sep=";", decimal=api.card["decimal"], index=False)


# train.py: reading


@pytest.mark.parametrize(("text", "point", "comma", "unit"), [
    ("-5", -5, -5, ""), ("1e3", 1000, 1000, ""), ("12 %", 12, 12, "%"), ("1 234", 1234, 1234, ""),
    # one meaning, whatever the mark is, or one with each
    ("0.125", 0.125, 0.125, ""), ("0,125", 0.125, 0.125, ""), ("22.152", 22.152, 22152, ""),
    ("1,234.50 €", 1234.5, 1234.5, "€"), ("1.234,5", 1234.5, 1234.5, ""), (".5", 0.5, 0.5, ""),
    ("12'345.6", 12345.6, 12345.6, ""), ("12,34", 12.34, 12.34, ""), ("1e30", 1e30, 1e30, ""),
    ("-$1,234,567", -1234567, -1234567, "$"), ("-1e-3", -0.001, -0.001, ""), ("\u22125", -5, -5, ""),
    ("1\u00a0234,5", 1234.5, 1234.5, ""), ("1\u202f234.5", 1234.5, 1234.5, ""),
    # as accountants, SAP and India write them, rounded, and with a limit
    ("($192.96)", -192.96, -192.96, "$"), ("(167)", -167, -167, ""), ("15,63-", -15.63, -15.63, ""),
    ("1,23,456", 123456, 123456, ""), ("1.2K", 1200, 1200, ""), ("$15.4 M", 15.4e6, 15.4e6, "$"),
    ("3,5 Mio. €", 3.5e6, 3.5e6, "€"), ("<2.0", 2, 2, ""), ("1:38", 98, 98, "min"),
    ("14:05:30", 845.5, 845.5, "min of h:mm:ss"), ("0:01:01.5", 1.025, 1.025, "min of h:mm:ss"), ("£1.2m", 1.2e6, 1.2e6, "£"), ("3 m", 3, 3, "m"),
    ("$20.00/hr", 20, 20, "$/hr"), ("1.2k", 1200, 1200, ""), ("4 million", 4e6, 4e6, ""),
    ("2.5 lakh", 2.5e5, 2.5e5, ""), ("3 bn", 3e9, 3e9, ""), ("5 crore", 5e7, 5e7, ""),
    # with a unit
    ("51,000 mi.", 51000, 51, "mi."), ("174g", 174, 174, "g"), ("6.1 inches", 6.1, 6.1, "inches"),
    ("USD 799", 799, 799, "USD"), ("-5 °C", -5, -5, "°C"), ("12a", 12, 12, "a"),
])  # fmt: skip
def test_read_number(text, point, comma, unit):
    """A number as people write it; the decimal mark matters where it may have two meanings."""
    assert train.split_number(text)[1] == unit
    assert train.read_number(text, ".", unit) == pytest.approx(point)
    assert train.read_number(text, ",", unit) == pytest.approx(comma)
    assert train.read_number(text, ".", "another") == (None if unit else pytest.approx(point))


@pytest.mark.parametrize("text", [
    "007", "1e31", "1e400", "1,2,3", "٣", "nan", "€", "--5", "(5", "-(5)", "55 (water)", "12:75",
    "1.2.3", "2024-01", "A 12", "5 3 1",
])  # fmt: skip
def test_read_no_number(text):
    """What has no one meaning is none; 007 is a code."""
    _, unit = train.split_number(text)
    assert train.read_number(text, ".", unit) is train.read_number(text, ",", unit) is None


@pytest.mark.parametrize(("content", "names", "rows"), [
    ("a\tb\n1\tü\n".encode("utf-16"), ["a", "b"], [["1", "ü"]]),
    ("a;Größe €\n1;–\n".encode("cp1252"), ["a", "Größe €"], [["1", "–"]]),
    ("a|b\n1|2".encode("utf-8-sig"), ["a", "b"], [["1", "2"]]),
    (b'"a\nb",c\r\n\r\n1,"x, y"\r\n', ["a\nb", "c"], [["1", "x, y"]]),
    (b"a;b\n1,5;2,5\n1,25;3\n", ["a", "b"], [["1,5", "2,5"], ["1,25", "3"]]),
    (b"a;b, in m, or ft\n1;2\n3;4\n", ["a", "b, in m, or ft"], [["1", "2"], ["3", "4"]]),
    (b"a, b;c\n1,5;2\n2,5;3\n", ["a, b", "c"], [["1,5", "2"], ["2,5", "3"]]),
    (b"a,b;c,d\n1,2;3,4\n", ["a", "b;c", "d"], [["1", "2;3", "4"]]),
    ("a,b\n1\u20282,3\x85\n".encode(), ["a", "b"], [["1\u20282", "3\x85"]]),
    (b"a,a,,a\n1,2,3,4\n", ["a", "a (2)", "column 3", "a (4)"], [["1", "2", "3", "4"]]),
    (b"a,b,c\n1\n1,2,3,4\n", ["a", "b", "c"], [["1", "", ""], ["1", "2", "3", "4"]]),
    # lines above the header, blanks before quotes, and within cells
    (b"a,b\nr1,1,2\nr2,3,4\n", ["column 1", "a", "b"], [["r1", "1", "2"], ["r2", "3", "4"]]),
    (b"a,b\n1,2,\n3,4,\n", ["a", "b"], [["1", "2", ""], ["3", "4", ""]]),
    (b"Sales,,\n,,\na,b,c\n1,2,x\n1,3,y\n", ["a", "b", "c"], [["1", "2", "x"], ["1", "3", "y"]]),
    (b"Bank\nland,1990,1991\nA,2,3\nB,2,3\n", ["land", "1990", "1991"], [["A", "2", "3"], ["B", "2", "3"]]),
    (b"Sales of 2024\na;b;c\n1,5;2;3\n1,5;2;3\n", ["a", "b", "c"], [["1,5", "2", "3"]] * 2),
    (b'a, b\n1, "x, y"\n', ["a", "b"], [["1", "x, y"]]), (b"a,b\n1, 2 \n", ["a", "b"], [["1", " 2 "]]),
    (b"a\n1,5\n2,5\n", ["a"], [["1,5"], ["2,5"]]),  # no header has a number
    # two stray quotes make no row of many, a cell may have several lines
    (b'a,b,c\n1,"x,2\n3,y,4\n5,"z,6\n7,u,8\n', ["a", "b", "c"],
     [["1", "x", "2"], ["3", "y", "4"], ["5", "z", "6"], ["7", "u", "8"]]),
    (b'a,b,c\n1,x,2\n5,"z,6\n7,u,8\n', ["a", "b", "c"],
     [["1", "x", "2"], ["5", "z", "6"], ["7", "u", "8"]]),
    (b'a,b,c\n1,"x\ny",2\n', ["a", "b", "c"], [["1", "x\ny", "2"]]),
    ('a,b\n1,2\n"x, y\u2028z",3\n'.encode(), ["a", "b"], [["1", "2"], ["x, y\u2028z", "3"]]),
    # not UTF-8, or not quite
    ("ä,b\n".encode() + "ü,ö\n".encode() * 9 + b"\xfc,1\n", ["ä", "b"], [["ü", "ö"]] * 9 + [["\ufffd", "1"]]),
    (b"a,b\n" + b'1,"see;"""\n' * 20_000, ["a", "b"], [["1", 'see;"']] * 20_000),
    (b"a,b\n" + b"x" * 200_000 + b",2\n", ["a", "b"], [["x" * 200_000, "2"]]),
    (b"", [], []),
    (b"\x89PNG\r\n\x00\x00", "the file is no text", None),
    (b'a,b\n"1,2\n3\n', "a quote near its end is never closed", None),
    (b"," * 50_000_000, "a row has over 1,000,000 characters", None),
    (b"," * 5_000, "more than 2,000 columns", None),
])  # fmt: skip
def test_read_table(content, names, rows):
    """A table as people export it; what is none is refused at once, since strangers send files."""
    started = time.monotonic()
    try:
        found, _, cells = train.read_table(content)
        assert (found, list(cells)) == (names, rows)
    except ValueError as error:
        assert (rows, names in str(error)) == (None, True), error
    assert time.monotonic() - started < 2


def test_decimal(tmp_path):
    """Three digits behind a mark may be thousands: what is assumed is noted, and can be changed."""
    a = np.arange(20) ** 2 % 7
    table = csv_of({"x": ["1.234", "1.235"] * 10, "a": a, "y": [1, 2, 3, 4] * 5})
    assert fit(tmp_path, table).card["notes"] == []  # English, as the comma between the cells says
    saved = fit(tmp_path, table, "--decimal", ",")
    assert (saved.card["decimal"], saved.background[:, 0].min()) == (",", 1234)
    assert "keeping the Pipeline, fitting it to 20 rows\n" in saved.printed
    assert saved.card["classes"] == ["1", "2", "3", "4"]  # five rows of each are enough
    (tmp_path / "model.joblib").unlink()  # which remembers the mark
    saved = fit(tmp_path, table.replace(",", ";"))
    assumed = "'1.234' is read with a decimal comma: --decimal . overrides"
    assert (saved.card["decimal"], saved.card["notes"][0]) == (",", assumed)
    # each column has its own, where its cells tell
    lines = ["x|z|y", *(f"{i}.5|1,5|{i % 4}" for i in range(20)), *["1.234|1.234|1"] * 5]
    saved = fit(tmp_path / "two", "\n".join(lines))
    assert [saved.background[:, place].max() for place in (0, 1)] == [19.5, 1234]
    assert [feature["decimal"] for feature in saved.card["features"]] == [".", ","]


@pytest.mark.parametrize(("texts", "feature", "refused"), [
    (["2,5", "7"], {}, None), (["2,5", "3,5"], {}, None),  # these have one meaning
    (["2,5", "3,5", "1.234"], {}, "'x' seems to have another decimal mark than '.'"),
    (["2,5", "3,5", "1.234"], {"decimal": ","}, None),
    (["2,5", "3.5", "1.234"], {}, None),  # a typing error, and who knows which
    (["13/02/2024", *["1/14/2024"] * 2], {"type": "date", "format": "%m-%d-%Y"}, None),
    (["13/02/2024", "14/2/2024"], {"type": "date", "format": "%m-%d-%Y"}, "day and month the other"),
    (["13/02/2024", "3/4/2024"], {"type": "date", "format": "%d-%m-%Y"}, None),
    (["2024-02-13", "2024-03-04"], {"type": "date", "format": "%m-%d-%Y"}, None),
    (["03/04/2024", "12/05/2024"], {"type": "date", "format": "%d-%m-%Y"}, None),  # either
])  # fmt: skip
def test_check_file(texts, feature, refused):
    """Rows to predict may not mean thousands, or March, where training meant parts, or April."""
    card = {"decimal": ".", "told": {}, "features": [{"name": "x", "type": "number"} | feature]}
    with pytest.raises(ValueError, match=re.escape(refused)) if refused else nullcontext():
        train.check_file({"x": texts}, card)


def test_dates(tmp_path):
    """Dates in any usual format become days since 1970-01-01, in UTC where the text says so."""
    days = [date(2023, 12, 31) + timedelta(5 * i) for i in range(30)]
    layouts = ["%d.%m.%Y", "%m/%d/%Y", "%Y%m%d", "%d-%b-%y", "%b %d %Y"]
    layouts += ["%d.%m.%Y 18:00", "%m/%d/%Y 06:00:00 GMT"]
    layouts += ["%A, %d %B %Y", "%d%b%Y 6:00 PM", "%b %d, %Y 18:00", "%d/%m/%y 18:00"]
    layouts += ["%Y-%m-%d 6:00 PM", "%Y-%m-%d 18:00:00 UTC", "%Y-%b-%d"]
    table = {layout: [f"{day:{layout}}" for day in days] for layout in layouts}
    table["German"] = [f"{day:%d}. {GERMAN[day.month - 1]} {day:%Y}" for day in days]
    clocks = itertools.cycle(["T23:00+01:00", "T00:00+02:00"])  # 22:00 in UTC, or of the day before
    table["ISO"] = [f"{day}{clock}" for day, clock in zip(days, clocks)]
    few = [date(2024, i * 5 % 12 + 1, 25 if i > 27 else i % 12 + 1) for i in range(30)]
    table["few"] = [f"{day:%d/%m/%Y}" for day in few]  # two tell day from month
    table["fine"] = [f"{day} 01:02:03.{i:06}" for i, day in enumerate(days, 123450)]
    quoted = {name.replace(",", ""): [f'"{text}"' for text in table[name]] for name in table}
    table = dict(zip(quoted, table.values()))
    card = fit(tmp_path, csv_of(quoted | {"y": np.arange(30) % 7 / 2})).card
    X, problems = train.encode(table, card)
    for feature, column in zip(card["features"], X.T):
        assert train.read_date(feature["maximum"]) == column.max()
    expected = 19722 + 5 * np.arange(30)  # 54 years with 13 leap days, less one day
    shifts = [0, 0, 0, 0, 0, 0.75, 0.25, 0, 0.75, 0.75, 0.75, 0.75, 0.75, 0, 0]
    shifts += [22 / 24 - np.arange(30) % 2]
    for column, shift in zip(X.T, shifts):
        assert column == pytest.approx(expected + shift)
    assert X[:, 16].tolist() == [(day - date(1970, 1, 1)).days for day in few]
    assert (problems, card["features"][0]["minimum"]) == ([], "2023-12-31")
    assert card["features"][5]["maximum"] == "2024-05-24T18:00:00"


# train.py: what a column is


def test_train_describes(apis):
    """Each column is kept as it is named, with what its values are; so are rows and cells."""
    x = {"name": "x", "type": "number", "integer": False, "nullable": False, "minimum": -20.0}
    x |= {
        "decimal": ".",
        "maximum": -0.5,
        "default": -10.5,
        "counts": [2] * 20,
        "missing": 0,
        "gaps": [],
    }
    assert apis["given"].card["features"] == [x]
    assert len(apis["given"].card["examples"]) == 5
    card, printed = apis["kind"].card, apis["kind"].printed
    assert (card["decimal"], card["classes"], card["rows"]) == (",", ["A", "B", "c d"], 196)
    features = {f["name"]: f for f in card["features"]}
    names = ["class", "_x", 'say "hi"', "column 5", "a", "a (7)", "model_config", "Größe"]
    assert list(features) == [*names, "back\\slash", "prediction", "x", "price"]
    assert "".join(f["type"][0] for f in features.values()) == "nncnncbnnndn"
    assert [n for n, f in features.items() if f["nullable"]] == ['say "hi"', "Größe", "back\\slash"]
    whole = ["_x", "column 5", "a", "Größe", "prediction"]
    assert [n for n, f in features.items() if f.get("integer")] == whole
    assert (features["column 5"]["minimum"], features["column 5"]["maximum"]) == (1030, 8980)
    few = "'kind' is in fewer than 5 rows: 'rare' in row 2, 'rare' in row 102"
    identifier = {"column": "id", "reason": "an identifier, by its name; rename it to keep it"}
    much = {"column": "back\\slash", "cells": 1, "reason": "'much' in row 9"}
    gaps = "'kind' is empty or NA: '' in row 1, '' in row 101"
    rows = [{"rows": 2, "reason": gaps}, {"rows": 2, "reason": few}]
    assert card["dropped"] == [*rows, identifier, much]
    counts = ("196 rows, 14 columns; classification", f"{features['Größe']['missing']} gaps")
    for words in (*counts, few, apis["kind"].sha256):
        assert words in printed
    boosting = ("gradient boosting", "slow gradient boosting")
    for name in ("logistic regression", *boosting):
        assert f"\n  {name:23}log loss" in printed
    # a linear model knows weekdays
    card = apis["price"].card
    assert (card["estimator"], card["metrics"]["r2"] > 0.97) == ("ridge regression", True)


def test_train_describes_or_leaves_out(tmp_path):
    """What no model can use is left out; late or rare values spoil nothing."""
    n, words = np.arange(440), ["one", "two", "three", "four", "five", "six"]
    columns = {
        "column 1": (3 * n, "an identifier, by its name; rename it to keep it"),
        "from 0": (n, "an identifier: it counts the rows; shuffle them to keep it"),
        "number": (n + 1, "an identifier: it counts the rows"),
        "dose": (n * 7 % 440, "number"),
        "followers": ([f"{i % 9}.5{'mk'[i % 2]}" for i in n], "category"),  # millions, meters?
        "customer_id": (n // 2 * 7, "an identifier, by its name"),
        "order id": ([f"A{i // 4}" for i in n], "an identifier, by its name"),
        "name": ([f"Anna {i}" for i in n], "440 texts in 440 cells are too many"),
        "story": ([" ".join(words[i % 2 :]) + str(i // 2) for i in n], "free text"),
        "same": (["x"] * 440, "always 'x'"),
        "gaps": (["NA"] * 440, "empty"),
        "many": ([f"w{i * 2 // 3}" for i in n], "293 texts in 440 cells are too many"),
        "seldom": (np.where(n < 9, n, ""), "known in only 9 rows"),
        "ten": (np.where(n < 10, n * 7, ""), "number"),
        "height": (n + 58, "number"),
        "year": (n + 1970, "number"),  # so the rows are in order of time
        "price index": (n * 5 % 97, "number"),
        "late": (np.where(n < 300, "", n * 53 % 97), "number"),
        "words": (np.where(n % 5, n * 37 % 101 / 4, "None"), "number"),
        "zip": ([f"{9000 + i % 60 * 1000:05}" for i in n], "category"),
        "sizes": ([i % 101 if i % 5 else "SML"[i % 3] for i in n], "category"),
        "closed": ([DAYS[i % 60] if i % 50 else "open" for i in n], "date"),
        "towns": ([f"t{i % 50}" if i % 9 else f"hamlet {i}" for i in n], "category"),
        "teams": ([f"t{i % 40}" if i % 3 else f"u{i}" for i in n], "category"),
        "ages": (["<5", "5", ">9", ">80"] * 110, "category"),
        "miles": ([f'"{1 + i * 7 % 97},000 mi."' if i % 20 else "12" for i in n], "number"),
        "dollars": ([["$5", "€6"][i % 2] + f"{i % 90}.10" for i in n], "category"),
        "some": (["x", ""] * 220, "category"),
        "never": (["false", ""] * 220, "boolean"),
        "y": ([*n[:439] * 37 % 101 + n[:439] % 21, "sold"], "'y' is no number: 'sold' in row 440"),
        "unused": ([""] * 440, "empty"),  # so the target is the column before
    }
    text = "sep=,\r\n" + csv_of({name: cells for name, (cells, _) in columns.items()})
    saved = fit(tmp_path, text)
    found = {feature["name"]: feature["type"] for feature in saved.card["features"]}
    for entry in saved.card["dropped"]:
        found.setdefault(entry.get("column", "y"), entry["reason"])
    for name, (_, expected) in columns.items():
        assert found[name].startswith(expected), name
    assert "88 gaps   88 unreadable: 'None' in row 1, " in saved.printed
    assert "can't be fitted" not in saved.printed
    assert saved.card["features"][-1]["counts"] == [220, 0]
    features = {feature["name"]: feature for feature in saved.card["features"]}
    # a row to predict may have the same words, other towns, and cells without a unit
    cells = [("None", "words", math.nan), ("5 mi.", "miles", 5), ("5", "miles", 5)]
    cells += [("5 km", "miles", None), ("elsewhere", "towns", 50)]
    for text, name, number in cells:
        X, problems = train.encode({name: [text]}, saved.card | {"features": [features[name]]})
        assert np.array_equal(X[0], [np.nan if number is None else number], equal_nan=True)
        assert len(problems) == (number is None)
    kinds = {name: features[name].get("open") for name in ("zip", "towns", "teams", "ages")}
    assert kinds == {"zip": None, "towns": True, "teams": True, "ages": None}
    assert sum(features["towns"]["counts"]) == 439
    assert features["towns"]["counts"][-1] == 49  # once each
    assert train.decode(features["towns"], 50) == "another"
    assert (features["miles"]["unit"], features["miles"]["maximum"]) == ("mi.", 97000)


def test_one_hot():
    """Each choice has a column of its own: so the middle one of three can be the highest. A gap may
    tell, too, if there are enough of them."""
    three = [{"type": "category", "choices": ["a", "b", "c"], "missing": 0, "nullable": False}]
    card = {"task": "regression", "rows": 27}
    ridge = train.build_model(card | {"features": three})["ridge regression"]
    X, y = np.array([[0.0], [1], [2]] * 9), [0, 9, 0] * 9
    assert ridge.fit(X, y).predict(X) == pytest.approx(y, abs=0.1)
    for missing, gap in ((9, 9), (1, 4.5)):  # of one row it is not learned
        features = [{"type": "number", "missing": missing, "nullable": True}]
        ridge = train.build_model(card | {"features": features})["ridge regression"]
        found = ridge.fit([[math.nan], [0.5]] * 9, [9, 0] * 9).predict([[math.nan]])
        assert found == pytest.approx([gap], abs=0.1)
    # what is missing is the median, where nothing else is learned of it
    found = ridge.fit([[0], [0], [9]] * 9, [0, 0, 9] * 9).predict([[math.nan], [0]])
    assert found[0] == found[1]
    two = [
        *three,
        {"type": "number", "missing": 0, "nullable": False},
        three[0] | {"choices": ["d", "e"]},
    ]
    ridge = train.build_model(card | {"features": two})["ridge regression"]
    X = np.array([[0, 7, 1], [2, 8, 0], [1, 9, math.nan], [9, 9, 9]])
    found = ridge[0].fit(X).transform(X)[:, 1:]
    by_hand = [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0] * 5]
    assert found.tolist() == by_hand


def test_train_later_classes():
    """Each class needs rows that all folds learn from, and rows that one of them tests."""
    # the day from which a class has no rows, a day's rows, the folds
    for end, rows, measured in (
        (120, 1, "5 folds, later rows only"), (80, 1, "5 folds, shuffled"),
        (120, 500, "10,000 rows kept out, later rows only"),
        (80, 500, "12,000 rows kept out, shuffled"),
    ):  # fmt: skip
        day = np.repeat(np.arange(120.0), rows)
        y = np.where((day < end) & (day % 2 > 0), "a", "b")
        X, feature = np.stack([day, np.arange(len(y))], axis=1), {"name": "day", "type": "date"}
        features = [feature, {"name": "x", "type": "number"}]
        card = {"classes": ["a", "b"], "features": features, "notes": []}
        train.make_folds(X, y, None, card)
        assert card["measured"] == measured


@pytest.mark.parametrize(("target", "task"), [
    (N % 10, "classification"), (N % 11, "regression"), (N % 10 / 2, "regression"),
    (N % 12 * 150 + 17 * (N % 12 == 5), "classification"),  # codes, of parties say
    (N % 12 * 150, "regression"), (N % 12 * 150 + 0.5, "regression"),  # prices
    (N % 12 * 15 + (N % 12 == 5), "regression"),
    ([*N[:97], *"abc"], "regression"), ([*"+-"] * 50, "classification"), ([*N[:40] / 2, *["no", "yes"] * 30], "classification"),
])  # fmt: skip
def test_train_guesses(target, task, tmp_path):
    """Few whole numbers are labels, also codes that are far apart; others are a quantity."""
    (tmp_path / "table.csv").write_text(csv_of({"x": N * 7 % 100, "y": target}))
    assert train.prepare(tmp_path / "table.csv")[-1]["task"] == task


@pytest.mark.parametrize(("group", "folds"), [
    ([f"g{i % 3}" for i in range(60)], 3), ([f"g{i // 6}" for i in range(60)], 5),
])  # fmt: skip
def test_train_groups(group, folds, tmp_path):
    """No group is learned from and tested, however few there are, and however rare a class is."""
    CALLS.clear()
    x = np.array([int(name[1:]) for name in group]) + np.arange(60) / 100
    options = ("--group", "site", "--task", "regression")
    saved = fit(
        tmp_path, csv_of({"x": x, "site": group, "y": x}), *options, build=lambda *_: Given()
    )
    assert saved.card["measured"] == f"{folds} folds, by whole groups of 'site'"
    assert {"column": "site", "reason": "by --drop or --group"} in saved.card["dropped"]
    for fitted, X in CALLS:
        known = set(fitted[:, 0] // 1)
        assert len(fitted) == 60 or not known & set(X[:, 0] // 1)
    with pytest.raises(SystemExit):
        fit(tmp_path, csv_of({"x": x, "site": ["one"] * 60, "y": x}), *options)
    # a class of one group alone is never known where it is tested
    labels = np.where(x < x.min() + 1, "rare", np.where(np.arange(60) % 2, "a", "b"))
    saved = fit(tmp_path / "labels", csv_of({"x": x, "site": group, "y": labels}), *options[:2])
    assert saved.card["metrics"]["log_loss"] > 1


def test_train_before(tmp_path):
    """The second model knows the first: its options, how good it was, and how good it is now."""
    a = np.random.default_rng(2).normal(size=(4, 60))
    table = {"a": a[0], "b": a[1], "c": a[2], "y": a[0] + a[3] / 9}
    fit(tmp_path, csv_of(table), "--title", "What?", "--drop", "b, c")
    saved = fit(tmp_path, csv_of(table | {"d": a[1]}), "--target", "y")
    assert saved.card["title"] == "What?"
    for words in ("as the last time: --title What?\n", "as the last time: --drop b,c\n",
                  "before: Pipeline, of 60 rows, ", "  new: d\n",
                  "on these rows, of which it may know some"):  # fmt: skip
        assert words in saved.printed
    saved = fit(tmp_path, csv_of(table), "--drop", "", "--title", "")
    assert [feature["name"] for feature in saved.card["features"]] == ["a", "b", "c"]
    assert (saved.card["title"], "  gone: d\n" in saved.printed) == ("Predict y", True)
    # a model that takes no gap is not asked about one
    saved = fit(tmp_path, csv_of(table), build=lambda *_: LinearRegression())
    gaps = csv_of(table | {"a": ["", *a[0][1:]]})
    assert "before: LinearRegression, " in fit(tmp_path, gaps).printed
    # another table's target may have the same name
    other = csv_of({"z": a[0], "w": a[1], "y": a[2]})
    fit(tmp_path, csv_of(table), "--title", "What?")
    assert fit(tmp_path, other).card["title"] == "Predict y"
    other = csv_of({"z": a[0], "w": a[1], "q": a[2] > 0})
    assert "it replaces a model of something else: 'Predict y'" in fit(tmp_path, other).printed
    # a shell's bytes that are no UTF-8
    saved = fit(tmp_path, other, "--title", "caf\udce9")
    assert saved.card["title"] == saved.card["told"]["title"] == "caf?"


@pytest.mark.parametrize(("columns", "options", "words"), [
    ({}, [], "the table has no rows, or one column"),
    ({"a": [1, 2]}, [], "the table has no rows, or one column"),
    ({"a": [], "y": []}, [], "the table has no rows, or one column"),
    ({"a": [1, 2, "3,4"], "y": [0, 1, 0]}, [], "row 3 has 3 cells, the header 2"),
    ({"a": [1, 2, "3,\\"], "y": [0, 1, 0]}, [], "is a quote in a cell written"),
    ({"a": [1, 2], "y": [0, 1]}, ["--encoding", "cp0"], "'cp0' is no encoding of this file"),
    ({"price": [1], "y": [0]}, ["--target", "cost"], "the table has no column 'cost', but these: price, y"),
    ({"a": [1, 2] * 20, "y": ["yes", ""] * 20}, [], "'y' has 1 different values in 20 usable rows"),
    ({"a": [1, 2] * 20, "y": [0.5] * 40}, ["--task", "regression"], "'y' has 1 different values"),
    ({"a": [1, 2] * 4, "y": [0, 1] * 4}, [], "in 0 usable rows: it needs 2 to 100 in 10; see --task"),
    ({"a": [1, 2] * 4, "y": [1, 2, 3, 4] * 2}, [], "4 different values in 8 usable rows"),  # quantity
    ({"a": [1] * 40, "y": [0, 1] * 20}, [], "no column is left to predict from"),
    ({"a": np.arange(505) / 2, "y": [f"is {i % 101}" for i in range(505)]}, [], "101 different"),
    (None, ["nowhere.csv"], "No such file or directory: 'nowhere.csv'"),
])  # fmt: skip
def test_train_refuses(columns, options, words, tmp_path, capsys):
    """Exit code 2, one line on stderr, and the old model is still there."""
    (tmp_path / "model.joblib").write_text("old")
    table = None if columns is None else csv_of(columns)
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, table, *options)
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n"), error[:10]) == (2, 1, "train.py: ")
    assert words in error
    assert (tmp_path / "model.joblib").read_text() == "old"


# train.py: a model that was there before


def odd():
    """Return a table of which pandas.read_csv makes other cells than its texts, row by row."""
    k, kinds = np.arange(60), ["007", "010"]
    return csv_of({
        "code": [kinds[i % 2] for i in k],  # 7 and 10
        "whole": k * 7 % 50,
        "some": [i * 3 % 40 if i % 9 else "" for i in k],  # 3.0
        "blank": [["WD ", "New"][i % 5 % 2] for i in k],
        "word": [["a", "None", "b"][i % 3] for i in k],  # None is a gap
        "mark": [["x", "y", "?"][i % 7 % 3] for i in k],  # ? is none
        "flag": [["True", "FALSE"][i // 3 % 2] for i in k],
        "maybe": [["true", "false", ""][i % 11 % 3] for i in k],
        "day": [f"{DAYS[i]} 0{i % 9}:30" if i % 8 else "" for i in k],
        "when": [f"{DAYS[-i]:%d.%m.%Y}" if i % 9 else "" for i in k],
        "moment": [f"{DAYS[i]}T0{i % 9}:30:{i:02}" for i in k],
        "unit": [f"{i * 17 % 60}.5 kg" for i in k],
        "key_id": [f"k{i * 31 % 60}" for i in k],
        "same": [1] * 60,
        "y": [["no", "yes"][i * 5 % 7 % 2] for i in k],
    })  # fmt: skip


class ByName(ClassifierMixin, BaseEstimator):
    """Takes a DataFrame only, and looks at all of it: at types and at texts."""

    def fit(self, frame, y):
        self.feature_names_in_, self.classes_ = np.array(frame.columns), np.unique(y)
        return self

    def predict_proba(self, frame):
        self.jobs = joblib.effective_n_jobs(-1)  # more make the answer for one row slower
        looks = [f"{frame.dtypes.to_dict()}{row}" for row in frame.to_numpy(object).tolist()]
        shares = [[hashlib.sha256(look.encode()).digest()[0] / 256] for look in looks]
        others = np.zeros((len(frame), len(self.classes_) - 2))
        return np.hstack([shares, 1 - np.array(shares), others])

    def predict(self, frame):
        return self.classes_[self.predict_proba(frame).argmax(axis=1)]


def give(folder, table, model, *options, target="y", **fits):
    """Save a fitted model as a notebook does, and serve it."""
    joblib.dump(model, folder / "notebook.joblib")
    given = ["--model", str(folder / "notebook.joblib"), "--target", target]
    return fit(folder, table, *given, *options, **fits)


@pytest.mark.parametrize(("table", "options"), [
    (odd(), {}),
    (mixed(), {"sep": ";", "decimal": ","}),
])  # fmt: skip
def test_given_frame_is_that_of_pandas(table, options, tmp_path):
    """Of the array comes again what pandas.read_csv made of the table, cells and their types."""
    frame = pd.read_csv(io.StringIO(table.lstrip("\ufeff")), **options)
    names, _, rows = train.read_table(table.encode())
    target = "y" if "y" in frame else "kind"
    known = frame[frame[target].notna() & (frame[target] != "rare")]
    features = known.drop(columns=target).iloc[:, ::-1]
    saved = give(tmp_path, table, ByName().fit(features, known[target]), target=target)
    same = f"same answers as from pandas.read_csv(): {len(known)} of {len(known)} rows\n"
    assert same in saved.printed
    in_order = [name for name in names[::-1] if name != target]
    assert [feature["name"] for feature in saved.card["features"]] == in_order
    rows = np.array(list(rows), object)[known.index]
    X, problems = train.encode(dict(zip(names, zip(*rows))), saved.card)
    assert problems == []
    features = features.reset_index(drop=True)
    pd.testing.assert_frame_equal(saved.model.make_frame(X), features)
    saved.model.predict_proba(X)
    assert saved.model.estimator_.jobs == 1
    for row in range(40):
        one = features[row : row + 1].reset_index(drop=True)
        pd.testing.assert_frame_equal(saved.model.make_frame(X[[row]]), one)


NUMBERS = np.arange(110) * 37 % 110
BY_NAME = make_column_transformer((OneHotEncoder(), ["text"]), remainder="passthrough")
FOREST = make_pipeline(BY_NAME, RandomForestClassifier(10, n_jobs=-1, random_state=0))
LOG = TransformedTargetRegressor(
    make_pipeline(BY_NAME, RandomForestRegressor(10, n_jobs=-1, random_state=0)),
    func=np.log,
    inverse_func=np.exp,
)


@pytest.mark.parametrize(("model", "target", "labels", "note"), [
    (FOREST, NUMBERS // 10, NUMBERS // 10, ""),  # "10" is before "2"
    (FOREST, NUMBERS // 60 == 1, NUMBERS // 60 == 1, ""),
    (FOREST, np.where(NUMBERS < 60, "no", "yes"), NUMBERS // 60, "0 is 'no', 1 is 'yes'"),
    (FOREST, np.array(["low", "mid", "high"])[NUMBERS // 40], NUMBERS // 40, "2 is 'high'"),
    (FOREST, NUMBERS // 20 * 2, NUMBERS // 20, "2 is '4', 3 is '6', 4 is '8', 5 is '10'"),
    (FOREST, NUMBERS // 60, (NUMBERS // 60).astype(str), ""),
    (GridSearchCV(FOREST, {"randomforestclassifier__max_depth": [2]}, cv=2), NUMBERS // 60,
     NUMBERS // 60, ""),
    (LOG, NUMBERS + 1.5, NUMBERS + 1.5, ""),
])  # fmt: skip
def test_given_model(model, target, labels, note, tmp_path):
    """The very model is served: its answers for each row, over HTTP; measured on unseen rows."""
    k = np.arange(110)
    columns = {"text": np.where(k % 3, "b ", "a"), "x": NUMBERS, "z": k * 7 % 13, "y": target}
    frame = pd.read_csv(io.StringIO(csv_of(columns)))[["z", "text", "x"]]
    model = clone(model).fit(frame, labels)
    saved = give(tmp_path, csv_of(columns), model)
    assert "same answers as from pandas.read_csv(): 110 of 110 rows" in saved.printed
    assert note in "".join(saved.card["notes"]) + "."

    # each label of the model as the table spells it
    spelled = dict(zip(labels.tolist(), map(str, target.tolist())))
    answers = model.predict(frame)
    with serve(load_api(saved.path).app) as url:
        _, scored = ask(url + "/predict/csv", csv_of(columns), CSV)
    scored = pd.read_csv(io.StringIO(scored), dtype={"prediction": str})
    if "classes" in saved.card:
        assert scored["prediction"].tolist() == [spelled[label] for label in answers.tolist()]
        split, method = StratifiedKFold(5, shuffle=True, random_state=0), "predict_proba"
        loss = metrics.log_loss
    else:
        np.testing.assert_allclose(scored["prediction"].astype(float), answers)
        split, method = KFold(5, shuffle=True, random_state=0), "predict"
        loss = metrics.root_mean_squared_error
    folds = list(split.split(frame, target.astype(str)))
    unseen = loss(labels, cross_val_predict(clone(model), frame, labels, cv=folds, method=method))
    assert next(iter(saved.card["metrics"].values())) == pytest.approx(unseen)
    assert unseen > 1.2 * loss(labels, getattr(model, method)(frame))
    assert saved.card["measured"] == "5 folds, shuffled, models like the one that is served"


def test_given_labels_of_an_encoder(tmp_path):
    """Numbers that a model's answers don't tell are in the order of LabelEncoder."""
    columns = {"x": NUMBERS, "y": np.where(NUMBERS > 30, "no", "yes")}
    frame = pd.DataFrame({"x": NUMBERS})
    model = DummyClassifier().fit(frame, columns["y"] == "yes")
    model.feature_names_in_ = np.array(["x"])
    saved = give(tmp_path, csv_of(columns), model)
    assert saved.model.labels == {"no": False, "yes": True}
    assert saved.model.predict_proba(np.array([[5.0]]))[0].argmax() == 0


def test_given_model_of_an_array(tmp_path):
    """A model without names takes the columns of the table as they are."""
    X, y = np.stack([K, K % 5], axis=1), K * 2.5
    columns = {"a": X[:, 0], "b": X[:, 1], "y": y}
    model = LinearRegression().fit(X, y)
    saved = give(tmp_path, csv_of(columns), model)
    with warnings.catch_warnings(action="error"):
        assert saved.model.predict(X.astype(float)) == pytest.approx(y)


def test_given_model_is_another(tmp_path):
    """Where the array can't tell cells apart, the first of them is named."""
    cells = ["WD", "WD ", "New", ""] * 20
    columns = {"kind": cells, "x": np.arange(80) % 7, "y": np.arange(80) % 2}
    frame = pd.read_csv(io.StringIO(csv_of(columns)))
    saved = give(tmp_path, csv_of(columns), ByName().fit(frame[["kind", "x"]], frame.y))
    words = "60 of 80 rows; not of row 2, where 'kind' is 'WD' instead of 'WD '"
    assert f"same answers as from pandas.read_csv(): {words}" in saved.card["notes"]


class Unlike(ByName):
    """Can't be cloned: what its constructor takes is not what it keeps."""

    def __init__(self, seeds=()):
        self.seeds = list(seeds)


def test_given_model_cannot_be_fitted_again(tmp_path):
    """It is measured as it is, and the card says that it may know the rows."""
    columns = {"x": NUMBERS, "y": NUMBERS % 2}
    frame = pd.read_csv(io.StringIO(csv_of(columns)))
    saved = give(tmp_path, csv_of(columns), Unlike([1]).fit(frame[["x"]], frame.y))
    seen = "the very model that is served, which may have seen these rows"
    assert saved.card["measured"] == f"5 folds, shuffled, {seen}"
    words = f"the scores are of {seen} (RuntimeError('Cannot"
    assert any(note.startswith(words) for note in saved.card["notes"])
    probabilities = Unlike().fit(frame[["x"]], frame.y).predict_proba(frame[["x"]])
    assert saved.card["metrics"]["log_loss"] == metrics.log_loss(frame.y, probabilities)


def test_given_model_of_frozen_parts(tmp_path):
    """What would not be fitted again knows the rows: so do its scores, which the card says."""
    columns = {"x": NUMBERS, "y": NUMBERS * 7 % 5 % 2}
    frame = pd.read_csv(io.StringIO(csv_of(columns)))
    forest = RandomForestClassifier(10, random_state=0).fit(frame[["x"]], frame.y)
    model = VotingClassifier([("a", FrozenEstimator(forest))], voting="soft")
    saved = give(tmp_path, csv_of(columns), model.fit(frame[["x"]], frame.y))
    assert saved.card["measured"].endswith("which may have seen these rows")
    assert saved.model.predict(NUMBERS[:, None] * 1.0).astype(int) == pytest.approx(
        model.predict(frame[["x"]])
    )


def weekdays(frame):
    return pd.to_datetime(frame["day"]).dt.day_of_week.to_frame()


def parsed_weekdays(frame):
    return frame["day"].dt.day_of_week.to_frame()


@pytest.mark.parametrize(("function", "parsed"), [(weekdays, []), (parsed_weekdays, ["day"])])
def test_given_model_leaves_out(function, parsed, tmp_path):
    """What a model doesn't take, or doesn't look at, is in no form; a notebook may parse dates."""
    k = np.arange(60)
    columns = {
        "id": k + 1,
        "prose": [f"row {i} has a few words of its own" for i in k],
        "day": [DAYS[i] for i in k],
        "other": k % 5,
        "y": k * 1.5,
    }
    frame = pd.read_csv(io.StringIO(csv_of(columns)), parse_dates=parsed)
    weekday = make_column_transformer((FunctionTransformer(function), ["day"]))
    model = make_pipeline(weekday, LinearRegression()).fit(frame[["prose", "day", "id"]], frame.y)
    saved = give(tmp_path, csv_of(columns), model)
    assert [feature["name"] for feature in saved.card["features"]] == ["day"]
    assert {each["column"]: each["reason"] for each in saved.card["dropped"]} == {
        "prose": "the model answers the same without it",
        "id": "the model answers the same without it",
        "other": "the model doesn't take it",
    }
    days = np.array([19_723.0, 19_724.25])[:, None]  # Monday, Tuesday
    assert saved.model.predict(days) == pytest.approx(model[-1].predict([[0], [1]]))


def test_given_model_takes_new_texts(tmp_path):
    """A text that is none of the table's is taken as the model takes it."""
    k = np.arange(27)
    columns = {"town": ["Ulm", "Bonn", "Rom"] * 9, "x": [f"k{i}" for i in k], "y": k}
    frame = pd.read_csv(io.StringIO(csv_of(columns)))
    one_hot = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["town", "x"]))
    model = make_pipeline(one_hot, LinearRegression()).fit(frame[["town", "x"]], frame.y)
    saved = give(tmp_path, csv_of(columns), model)
    assert [feature["open"] for feature in saved.card["features"]] == [True, True]
    new = pd.DataFrame({"town": ["another"], "x": ["k3"]})
    X, _ = train.encode({"town": ["Aachen"], "x": ["k3"]}, saved.card)
    assert saved.model.predict(X) == pytest.approx(model.predict(new))


@pytest.mark.parametrize(("given", "words"), [
    (None, "notebook.joblib' can't be served (FileNotFoundError: "),
    (b"", "can't be served (EOFError: ): save a fitted model"),
    (b"\x80\x04c__main__\nmy_own\n.", "can't be served (AttributeError: "),
    (b"\x80\x04cmy_prepare\nmy_own\n.", "(ModuleNotFoundError: No module named 'my_prepare'): "),
    ({"model": 1}, "can't be served (AttributeError: "),
    (LogisticRegression(), "the model can't answer for this table (NotFittedError"),
    (LinearSVC(), "(AttributeError: 'LinearSVC' object has no attribute 'predict_proba'): "),
    (LogisticRegression().fit(pd.DataFrame({"x": K, "hight": K}), K % 2),
     "answer for this table (KeyError(\"['hight'] not in index"),
    (LogisticRegression().fit(np.ones((19, 2)), K % 2),
     "the model can't answer for this table (ValueError(\"could not convert string to float: 'a'"),
    (LogisticRegression().fit(pd.DataFrame({"x": K}), K % 3),
     "the model's labels are [0, 1, 2], those of the table ['no', 'yes']"),
    (LogisticRegression().fit(pd.DataFrame({"x": K, "text": K}), K % 2),
     "the model can't answer for this table (ValueError(\"could not"),
    (ByName().fit(pd.DataFrame({"x": K, "prose": K}), K % 2),
     "the model needs column 'prose', which is free text"),
])  # fmt: skip
def test_given_model_refuses(given, words, tmp_path, capsys):
    """Exit code 2, one line on stderr."""
    prose = [f"row {i} has a few words of its own" for i in K]
    columns = {"x": K, "height": K * 2, "text": ["a", "b"] * 9 + ["a"], "prose": prose}
    path = tmp_path / "notebook.joblib"
    if isinstance(given, bytes):
        path.write_bytes(given)
    elif given is not None:
        joblib.dump(given, path)
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, csv_of(columns | {"y": ["no", "yes"] * 9 + ["no"]}), "--model", str(path))
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n"), error[:10]) == (2, 1, "train.py: ")
    assert words in error


def test_given_model_of_another_version(tmp_path, capsys):
    """It is refused, since saving it anew would hide that."""
    table = csv_of({"x": K, "y": K * 2})
    joblib.dump(LinearRegression().fit(K[:, None], K * 2), tmp_path / "new")
    old = (tmp_path / "new").read_bytes().replace(sklearn.__version__.encode(), b"0.0.0")
    (tmp_path / "old").write_bytes(old)
    with pytest.raises(SystemExit):
        fit(tmp_path, table, "--model", str(tmp_path / "old"))
    assert f"from version 0.0.0 when using version {sklearn.__version__}" in capsys.readouterr().err


def test_build_model_by_names(tmp_path, capsys):
    """A pipeline of a notebook is a candidate as any other, if it can be saved."""
    table = csv_of({"text": np.where(NUMBERS % 3, "b ", "a"), "x": NUMBERS * 2, "y": NUMBERS // 60})
    saved = fit(tmp_path, table, build=lambda *_: {"mine": train.DataFrameEstimator(FOREST)})
    assert saved.card["estimator"] == "mine"
    frame = pd.read_csv(io.StringIO(table))
    X = np.stack([NUMBERS % 3 > 0, NUMBERS * 2], axis=1).astype(float)
    expected = clone(FOREST).fit(frame[["text", "x"]], frame.y).predict_proba(frame[["text", "x"]])
    assert saved.model.predict_proba(X) == pytest.approx(expected)
    other = saved.model.make_frame(np.array([[0, 1.5], [np.nan, np.nan]]))
    pd.testing.assert_frame_equal(other, pd.DataFrame({"text": ["a", None], "x": [1.5, None]}))

    def build(*_):
        """Has a function of its own."""
        own = FunctionTransformer(lambda frame: frame[["x"]])
        return train.DataFrameEstimator(make_pipeline(own, LogisticRegression()))

    with pytest.raises(SystemExit):
        fit(tmp_path, table, build=build)
    error = capsys.readouterr().err
    assert "the models can't be saved (" in error and error.count("\n") == 1


# train.py: which model, and how good it is


def test_train_keeps_the_lower_loss(tmp_path, monkeypatch):
    """Of y = 3, 1, ... a constant c is off by the root of 1 + (c - 2)². What is better in one row
    alone is kept no more than what is no better than the dummy."""
    y, x = [3, 1] * 20, np.arange(40) / 4
    cases = [([0.21, 0.2], "dummy"), ([0.5, 0.3], "dummy")]
    table = csv_of({"x": x, "y": y})
    for offs, kept in cases:
        models = [DummyRegressor(strategy="constant", constant=2 + c) for c in offs]
        candidates = dict(zip("abc", models)) | {"no": DummyRegressor(strategy="quantile")}
        saved = fit(tmp_path, table, "--task", "regression", build=lambda *_, c=candidates: c)
        assert saved.card["estimator"] == kept
        assert saved.card["baseline"]["root_mean_squared_error"] == pytest.approx(1, rel=0.02)
        assert f"root mean squared error {math.hypot(1, offs[0]):.4g}" in saved.printed
        assert re.search("  no +can't be fitted: When using", saved.printed)
        assert "than the dummy, which ignores" in saved.card["notes"][0]
    # a single one is kept, whatever it is worth
    saved = fit(tmp_path, table, "--task", "regression", build=lambda *_: models[0])
    assert (saved.card["estimator"], saved.model.constant) == ("DummyRegressor", 2.5)
    assert "worse than the dummy" in saved.card["notes"][0]
    # a later one is better for half of the rows, or in one row alone
    a, spike = 10 * x, np.where(x < 9.7, 0, 30)
    answers = {"a": a, "b": a + spike, "c": a + (x < 5)}
    y = a + np.where(x < 5, 1, -1) + spike
    # than the dummy, better at all is enough
    answers["d"] = np.full(40, y.mean()) + np.where(x < 9.7, 0, 9)
    answers["e"] = np.full(40, -99.0)
    for names, kept in (("ab", "a"), ("ac", "c"), ("ca", "c"), ("de", "d")):
        models = {name: Lookup(dict(zip(x, answers[name]))) for name in names}
        options, build = ("--task", "regression"), partial(dict, models)
        saved = fit(tmp_path, csv_of({"x": x, "y": y}), *options, build=lambda _, b=build: b())
        assert saved.card["estimator"] == kept


def test_train_keeps_a_fit_to_all_rows(apis, tmp_path):
    """What is saved equals a fit to all rows, and what is saved next time; 100 rows stay beside."""
    names, _, rows = train.read_table(mixed().encode())
    saved, table = apis["kind"], dict(zip(names, zip(*rows)))
    known = [row for row, label in enumerate(table["kind"]) if label not in ("", "rare")]
    X, y = train.encode(table, saved.card)[0][known], np.array(table["kind"])[known]
    again = clone(saved.model).fit(X, y)
    np.testing.assert_array_equal(saved.model.predict_proba(X), again.predict_proba(X))
    assert saved.background.shape == (100, X.shape[1])
    assert {row.tobytes() for row in saved.background} <= {row.tobytes() for row in X}
    twice = fit(tmp_path, mixed(), "--target", "kind", build=train.build_model)
    assert twice.path.read_bytes() == saved.path.read_bytes()


def test_train_keeps_a_threshold(tmp_path):
    """A threshold that no row of the table comes between is obeyed for rows that do."""
    table = csv_of({"a": [0, 1] * 20, "b": [0, 1] * 20, "y": ["no", "yes"] * 20})
    careful = FixedThresholdClassifier(LogisticRegression(), threshold=0.7)
    assert not fit(tmp_path, table, build=lambda *_: careful).by_probability
    assert fit(tmp_path, table).by_probability


def test_train_measures_by_hand(apis, tmp_path):
    """Of 18 or 19 errors the 18th holds 90 %; shuffling costs the root of 2 times the weight."""
    card = apis["sixty"].card
    assert card["estimator"] == "FixedThresholdClassifier"
    assert card["uncertainty"]["thresholds"] == pytest.approx([0.64, 0.46])
    p, y = LABELS.values()
    loss, area = metrics.log_loss(y, np.stack([1 - p, p], axis=1)), metrics.roc_auc_score(y, p)
    assert [card["metrics"][key] for key in ("log_loss", "roc_auc")] == pytest.approx([loss, area])
    ends = [({"x": 0.2}, "no"), ({"x": 0.7}, "yes")]  # of the better half, the most usual one
    assert [(each["features"], each["target"]) for each in card["examples"]] == ends
    few = fit(tmp_path, csv_of({"x": K[:18] * 50, "y": K[:18] * 49}), build=lambda *_: Given()).card
    assert few["uncertainty"]["widths"] == [18]
    many = fit(
        tmp_path, csv_of({"x": np.arange(300) / 2, "y": range(300)}), build=lambda *_: Given()
    )
    assert len(many.card["uncertainty"]["widths"]) == 5
    importance = apis["linear"].card["importance"]
    assert list(importance)[:2] == ["c7", "c1"]
    expected = [3 * math.sqrt(2), 2 * math.sqrt(2), *[0] * 28]
    assert list(importance.values()) == pytest.approx(expected, rel=0.1, abs=0.01)
    assert "what matters most: c7, c1, " in apis["linear"].printed


@pytest.mark.parametrize(("name", "x", "measured", "asked"), [
    ("x", DAYS, "5 folds, later rows only", 50),
    ("x", DAYS[::-1], "5 folds, later rows only", 50),
    ("x", np.repeat(DAYS[:24], 2)[::-1], "5 folds, later rows only", 20),
    ("day", ["", *DAYS[1:]], "5 folds, later rows only", 49),
    ("x", np.arange(60) // 2 * 1.5, "5 folds, shuffled", 30),
    ("time", np.arange(60) // 4 * 1.5, "5 folds, shuffled", 15),
    ("x", np.arange(60_000) / 100, "12,000 rows kept out, shuffled", 12_000),
    ("time", np.arange(60_000) / 100, "10,000 rows kept out, later rows only", 10_000),
])  # fmt: skip
def test_train_measures_on_unseen_rows(name, x, measured, asked, tmp_path):
    """Asked about are other rows than those learned from, and later ones if they have an order."""
    CALLS.clear()
    table = csv_of({name: x, "y": np.arange(len(x)) * 7 % 13})
    saved = fit(tmp_path, table, build=lambda *_: Given())
    assert (saved.card["measured"], len(saved.model.fitted_)) == (measured, len(x))
    rows = set()
    for fitted, X in CALLS:
        if len(fitted) < len(x):
            assert not set(fitted[:, 0]) & set(X[:, 0])
            assert np.nanmax(fitted) < np.nanmin(X) or "later" not in measured
            rows |= set(X[~np.isnan(X)].tolist())
    assert len(rows) == asked
    assert "later" not in measured or max(rows) == np.nanmax(saved.model.fitted_)


NOISE = np.random.default_rng(5).normal(size=(3, 100))
A, B, _ = NOISE


@pytest.mark.parametrize(("columns", "notes"), [
    ({"a": A, "b": B, "y": sum(NOISE)}, []),
    ({"a": A, "b": B, "y": 9 * A + NOISE[2]}, ["'a' tells almost all of it: is it known"]),
    ({"a": A, "b": B, "y": NOISE[2]}, ["than the dummy, which ignores"]),
    ({"a": [f"{i % 9 + 1}/{i % 8 + 1}/2024" for i in range(100)], "b": B, "y": B + NOISE[2]},
     ["' in 'a' is read as a date, month first"]),
    # the order of the rows tells that the day is first, and the months' equal steps that it isn't
    ({"a": [f"{i % 12 + 1}/1/{2000 + i // 12}" for i in range(100)], "b": B, "y": B + NOISE[2]},
     ["in order of time, by 'a'"]),
    ({"a": [f"1/{i % 12 + 1}/{2000 + i // 12}" for i in range(100)], "b": B, "y": B + NOISE[2]},
     ["in order of time, by 'a'"]),
    ({"x": [1] * 30 + list(range(30)), "y": ["same"] * 30 + ["else"] * 30}, []),
    ({"day": DAYS, "b": B, "y": B + NOISE[2]}, ["the rows are in order of time, by 'day'"]),
    ({"day": DAYS, "y": ["old"] * 40 + ["new"] * 20},  # the first rows lack a class
     ["the rows are in order of time, by 'day'", "but not every class has early and late rows"]),
    ({"time": range(60_000), "b": np.tile(B, 600), "y": ["a", "b"] * 25_000 + ["a"] * 10_000},
     ["in order of time", "but not every class has early and late rows"]),
    # a name alone is no proof, and a column may be missing
    ({"time": np.arange(100) ** 2 // 9, "b": B, "y": B + NOISE[2]}, []),
    ({"t": 1.6e9 + 7 * np.arange(100) ** 2, "b": B, "y": B + NOISE[2]}, ["in order of time, by 't'"]),
    ({"Year": 2000 + np.arange(100) // 12, "month": np.arange(100) % 12 + 1, "y": B + NOISE[2]},
     ["in order of time, by 'year and month'", "dummy"]),
    ({"a": np.where(np.arange(100) % 20, A, -999), "b": B, "y": sum(NOISE)},
     ["-999 in 'a' is far from all others: is it a gap?"]),
    ({"a": A, "b": B, "y": np.where(np.arange(100) < 99, A + B, 5e4)},
     ["one row alone, 50,000 where about ", "dummy"]),
    ({"a": A, "b": B, "y": [*sum(NOISE)[:97], "about 7", "8 or 9", "few"]},
     ["3 of 100 rows are left out: 'y' is no number: 'about 7' in row 98, "]),
])  # fmt: skip
def test_train_notes(columns, notes, tmp_path):
    """What a careful reader should know is noted and printed, and nothing where nothing is."""
    saved = fit(tmp_path, csv_of(columns))
    assert len(saved.card["notes"]) == len(notes), saved.card["notes"]
    for words in notes:
        assert words in " ".join(saved.card["notes"])
    for note in saved.card["notes"]:
        assert f"note: {note}\n" in saved.printed


# main_api.py: right answers


def test_get(api):
    """/health, the card at /model, and a documentation of every feature with examples that work."""
    assert ask(api.url + "/health") == (200, {"status": "ok"})
    assert announce(api.url, "/health", JSON, 0, b"", method="HEAD") == 200
    assert ask(api.url + "/model") == (200, api.card | {"sha256": api.sha256})
    paths = ask(api.url + "/openapi.json")[1]["paths"]
    assert paths.keys() >= {"/health", "/model", "/predict/csv"}
    for path in ("/predict", "/predict/batch", "/explain"):
        body = paths[path]["post"]["requestBody"]
        schema = body["content"][JSON]["schema"]
        assert body["required"] is paths["/predict/csv"]["post"]["requestBody"]["required"] is True
        assert list(schema["properties"]) == [f["name"] for f in api.card["features"]]
        assert schema["additionalProperties"] is False
        responses = paths[path]["post"]["responses"]
        assert responses.keys() == {"200", "413", "415", "422", "503"}
        assert {ask(api.url + path, example)[0] for example in schema["examples"]} == {200}
    post = paths["/predict/csv"]["post"]
    assert post["responses"]["200"]["content"].keys() == {CSV}
    table = post["requestBody"]["content"][CSV]["schema"]["example"]
    status, scored = ask(api.url + "/predict/csv", table, CSV)
    scored = list(csv.reader(io.StringIO(scored), delimiter=";"))
    assert (status, len(scored)) == (200, 1 + len(api.card["examples"]))
    assert {row[-1] for row in scored[1:]} == {""}  # no problem


def test_predict(api):
    """A row, columns and a file are answered alike, as the model itself answers; null is a gap."""
    url, n = api.url + "/predict", 100_000 // len(api.card["features"])  # a body has a limit
    rows, X = (rows_of(api) * 41)[:n], np.tile(api.background, (41, 1))[:n]
    batch, predictions = ask(url + "/batch", columns_of(rows))[1], api.model.predict(X).tolist()
    columns = {"prediction": batch["prediction"]}
    if "classes" in api.card:
        shares = batch["probabilities"]
        assert (batch["prediction"], list(shares)) == (predictions, api.card["classes"])
        found = np.transpose(list(shares.values()))
        np.testing.assert_allclose(found, api.model.predict_proba(X), 1e-9, 1e-12)
        columns |= {f"probability of {label}": shares[label] for label in shares}
        columns["likely"] = [" or ".join(labels) for labels in batch["likely"]]
    else:
        assert batch["prediction"] == pytest.approx(predictions, rel=1e-9)
        columns["low"], columns["high"] = zip(*batch["interval"])
    columns["warnings"] = ["; ".join(sentences) for sentences in batch["warnings"]]

    for row in rows[:20]:
        known = {name: value for name, value in row.items() if value is not None}
        answer, one = ask(url, known)[1], ask(url + "/batch", columns_of([row]))[1]
        assert answer.keys() == batch.keys()
        if "classes" in api.card:
            one["probabilities"] = [{k: p for k, [p] in one["probabilities"].items()}]
        assert {key: [value] for key, value in answer.items()} == one

    rows = [row | {"mine": "kept"} for row in rows]
    answers = pd.DataFrame(columns | {"problem": ""})
    answers.columns = [f"{n} (model)" if n in rows[0] else n for n in answers]
    whole = pd.concat([pd.DataFrame(rows), answers], axis=1)
    scored = ask(url + "/csv", to_csv(rows, api), CSV)[1]
    how = {"sep": ";", "decimal": api.card["decimal"], "keep_default_na": False}
    both = [pd.read_csv(io.StringIO(text), **how) for text in (scored, to_csv(whole, api))]
    pd.testing.assert_frame_equal(*both, rtol=1e-9)


@pytest.mark.parametrize(("name", "x", "expected"), [
    # predictions up to 100 are 1 off, larger ones 10
    ("steps", [20, 99, 103, 0.5, -5], {
        "prediction": [20, 99, 103, 0.5, -5],
        "interval": [[19, 21], [98, 100], [93, 113], [0, 1.5], [-5, 1]],
        "warnings": [[], [], [], *([f"{name} {x} is below {low}, the lowest in training"
                                    for name, low in (("x", 2), ("y", 3))] for x in (0.5, -5))],
    }),
    # likely is what the model says, and each label from where 18 of its 19 rows begin
    *((name, [0.4375, 0.46875, 0.53125, 0.875], {
        "prediction": ["no", "no", third[0], "yes"],
        "probabilities": {"no": [0.5625, 0.53125, 0.46875, 0.125],
                          "yes": [0.4375, 0.46875, 0.53125, 0.875]},
        "likely": [["no"], ["no", "yes"], third, ["yes"]],
        "warnings": [[], [], [], []],
    }) for name, third in (("labels", ["yes"]), ("sixty", ["no", "yes"]))),
])  # fmt: skip
def test_predict_by_hand(name, x, expected, apis):
    """The whole answer, on tables small enough to see."""
    assert ask(apis[name].url + "/predict/batch", {"x": x}) == (200, expected)


def test_csv(apis, tmp_path):
    """What can't be read keeps its place, with the reason; absent columns are refused."""
    above = "9.5 is above -0.5, the highest in training"
    lines = [
        ("prediction;x;", "prediction;x;column 3;prediction (model);low;high;warnings;problem"),
        ('1;-3;"a ""b""\nc"', '1;-3;"a ""b""\nc";-3.0;-3.0;-3.0;;'),
        ("2;abc;", "2;abc;;;;;;x is 'abc', no number"),
        ("3", "3;;;;;;;x is missing"),
        ("4;-3;;5", "4;-3;;;;;;the row has 4 cells, the header 3"),
        ("6;666;", "6;666;;;;;;the model has no answer for this row"),
        ("7;9.5; d", f'7;9.5; d;9.5;9.5;9.5;"x {above}; y {above}";'),
        ('; ;""', "; ;;;;;;the row is empty"),
    ]
    body, expected = ("\n".join(each) for each in zip(*lines))
    assert ask(apis["given"].url + "/predict/csv", body, CSV) == (200, expected + "\n")
    body = to_csv([apis["price"].card["examples"][0]["features"]], apis["price"])
    answer = ask(apis["price"].url + "/predict/csv", body.replace("Größe", "size"), CSV)
    assert (answer[0], "it has no column 'Größe'" in str(answer)) == (422, True)
    # a file is read in the encoding that train.py was told
    (tmp_path / "table.csv").write_bytes("město,y\n".encode("cp1250") + b"1.5,1\n2,2\n" * 9)
    czech = fit(tmp_path, None, str(tmp_path / "table.csv"), "--encoding", "cp1250")
    with serve(load_api(czech.path).app) as url:
        scored = ask(url + "/predict/csv", (tmp_path / "table.csv").read_bytes(), CSV)
        assert (scored[0], scored[1][:5]) == (200, "město")
    czech.path.unlink()
    towns, x = [f"town {i % 12}" for i in range(40)], ["", *range(1, 40)]
    nullable = fit(tmp_path, csv_of({"x": x, "in": [""] + towns[1:], "y": np.arange(40) / 2}))
    with serve(load_api(nullable.path).app) as url:
        assert "it has no column 'x', 'in'" in str(ask(url + "/predict/csv", "z\n1\n", CSV))
        # as in training, what can't be read is a gap where there were gaps, but no other label
        gaps = "x,in\n7 (water),town 1\n,town 1\n3,town 111\n"
        wet, dry, other = ask(url + "/predict/csv", gaps, CSV)[1].splitlines()[1:]
        reason = "x is '7 (water)', no number, is read as a gap"
        assert wet == dry.replace(",", "7 (water),", 1).replace("x is", f"{reason}; x is")
        assert other == "3,town 111,,,,,\"in is 'town 111', none of the choices\""


def test_csv_cells(apis):
    """Whatever a cell holds comes back as one cell, also each control character."""
    marks = [*map(chr, range(1, 33)), "\x7f", "\x85", "\u2028", '"', '""', ",", "\r\n"]
    cells = [text for mark in marks for text in (f"a{mark}b", f"{mark}b", f"a{mark}", mark)]
    sent = io.StringIO(newline="")
    csv.writer(sent, quoting=csv.QUOTE_ALL).writerows([("x", "z"), *((-1, c) for c in cells)])
    scored = ask(apis["given"].url + "/predict/csv", sent.getvalue(), CSV)[1]
    rows = list(csv.reader(io.StringIO(scored, newline="")))[1:]
    assert [row[:3] for row in rows] == [["-1", cell, "-1.0"] for cell in cells]


def test_warns(tmp_path):
    """Of another text, a rare gap, and a prediction that the target never was; with units."""
    table = csv_of({"x": ["", *K[1:]], "town": ["Bonn", *["Ulm", "Bonn"] * 9], "y": K})
    model = fit(tmp_path, table, build=lambda *_: Given())
    x, town = model.card["features"]
    x["unit"], town["open"] = "mi.", True
    changed = {"low": [2.0, 0.0], "high": [19.0, 1.0], "rarely_missing": [True, False]}
    changed = {key: np.array(value) for key, value in changed.items()} | {"card": model.card}
    joblib.dump(joblib.load(model.path) | changed, model.path)
    above = ["x 200 mi. is above 19 mi., the highest in training",
             "town is a text that training does not know",
             "y 200 is above 19, the highest in training"]  # fmt: skip
    gap = [
        "x is missing, as in only 1 of 19 rows of training",
        "y 0 is below 1, the lowest in training",
    ]
    with serve(load_api(model.path).app) as url:
        for row, warnings in (({"x": 200, "town": "Rom"}, above), ({"town": "Bonn"}, gap)):
            answer = ask(url + "/predict", row)[1]
            assert answer["warnings"] == warnings
            assert answer["interval"][0] <= answer["prediction"] <= answer["interval"][1]
        scored = ask(url + "/predict/csv", "x,town\n200,Rom\n,Bonn\n", CSV)[1]
        rows = list(csv.reader(scored.splitlines()))[1:]
        assert [row[-2:] for row in rows] == [["; ".join(above), ""], ["; ".join(gap), ""]]
        status, answer = ask(url + "/predict", {"town": 7})
        assert (status, 'a text, in quotes: "7"' in str(answer)) == (422, True)
        assert "2 to 19 mi. in training" in str(ask(url + "/openapi.json")[1])


def test_interval_of_a_count(tmp_path):
    """Where the target is never below zero, nor is an interval, unless its prediction is."""
    x = N[::-1]
    table = csv_of({"x": x, "y": x + np.where(x % 2, -1, 1) * (x > 0)})
    model = fit(tmp_path, table, build=lambda *_: Given())
    X = np.array([[0.0], [50.0], [-9.0]])
    predictions, intervals, _ = load_api(model.path).Model(str(model.path)).ask(X)
    assert (predictions, intervals) == ([0, 50, -9], [[0, 1], [49, 51], [-9, 1]])


def test_odd_estimator(apis, tmp_path):
    """float32, and labels as a column of objects, are answered as others are."""
    sixty = apis["sixty"]
    saved = joblib.load(sixty.path)
    odd = OddLabels().fit(saved["background"], np.array(["no", "yes"]))
    joblib.dump(saved | {"model": odd, "by_probability": False}, tmp_path / "model.joblib")
    with serve(load_api(tmp_path / "model.joblib").app) as url:
        for x in (0.4375, 0.53125, 0.875):  # exact in float32
            assert ask(url + "/predict", {"x": x}) == ask(sixty.url + "/predict", {"x": x})


def test_explain(apis):
    """In y = 3 c7 - 2 c1 a share is the coefficient times the distance from the mean."""
    row, mean = {f"c{i}": i / 2 for i in range(30)}, apis["linear"].background.mean(axis=0)
    answer = ask(apis["linear"].url + "/explain", row)[1]
    found = [answer[key] for key in ("prediction", "value", "average")]
    assert found == pytest.approx([9.5, 9.5, 3 * mean[7] - 2 * mean[1]])
    shares = dict.fromkeys(row, 0) | {"c7": 3 * (3.5 - mean[7]), "c1": -2 * (0.5 - mean[1])}
    assert answer["shares"] == pytest.approx(shares)
    sizes = [abs(share) for share in answer["shares"].values()]
    assert sizes == sorted(sizes, reverse=True)
    # of labels it is the predicted one's probability
    for x, label, value in ((0.53125, "no", 0.46875), (0.875, "yes", 0.875)):
        answer = ask(apis["sixty"].url + "/explain", {"x": x})[1]
        assert (answer["prediction"], answer["value"]) == (label, value)


# main_api.py: refusals


@pytest.mark.parametrize(("feature", "value", "status", "words"), [
    ("class", 2, 200, ""), ("class", -1.96, 200, ""), ("x", "2024-02-28", 200, ""),
    ("class", 2.001, 200, "class 2.001 is above 2, the highest in training"),
    ("class", -3, 200, "class -3 is below -1.96, the lowest in training"),
    ("x", "2024-02-29", 200, "x 2024-02-29 is above 2024-02-28, the highest in training"),
    ("x", "0001-01-02", 200, "x 0001-01-02 is below 2023-12-01, the lowest in training"),
    ("class", "12", 422, "valid number"), ("class", True, 422, "valid number"),
    ("class", math.nan, 422, "finite"), ("class", math.inf, 422, "finite"),
    ("class", [], 422, "number"), ("model_config", "true", 422, "boolean"),
    ("class", 1.1e30, 422, "less than or equal"), ("class", -1.1e30, 422, "greater than"),
    ("class", None, 422, "number"), ("model_config", 1, 422, "boolean"),
    ('say "hi"', 250.01, 422, 'Input should be a text, in quotes: "250.01"'),
    ('say "hi"', "blau", 422, "Input should be 'None', 'grün' or 'rot'"),
    ("x", None, 422, "string"), ("x", 20240101, 422, "string"), ("x", "", 422, "a date such as"),
    ("x", "31.12.2023", 422, "a date such as"), ("x", "0001-01-01T00:00+05:00", 422, "a date"),
    ("x", "9999-12-31T23:59:59.9999", 200, ":59.999000 is above 2024-02-28, the highest in training"),
    ("z", 1, 422, "There is no such feature"),
])  # fmt: skip
def test_values(feature, value, status, words, apis):
    """What is outside the training range has a sentence, what can't be predicted its place."""
    row, url = apis["kind"].card["examples"][0]["features"], apis["kind"].url
    many = columns_of([row] * 9) | {feature: [row.get(feature, value)] * 7 + [value] * 2}
    for path, body in (("/predict", row | {feature: value}), ("/predict/batch", many)):
        found, answer = ask(url + path, body)
        assert (found, words in str(answer)) == (status, True)
        assert ("in training" in str(answer)) == ("in training" in words)
        place = ["body", feature] + [7] * (path == "/predict/batch" and feature in row)
        for entry in answer.get("detail", []):
            assert (entry["loc"], entry.keys()) == (place, {"loc", "msg", "type"})


@pytest.mark.parametrize(("path", "body", "kind", "status", "words"), [
    ("/predict", {"x": 1}, f"{JSON}; x=y", 200, ""), ("/predict", {}, JSON, 422, "Field required"),
    ("/predict", b"", JSON, 422, "EOF"), ("/predict", [], JSON, 422, "valid dictionary"),
    ("/predict", b'{"x": 1e400}', JSON, 422, "finite"),
    ("/predict", b"\xff", JSON, 422, "expected value"),
    ("/predict", b"[" * 9999, JSON, 422, "recurs"), ("/predict", b'{"\\ud800": 1}', JSON, 422, ""),
    ("/predict", b'{"x": 1}', "text/plain;x=json", 415, "Send the header"),
    ("/predict", b'{"x": 777}', JSON, 422, "The model has no answer for these values"),
    ("/predict/batch", {"x": []}, JSON, 422, "at least 1"),
    ("/predict/batch", {"x": 1}, JSON, 422, "list"),
    ("/predict/batch", {"x": None}, JSON, 422, "list"),
    ("/predict/batch", {"x": [-1.0] * 10_000}, JSON, 200, ""),
    ("/predict/batch", {"x": [-1.0] * 10_001}, JSON, 422, "at most 10000"),
    ("/predict/csv", "x\n1\n", "text/csv; charset=utf-8", 200, "x;prediction;low;high"),
    ("/predict/csv", "x\n1\n", JSON, 415, "Send the header 'Content-Type: text/csv'"),
    ("/predict/csv", "x\n" + "1\n" * 100_000, CSV, 200, ""),
    ("/predict/csv", "x\n" + "1\n" * 100_001, CSV, 422, "more than 100,000 rows"),
    ("/predict/csv", "x\n", CSV, 422, "This is no table to predict: it has no rows,"),
    ("/predict/csv", "x;z\n1,5;0.5\n1.234;0.5\n", CSV, 422, "'x' seems to have another decimal"),
    ("/predict/csv", "\n" * 2_000_000, CSV, 422, "a row has over 1,000,000 characters"),
    ("/predict/csv", b"", CSV, 422, "it has no column 'x'"), ("/predict/csv", b'x\n"1\n', CSV, 422, "a quote"),
    ("/predict", b'{"x": ' + b"[" * 1_000_001, JSON, 422, "at most 1,000,000 brackets"),
])  # fmt: skip
def test_bodies(path, body, kind, status, words, apis):
    """Whatever is sent has its status and its words."""
    found, answer = ask(apis["given"].url + path, body, kind)
    assert (found, words in str(answer)) == (status, True), str(answer)[:500]
    if status == 200 and path == "/predict/csv":
        assert answer.count("\n") == body.count("\n")


def test_limits(apis):
    """At most 20 reasons at once, also for a row of a file; 413 by a length alone."""
    row, url = apis["linear"].card["examples"][0]["features"], apis["linear"].url
    for path in ("/predict", "/predict/batch"):
        assert len(ask(url + path, {})[1]["detail"]) == 20
    answer = ask(url + "/predict/csv", csv_of(columns_of([dict.fromkeys(row, "a")])), CSV)[1]
    assert answer.count("no number") == 20
    # of a file, rows at once
    for cells, length, rows in ((1, 1, 2_000), (2_000, 0, 101), (1, 10**6, 2)):
        part = load_api(MODEL).read_part(iter([["x" * length] * cells] * 3_000))
        assert len(part) == rows
    answer = ask(apis["steps"].url + "/predict", {"x": 200.000000001})[1]
    assert answer["warnings"] == ["x 200.000000001 is above 200, the highest in training"]
    answer = ask(apis["steps"].url + "/predict", {"x": 3, "€" * 999: 1})[1]
    assert str(answer).count("€") == 100  # of what was sent
    answer = ask(url + "/predict/batch", columns_of([row] * 3) | {"c9": [1, 2]})[1]
    assert "equally many rows" in answer["detail"][0]["msg"]
    for path, kind, limit in (("", JSON, 10 * 2**20), ("/csv", CSV, 50 * 2**20)):
        for length, status in ((limit, None), (limit + 1, 413)):
            assert announce(url, "/predict" + path, kind, length) == status


@pytest.mark.parametrize(("there", "instead", "words"), [
    (b".*", None, "can't be served .*No such file.*: run `python train.py`"),
    (b".{9}$", b"", "can't be served .*: run `python train.py`"),
    (b"background", b"surroundin", "can't be served .*'background'.*: run `python train.py`"),
    (re.escape(sklearn.__version__).encode(), lambda found: re.sub(rb"\d", b"0", found[0]),
     "can't be served .*from version 0.* using version .*: run `python train.py`"),
    (b"bare", b"", "can't be served .*a bare Pipeline .*--model.*: run `python train.py`"),
    (b"", b"", "can't be served .*SHA-256 [0-9a-f]{64}, but MODEL_SHA256 is 'abc'.*"),
])  # fmt: skip
def test_bad_model(there, instead, words, apis, tmp_path, caplog):
    """Nothing is served: exit code 3, and one line says what was found and what to type."""
    path = tmp_path / "model.joblib"
    if instead is not None:
        joblib.dump(joblib.load(apis["price"].path), path)  # not compressed
        path.write_bytes(re.sub(there, instead, path.read_bytes(), flags=re.DOTALL))
    if there == b"bare":
        joblib.dump(make_pipeline(StandardScaler()), path)
    app = load_api(path, MODEL_SHA256="" if there else "abc").app
    with pytest.raises(SystemExit) as end:
        uvicorn.run(app, port=0, log_config=None)
    lines = [line for line in caplog.messages if "main_api.py" in line]
    assert (end.value.code, len(lines), "Traceback" in caplog.text) == (3, 1, False)
    assert re.fullmatch(f"main_api.py: '{path}' {words}", lines[0])


# main_api.py: many at once


def test_queue(apis, caplog):
    """Between a batch's calls all who wait share one; a row that makes it raise fails alone."""
    url = apis["given"].url
    with ThreadPoolExecutor(30) as pool:
        batch = pool.submit(ask, url + "/predict/batch", {"x": [1000.3] * 10_000})
        time.sleep(0.1)
        started, values = time.monotonic(), [666, *(1000.2 - i / 1000 for i in range(20))]
        others = [pool.submit(ask, url + "/predict", {"x": x}) for x in values]
        assert ask(url + "/health")[0] == 200
        assert not others[0].done()
        status, answer = others[0].result()
        assert (status, answer["detail"][0]["type"]) == (422, "no_answer")
        assert [other.result()[1]["prediction"] for other in others[1:]] == values[1:]
        # 0.2 s for each half without the one that raises, not for each row
        assert (time.monotonic() - started < 2.5, batch.done()) == (True, False)
        assert batch.result()[0] == 200
    assert caplog.text.count("the model raised") == 1


def test_too_much_waits(apis):
    """Beyond ten calls' rows, or four files, it is 503; what is answered or failed counts no more."""
    CALLS.clear()
    url = apis["given"].url
    with ThreadPoolExecutor(13) as pool:

        def send(n, path, body, kind=JSON):
            answers = pool.map(ask, [url + path] * n, [body] * n, [kind] * n)
            return sorted(status for status, _ in answers)

        # while the model is held up for a second
        pool.submit(ask, url + "/predict", {"x": 1001.0})
        time.sleep(0.1)
        assert send(12, "/predict/batch", {"x": [-1.0] * 9_999}) == [200] * 10 + [503] * 2
        assert send(10, "/predict/batch", {"x": [666.0] + [-1.0] * 9_998}) == [422] * 10
        # what clients have asked for who are gone counts until it is answered
        pool.submit(ask, url + "/predict", {"x": 1001.0})
        time.sleep(0.1)
        body = json.dumps({"x": [-1.0] * 9_999}).encode()
        for _ in range(10):
            announce(url, "/predict/batch", JSON, len(body), body, 0.02)
        assert send(1, "/predict/batch", {"x": [-1.0] * 9_999}) == [503]
        for _ in range(2):
            assert send(5, "/predict/csv", "x\n1000.3\n", CSV) == [200] * 4 + [503]
            assert send(4, "/predict/csv", "z\n1\n", CSV) == [422] * 4
    assert max(len(X) for _, X in CALLS) <= 2_000  # so that others get in between


def test_slow_readers(apis):
    """A client that does not take its answer is left, so that others' files are predicted."""
    api = load_api(apis["given"].path)
    api.ANSWER_SECONDS, body = 3, "x,z\n" + f"-1.5,{'a' * 200}\n" * 50_000
    with serve(api.app) as url, ExitStack() as stack:
        for _ in range(4):
            client = HTTPConnection(url.removeprefix("http://"))
            client.request("POST", "/predict/csv", body, {"Content-Type": CSV})
            stack.enter_context(closing(client))
        time.sleep(0.2)
        started, statuses = time.monotonic(), [503]
        while statuses[-1] == 503 and time.monotonic() - started < 9:
            statuses.append(ask(url + "/predict/csv", "x\n1\n", CSV)[0])
            time.sleep(0.1)
    assert (statuses[1], statuses[-1]) == (503, 200)


@pytest.mark.skipif(not shutil.which("schemathesis"), reason="schemathesis is not installed")
def test_schemathesis(apis, tmp_path):
    """All checks of schemathesis against /openapi.json find nothing."""
    # note: JSON Schema can't say that columns are equally long, so a valid batch may be refused
    (tmp_path / "schemathesis.toml").write_text(
        '[[operations]]\ninclude-path-regex = "/predict/(batch|csv)"\n'
        'checks.positive_data_acceptance.expected-statuses = ["2xx", 422]\n'
    )
    command = ["schemathesis", "run", apis["kind"].url + "/openapi.json", "--checks", "all"]
    command += ["--max-examples", "15", "--seed", "1"]
    run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


# main_api.py: as a fork changes it


def test_login(apis, tmp_path):
    """A dependency of the app, a login say, holds for all its routes."""
    login = "def login(request: Request):\n    if 'key' not in request.query_params:\n"
    login += "        raise HTTPException(401)\n\n\n"
    app = f"{login}app = FastAPI(dependencies=[Depends(login)], "
    (tmp_path / "main_api.py").write_text(edit("main_api.py", {"app = FastAPI(": app}))
    price = apis["price"]
    row = price.card["examples"][0]["features"]
    with serve(load_api(price.path, tmp_path).app) as url:
        bodies = {"/predict": row, "/predict/batch": columns_of([row]), "/explain": row}
        for path, body in bodies.items():
            assert ask(url + path, body)[0] == 401
            assert ask(f"{url}{path}?key", body) == ask(price.url + path, body)
        assert ask(url + "/predict/csv", "x\n1\n", CSV)[0] == 401


def test_own_estimator(tmp_path):
    """A class that a fork writes beside build_model() is found by the API."""
    own = "class Own(DummyRegressor):\n    pass\n\n\ndef build_model(*_):\n    return Own()\n\n\n"
    main = 'if __name__ == "__main__":'
    (tmp_path / "train.py").write_text(edit("train.py", {main: own + main}))
    shutil.copy(HERE / "main_api.py", tmp_path)
    (tmp_path / "table.csv").write_text(csv_of({"x Ω": K / 4, "y": K / 2}), "utf-8")
    env = {"PYTHONPATH": "", "MODEL_PATH": "model.joblib", "PYTHONIOENCODING": "cp1252"}
    run = {"cwd": tmp_path, "env": ENV | env}
    subprocess.run([sys.executable, "train.py", "table.csv"], check=True, **run)
    ask_it = "import main_api; print(main_api.Model('model.joblib').answer([[1]])[0])"
    assert subprocess.check_output([sys.executable, "-c", ask_it], text=True, **run) == "[5.0]\n"


def test_new_model(apis, tmp_path, caplog):
    """A new file is served at once, to new requests; a bad one is refused in a line."""

    def put(content, words):
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(tmp_path / "model.joblib")
        started = time.monotonic()
        while words not in caplog.text:
            assert time.monotonic() - started < 5
            time.sleep(0.05)

    given, kind = apis["given"], apis["kind"]
    (tmp_path / "model.joblib").write_bytes(given.path.read_bytes())
    api = load_api(tmp_path / "model.joblib")
    api.WATCH_SECONDS = 0.2
    with ThreadPoolExecutor(1) as pool, serve(api.app) as url:
        before = pool.submit(ask, url + "/predict/batch", {"x": [1000.4] * 9_999})
        time.sleep(0.3)
        put(kind.path.read_bytes(), f"the new '{tmp_path / 'model.joblib'}' is served")
        assert not before.done()
        answer = ask(url + "/predict", kind.card["examples"][0]["features"])[1]
        assert answer["probabilities"].keys() == set(kind.card["classes"])
        docs = str(ask(url + "/openapi.json"))
        assert ("Predict kind" in docs, "model_config" in docs) == (True, True)
        assert before.result()[1]["prediction"] == [1000.4] * 9_999
        put(b"no model", "can't be served")
        assert ask(url + "/model")[1]["target"] == "kind"


# main_ui.py


@pytest.fixture
def open_page(monkeypatch):
    """Return a function that draws a tab of the page, as a link with such an address does."""
    from streamlit.testing.v1 import AppTest  # takes a second: only where it is needed

    def open_page(url, tab="One row", query=()):
        monkeypatch.setenv("API_URL", url)
        page = AppTest.from_file(str(HERE / "main_ui.py"), default_timeout=30)
        page.query_params.update(query)
        if tab != "One row":
            page.query_params["tab"] = tab
        return page.run()

    return open_page


def unescape(text) -> str:
    """Return a text of Markdown as people see it."""
    return re.sub(r"\\(?=[^\w\s])|\u2060|\*\*", "", text)


def words_on(page) -> str:
    """Return the texts on the page as people see them."""
    assert not page.exception
    kinds = ["title", "header", "markdown", "text", "code", "error", "warning", "success", "info"]
    return unescape("\n".join(element.value for kind in kinds for element in page.get(kind)))


def number_in(text, card) -> float:
    """Return a number that the page writes with the table's decimal mark."""
    thousands = "." if card["decimal"] == "," else ","
    return float(text.replace(thousands, "").replace(card["decimal"], "."))


def layers_of(chart) -> list:
    """Return the tables that a chart's layers are drawn from."""
    from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df

    tables = {each.name: each.data.data for each in chart.proto.datasets}
    layers = [layer["data"]["name"] for layer in json.loads(chart.proto.spec)["layer"]]
    return [convert_arrow_bytes_to_pandas_df(tables[name]) for name in layers]


def bars_of(table) -> dict[str, str]:
    """Return what a table with bars in it says, by its rows' names."""
    frame = table.value
    assert re.search(r";\s*background: linear-gradient", table.proto.arrow_data.styler.styles)
    return dict(zip(map(unescape, frame.index), frame.iloc[:, 0]))


def field(page, name, number=""):
    """Return the field of a feature, of the first row to start from."""
    kinds = [page.text_input, page.selectbox, page.date_input]
    return next(each for kind in kinds for each in kind if each.key == f"{number}_{name}")


@pytest.mark.parametrize(("value", "scale", "sign", "text"), [
    (1234.5, 0, "", "1234"), (12345.6, 0, "", "12,346"), (0.00123456, 0, "", "0.001235"),
    (152.34, 98.4, "", "152.3"), (-0.00001, 1, "+", "+0.00"), (2.5, 0.1, "+", "+2.500"),
    (0, 0, "", "0.00"), (-1.3e-15, 0, "", "-0.000000000000001300"), (0, 1e-3, "+", "+0.00000"),
])  # fmt: skip
def test_page_numbers(value, scale, sign, text):
    """A number has the digits that tell, three of its interval or four of its own."""
    main_ui = importlib.import_module("main_ui")
    assert main_ui.write({"decimal": "."}, value, scale, sign) == text
    swapped = text.translate({44: ".", 46: ","})
    assert main_ui.write({"decimal": ","}, value, scale, sign) == swapped


@pytest.mark.parametrize(("text", "point", "comma"), [
    ("13.5", 13.5, 13.5), ("0,5", 0.5, 0.5), ("-13,55", -13.55, -13.55), ("1e3", 1000, 1000),
    ("1,234", None, 1.234), ("1.234", 1.234, None), ("0.125", 0.125, 0.125), ("1,234.5", None, None),
    ("12a", None, None), ("-1,234", None, -1.234), ("1234", 1234, 1234), ("nan", None, None),
    ("1_000", None, None), ("-.5E-3", -0.0005, -0.0005), ("7,", 7, 7), ("1.2.3", None, None),
])  # fmt: skip
def test_page_reads_numbers(text, point, comma):
    """A lone comma has one meaning anywhere; what may be a thousand, or no number, is refused."""
    main_ui, x = importlib.import_module("main_ui"), {"name": "x", "type": "number"}
    for decimal, number in ((".", point), (",", comma)):
        with nullcontext() if number is not None else pytest.raises(main_ui.NoAnswer, match=text):
            assert main_ui.read_row({"decimal": decimal, "features": [x]}, [text]) == {"x": number}


@pytest.mark.parametrize(("text", "escaped"), [
    ("hours-per-week (h/d)", None), ("a_b 1.5 -2", None), ("*a* `b`", r"\*a\* \`b\`"),
    ("[x](y)", r"\[x\](y)"), ("_x_", r"\_x\_"), ("- a", r"\- a"), ("1. a", r"1\. a"),
    ("$a$ #b", r"\$a\$ \#b"), ("a->b", "a-\u2060\\>b"), (":a:", ":\u2060a:"),
    ("www.a", "ww\u2060w.a"),
])  # fmt: skip
def test_page_names(text, escaped):
    """Markdown, icons, signs and links stay what was written, and most names need nothing for it."""
    assert importlib.import_module("main_ui").plain(text) == (escaped or text)


def test_page_says():
    """The prediction and how sure it is, with the table's decimal mark, never as a certainty."""
    main_ui, card = importlib.import_module("main_ui"), {"decimal": ","}
    card["uncertainty"] = {"coverage": 0.9}
    answer = {"prediction": "A", "probabilities": {"A": 0.9999}, "likely": ["A"]}
    assert main_ui.say(card, answer) == ("A", "99,9 % probable", "")
    assert "it may be A or B: " in main_ui.say(card, answer | {"likely": ["A", "B"]})[2]
    answer = {"prediction": 38.935, "interval": [20.1, 60.2]}
    assert main_ui.say(card, answer)[:2] == ("38,9", "likely 20,1 to 60,2")


def test_page_times(monkeypatch):
    """Over a year whole days are tried, in a day its times; and always what the form has."""
    main_ui, tried = importlib.import_module("main_ui"), []

    def stop(card, row, name, values):
        tried[:] = values
        raise main_ui.NoAnswer

    monkeypatch.setattr(main_ui, "vary", stop)
    when = {"name": "x", "type": "date", "minimum": "2024-01-01T00:00:00"}
    for end, times in (("2025-06-01T00:00:00", 2), ("2024-01-02T00:00:00", 150)):
        with pytest.raises(main_ui.NoAnswer):
            main_ui.draw_curve({}, {"x": "2024-01-01T12:00:00"}, when | {"maximum": end})
        assert len({value.time() for value in tried}) == times
        assert pd.Timestamp("2024-01-01T12:00:00") in tried
    large = {"name": "x", "type": "number", "minimum": 0, "maximum": 9, "integer": True}
    with pytest.raises(main_ui.NoAnswer):
        main_ui.draw_curve({}, {"x": 10**25}, large)
    assert tried[-1] == 1e25


def test_page_example(api, open_page, monkeypatch):
    """It opens with a real row: answer, reasons and truth; so do others, by their address too."""
    main_ui, card = importlib.import_module("main_ui"), api.card
    page = open_page(api.url)
    for place in (0, 1):
        row, target = card["examples"][place]["features"], card["examples"][place]["target"]
        answer, why = (ask(api.url + p, row)[1] for p in ("/predict", "/explain"))
        page.button_group(key="row").select(place).run()
        name = main_ui.plain(f"{place + 1}: {main_ui.spell(card, target)}")
        for each in (page, open_page(api.url, query={"row": name})):
            words, [metric] = words_on(each), each.metric
            texts = [card["description"], "Why this answer", "they are no causes"]
            texts += ["What if one value were different?"]
            for text in texts:
                assert text in words
            assert unescape(metric.label) == card["target"]
            value, sure, _ = main_ui.say(card, answer)
            assert (unescape(metric.value), f"{card['target']}: {value}, {sure}" in words) == (
                value,
                True,
            )
            *probable, reasons = [bars_of(table) for table in each.table[: 1 + ("classes" in card)]]
            share = next(iter(why["shares"]))
            named = f"{share} = {main_ui.spell(card, row[share]) or '(unknown)'}"
            assert next(iter(reasons)) == named
            assert len(reasons) == min(10, len(row))
            assert reasons[named] == pytest.approx(why["shares"][share])
            if "classes" in card:
                ranked = sorted(answer["probabilities"].values(), reverse=True)
                assert list(probable[0].values()) == pytest.approx(ranked[:10])
                likely = " or ".join(answer["likely"])
                assert (f"it may be {likely}" in words) == (len(answer["likely"]) > 1)
            else:
                assert f"{sure.capitalize()}: in 90 % of the rows" in words
    monkeypatch.setattr("streamlit.runtime.context.ContextProxy.url", "https://a.b:1/c/?_d=e")
    monkeypatch.setenv("API_URL", "")
    monkeypatch.setenv("API_PORT", api.url.rpartition(":")[2])
    page.session_state["tab"] = "About the model"
    for is_public, url in (("1", "https://a.b:1/c/api"), ("", api.url)):
        monkeypatch.setenv("PUBLIC_API", is_public)
        page.run()
        _, address, *_, body = shlex.split(page.code[0].value)
        assert (address, json.loads(body)) == (f"{url}/predict", card["examples"][0]["features"])
        assert (f"{url}/docs" in words_on(page)) == bool(is_public)


def test_page_refuses(apis, open_page):
    """What can't be predicted is said with the feature's name; what is outside with a warning."""
    api, page = apis["price"], open_page(apis["price"].url)
    row = api.card["examples"][0]["features"]
    for value, words in (
        ("1.234", "class: '1.234' is not clear as a number"), ("", "class: Field required"),
        ("99", "class 99 is above 2, the highest in training"),
    ):  # fmt: skip
        field(page, "class").set_value(value).run()
        assert (words in words_on(page), len(page.metric)) == (True, int(value == "99"))
        assert ("How sure the model is there says nothing" in words_on(page)) == (value == "99")
    assert (
        words_on(page).count("class 99 is above 2") == 2
    )  # in the bar that is always in sight too
    for value in ("13,5", "13.5"):  # both have one meaning only
        field(page, "class").set_value(value).run()
        assert "class 13.5 is above 2" in words_on(page)
    page.button(key="page:reset").click().run()
    assert field(page, "class").value == str(row["class"]).removesuffix(".0").replace(".", ",")
    numbers = [f["name"] for f in api.card["features"] if f["type"] == "number"]
    page = open_page(api.url, query={f"_{name}": "" for name in numbers})
    assert "class: Field required" in words_on(page)
    assert field(page, "class").placeholder == "needed"
    # a link of before, and one whose choice there is not
    page = open_page(api.url, query={"_class": "1.5", "_kind": "Z", "_model_config": "false"})
    assert (field(page, "class").value, field(page, "kind").value) == ("1.5", row["kind"])
    assert "too long for a link" not in words_on(page)
    assert (field(page, "model_config").value, len(page.metric)) == ("false", 1)
    field(page, "class").set_value("1" * 5000).run()
    assert "too long for a link" in words_on(page)


def test_page_of_the_dummy(open_page, tmp_path):
    """Where nothing was learned the first tab says so, beside the answer."""
    noise = np.random.default_rng(0).normal(size=(2, 60))
    model = fit(tmp_path, csv_of(dict(zip("xy", noise))), build=train.build_model)
    assert model.card["estimator"] == "dummy"
    with serve(load_api(model.path).app) as url:
        page = open_page(url)
    assert model.card["notes"][0] in words_on(page)
    assert len(page.metric) == 1


def test_page_what_if(apis, open_page):
    """Along a feature the model's answers, how often the table has what, and where the form is."""
    api, row = apis["kind"], apis["kind"].card["examples"][0]["features"]
    page = open_page(api.url)
    for f in api.card["features"]:
        name, here = f["name"], row[f["name"]]
        if "unit" in f:
            assert f"{f['maximum']} {f['unit']})" in unescape(field(page, name).label)
        page.selectbox(key="page:vary").select(name).run()
        values = f.get("choices", [False, True])
        if "minimum" in f:
            values = [f["minimum"], here, f["maximum"]]
        answer = ask(api.url + "/predict/batch", columns_of([row | {name: v} for v in values]))[1]
        probabilities = answer["probabilities"]
        if "minimum" not in f:
            frame = page.table[-1].value
            for value, count, words in zip(values, f["counts"], frame.index):
                rows = f"({count} rows{', as in the form' * (value == here)})"
                assert unescape(words) == f"{str(value).replace('T', 't').replace('F', 'f')} {rows}"
            for label in frame:
                assert frame[label].tolist() == pytest.approx(probabilities[label])
            continue
        chart = page.get("vega_lite_chart")[-1]
        seen, points, dashed = layers_of(chart)
        assert seen["rows"].tolist() == f["counts"]
        places = values
        if f["type"] == "date":
            places = pd.to_datetime(values).tolist()
        assert dashed["at"].tolist() == [places[1]]
        found = points.set_index(["at", "label"])["value"]
        for label, shares in probabilities.items():
            assert [found[place, label] for place in places] == pytest.approx(shares)
        assert {places[0], places[-1]} == {points["at"].min(), points["at"].max()}
    # the point in the middle between -20 and this is 777
    page = open_page(apis["given"].url, query={"_x": "1574"})
    assert "The model has no answer for these values" in words_on(page)


def test_page_many_rows(api, open_page, monkeypatch):
    """A file is predicted, in its order; which rows can't be, and why, is said first."""
    rows = rows_of(api)[:7] * 150
    mine = "my problem\n(in words)"
    text = to_csv([row | {mine: "kept"} for row in [*rows, rows[0]]], api)
    page = open_page(api.url, "Many rows")

    def upload(content):
        page.file_uploader(key="page:file").set_value(("t.csv", content, CSV)).run()
        return words_on(page)

    content = text.strip().encode() + b";one more"
    words, answer = upload(content), ask(api.url + "/predict/csv", content, CSV)[1]
    packed = page.session_state["page:result"]["packed"]
    assert gzip.decompress(packed).decode() == "\ufeff" + answer  # a spreadsheet needs the mark
    texts = ["A CSV file with a column for each", "1,050 of 1,051 rows predicted", "row 1051: "]
    for each in [*texts, "The first 1,000 rows; the download has all"]:
        assert each in words
    labels = [button.proto.label for button in page.get("download_button")]
    assert labels == ["Download a template", "Download the result"]
    problems, first = (frame.value for frame in page.dataframe)
    assert "cells, the header" in problems["problem"][1051]
    found = first.iloc[:, 0].tolist()
    expected = api.model.predict(api.background[:7]).tolist() * 150
    assert first[mine].tolist() == ["kept"] * 1000
    if "classes" in api.card:
        assert found == expected[:1000]
        counts = pd.Series(expected).value_counts().tolist()
        shares = list(bars_of(page.table[0]).values())
        assert shares == pytest.approx([count / 1050 for count in counts[:10]])
    else:
        assert found == pytest.approx(expected[:1000])
    assert "has no column" in upload(b"z\n1\n")
    assert "has no column" in words_on(page.run())
    assert len(page.dataframe) == 0
    # what is uploaded while the API is away is predicted when it is back
    monkeypatch.setenv("API_URL", "http://127.0.0.1:9")
    upload(text.encode())
    assert [error.value[:22] for error in page.error][:2] == ["The model is not there"] * 2
    monkeypatch.setenv("API_URL", api.url)
    page.button(key="page:retry file").click().run()
    assert "1,051 of 1,051 rows predicted" in words_on(page)


@pytest.mark.parametrize(("name", "content", "texts"), [
    ("labels", "x;y\n0.2;no\n0.99;yes\n0.3; yes \n0.4;\n0.4;maybe\n",
     ["Accuracy 66.7 % in 3 rows", "see warnings: 1."]),
    ("given", "x;y\n-2.5;-2\n-3;-4.5\n-4;\n-5;?\n", ["Mean absolute error 1.000 in 2 rows"]),
    ("given", "x;z\n-2.5;-2\n", ["1 of 1 rows"]), ("given", "x;y\n-2.5;two\n", ["1 of 1 rows"]),
    ("labels", "x;y\n0.2;maybe\n", ["1 of 1 rows"]),
])  # fmt: skip
def test_page_scores(name, content, texts, apis, open_page):
    """A file that has the truth is scored, beside the model's own score; its warnings count."""
    page = open_page(apis[name].url, "Many rows")
    page.file_uploader(key="page:file").set_value(("t.csv", content.encode(), CSV)).run()
    for text in texts:
        assert text in words_on(page)
    main_ui, card = importlib.import_module("main_ui"), apis[name].card
    own = main_ui.write(card, card["metrics"].get("mean_absolute_error", 0))
    if name == "labels":
        own = main_ui.percent(card, card["metrics"]["accuracy"])
    is_scored = " in " in texts[0]
    assert ("for unseen rows: " in words_on(page)) == is_scored
    assert (f"{own}." in words_on(page)) == is_scored


def test_page_lets_uploads_go(monkeypatch):
    """A file that does not come gives its place back: its client has gone, or only seems there."""

    async def read(request):
        await request.body()

    main_ui, manager = importlib.import_module("main_ui"), SimpleNamespace(file_storage={})
    monkeypatch.setattr(main_ui, "get_instance", lambda: SimpleNamespace(uploaded_file_mgr=manager))
    monkeypatch.setattr(main_ui, "UPLOAD_SECONDS", 0.5)
    limit = main_ui.LimitUploads(Starlette(routes=[Route("/", read, methods=["PUT"])]))
    with serve(limit) as url:
        for seconds, status in ((0.1, None), (5, 408)):
            assert announce(url, "/", CSV, 9, b"1", seconds, "PUT") == status
            time.sleep(0.2)
            assert limit.coming == 0


def test_page_about(api, open_page):
    """How good it is, what matters, what was left out, and which file it is."""
    page, card = open_page(api.url, "About the model"), api.card
    words = words_on(page)
    reasons = [entry["reason"] for entry in card["dropped"]]
    known = [f"with {card['rows']:,} rows", "What matters most", "What it was trained on"]
    for text in [*known, api.sha256, *card["notes"], *reasons]:
        assert text.rstrip(".") in words
    key = "accuracy" if "classes" in card else "mean_absolute_error"
    shown = page.table[0].value.loc[key.replace("_", " ")].tolist()
    assert "er is better" in shown.pop()
    shown = [number_in(text, card) for text in shown]
    assert shown == pytest.approx([card["metrics"][key], card["baseline"][key]], rel=1e-3)
    gains = [max(0, gain) for gain in card["importance"].values()]
    shares = [gain / (sum(gains) or 1) for gain in gains]
    assert list(bars_of(page.table[-1]).values()) == pytest.approx(shares[:10])


def test_page_about_cutoffs(apis, open_page):
    """Of two labels, what acting from which probability on would bring."""
    page, cutoffs = open_page(apis["sixty"].url, "About the model"), apis["sixty"].card["cutoffs"]
    assert f"When to act on {cutoffs['label']}" in words_on(page)
    shown = page.table[1].value.iloc[:, 2].tolist()
    assert shown == [f"{min(99.9, 100 * row[2]):.1f} %" for row in cutoffs["rows"]]


def test_page_and_its_api(apis, open_page, monkeypatch):
    """Without an API nothing is lost; another model brings its form, and no old answer."""
    nowhere, kind, price = "http://127.0.0.1:9", apis["kind"], apis["price"]
    page = open_page(nowhere)

    def press(url, key="page:retry card"):
        monkeypatch.setenv("API_URL", url)
        page.button(key=key).click().run()
        return words_on(page)

    assert "The model is not there" in words_on(page)
    assert kind.card["title"] in press(kind.url)
    monkeypatch.setenv("API_URL", nowhere)
    field(page, "class").set_value("-1,5").run()
    assert "The model is not there" in words_on(page)
    press(kind.url)
    assert (field(page, "class").value, len(page.metric)) == ("-1,5", 1)
    assert price.card["title"] in press(price.url, "page:reset")
    assert [toast.value[:21] for toast in page.toast] == ["The model has changed"]
    main_ui, row = importlib.import_module("main_ui"), price.card["examples"][0]["features"]
    assert field(page, "class").value == main_ui.spell(price.card, row["class"])
    assert (len(page.metric), len(page.error)) == (1, 0)
    press(price.url, "page:reset")
    assert (len(page.metric), len(page.toast)) == (1, 0)


# start.sh


@contextmanager
def start(*command, cwd="/", **env):
    """Run a command on free ports, the leader of a group that ends as the test does."""
    if os.name == "nt":
        pytest.skip("Windows has no groups of processes")
    # below the range from which outgoing connections take their ports
    free = (port for port in PORTS if socket.socket().connect_ex(("127.0.0.1", port)))
    env = {"API_PORT": str(next(free)), "UI_PORT": str(next(free))} | env
    kept = {"cwd": cwd, "env": ENV | env, "start_new_session": True}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **kept)
    process.api = f"http://127.0.0.1:{env['API_PORT']}"
    process.page = f"http://127.0.0.1:{env['UI_PORT']}"
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait(process):
    """Wait until the page is there."""
    for _ in range(600):
        assert process.poll() is None, "it ended before it was ready"
        with suppress(ConnectionError):
            return ask(f"{process.page}/_stcore/health")
        time.sleep(0.1)
    raise AssertionError(f"{process.page} is not ready")


def child(process, name):
    """Return the process id of the child that serves such a program."""
    return int(subprocess.check_output(["pgrep", "-P", str(process.pid), "-f", name]))


def end_of(process, seconds):
    """Assert that it ends in time with nothing left; return the exit code and stderr."""
    error = process.communicate(timeout=seconds)[1]
    with pytest.raises(ProcessLookupError):  # else something is left running
        os.killpg(process.pid, 0)
    assert "Traceback" not in error
    return process.returncode, error


@pytest.fixture(scope="module")
def started(apis, tmp_path_factory):
    """Copies of start.sh for the events below, called awkwardly, all at once to save time."""
    if not shutil.which("pgrep") or sys.platform != "linux":
        pytest.skip("pgrep is missing, or 127.0.0.2 no address of this machine")
    # from another folder through a link, in a path with spaces, without the run bit, with CDPATH,
    # a relative MODEL_PATH and a proxy
    folder = tmp_path_factory.mktemp("a path")
    env = {"cwd": folder, "CDPATH": str(folder), "MODEL_PATH": "mine.joblib", "no_proxy": ""}
    env["PORT"] = "1"  # UI_PORT goes before it
    env |= dict.fromkeys(("http_proxy", "all_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    shutil.copytree(HERE / ".streamlit", folder / "code" / ".streamlit")
    for path in [*HERE.glob("*.py"), HERE / "start.sh"]:
        shutil.copyfile(path, folder / "code" / path.name)
    shutil.copy(apis["given"].path, folder / "mine.joblib")
    (folder / "start").symlink_to("code/start.sh")
    # one of them has time that no machine uses up, the other a watch that is quick to notice
    patient = edit("start.sh", {"\nKILL_SECONDS=7": "\nKILL_SECONDS=40"})
    (folder / "code" / "start.sh").write_text(patient)
    quick = {"ANSWER_SECONDS=5": "ANSWER_SECONDS=0.5", "\nKILL_SECONDS=7": "\nKILL_SECONDS=3"}
    quick["\nGRACEFUL_SECONDS=4"] = "\nGRACEFUL_SECONDS=1"
    quick = edit("start.sh", {"second % 10 ": "second % 1 ", "sleep 1 ": "sleep 0.2 ", **quick})
    (folder / "code" / "quick.sh").write_text(quick)
    copies = {}
    with ExitStack() as stack:
        for event in ("hung", "SIGTERM", "SIGINT", "API", "page"):
            script = "code/quick.sh" if event in ("hung", "SIGTERM") else "start"
            env["PUBLIC_API"] = "1" if event == "page" else ""
            env["STREAMLIT_SERVER_BASE_URL_PATH"] = "/a/b/" if event == "API" else ""
            copies[event] = stack.enter_context(start("bash", script, **env))
        for process in copies.values():
            wait(process)
        yield copies


def test_public_api(started):
    """Under /api the page's port answers what the API answers, but only if it is asked to."""
    public, private = started["page"], started["SIGINT"]
    for path, body, kind in (
        ("/health", None, JSON), ("/model", None, JSON), ("/none", None, JSON),
        ("/predict", {"x": -2.5}, JSON), ("/predict", {"x": math.nan}, JSON),
        ("/explain", {"x": -2.5}, JSON), ("/predict/csv", "x;y\n-2.5;a\n", CSV),
    ):  # fmt: skip
        assert ask(public.page + "/api" + path, body, kind) == ask(public.api + path, body, kind)
        assert ask(private.page + "/api" + path, body, kind)[0] == 404
    assert announce(public.page, "/api/predict", JSON, 10 * 2**20 + 1) == 413
    # uploads that would fill the memory together are refused by the length alone; what
    # was refused counts no more
    path, most = "/_stcore/upload_file/a/b", 150 * 2**20
    upload = {"body": b"123456789", "seconds": 2, "method": "PUT"}
    for length, status in ((most, 400), (most + 1, 503), (9, 400)):
        assert announce(public.page, path, CSV, length, **upload) == status
    # below a path, and in one process
    page = shlex.split(f"{sys.executable} -m streamlit run {HERE / 'main_ui.py'}")
    path = ["--server.baseUrlPath", "model"]
    path += ["--server.port", port := str(next(PORTS))]
    alone = {"cwd": HERE, "PUBLIC_API": "1", "API_PORT": "", "MODEL_PATH": str(MODEL)}
    with start(*page, *path, **alone) as process:
        process.page = f"http://127.0.0.1:{port}/model"
        wait(process)
        assert ask(process.page + "/api/health") == (200, {"status": "ok"})
        assert ask(process.page + "/api/openapi.json")[1]["servers"] == [{"url": "/model/api"}]
        assert "'/model/api/openapi.json'" in ask(process.page + "/api/docs")[1]
    libraries = Path(f"/proc/{child(private, 'main_ui')}/maps").read_text()
    assert ("pandas" in libraries, "sklearn" in libraries) == (True, False)


def test_image_asks_the_page(started):
    """The image's health check finds the page by its port and below its path."""
    dockerfile = (HERE / "Dockerfile").read_text().replace("\\\n", "")
    check = re.search(r"(?m)^HEALTHCHECK .* CMD (.*)", dockerfile)[1]
    for event, path, code in (
        ("SIGINT", "", 0), ("API", "/a/b/", 0), ("API", "a/b", 0), ("API", "", 1),
    ):  # fmt: skip
        port = started[event].page.rpartition(":")[2]
        for ports in ({"UI_PORT": port, "PORT": "1"}, {"UI_PORT": "", "PORT": port}):
            env = ENV | {"STREAMLIT_SERVER_BASE_URL_PATH": path} | ports
            assert subprocess.call(["sh", "-c", check], env=env) == code


def test_start_tells_hung_from_busy(started):
    """An API that no longer answers ends all, with a line; one that only computes goes on."""
    hung, busy = started["hung"], started["SIGTERM"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, busy.api + "/predict", {"x": 1003.0})
        os.kill(child(hung, "main_api"), signal.SIGSTOP)
        code, error = end_of(hung, 20)
        assert (code, error.count("start.sh: the API hangs: ")) == (1, 1)
        assert answer.result()[0] == 200
    assert busy.poll() is None


@pytest.mark.parametrize(("event", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_start_and_stop(event, code, started):
    """The world sees the page alone; docker stop and Ctrl-C end both, once all is answered."""
    process = started[event]
    api, page = (url.replace(".1:", ".2:") for url in (process.api, process.page))
    assert ask(page + "/_stcore/health")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(api + "/health")
    with ThreadPoolExecutor(1) as pool, closing(HTTPConnection(process.api[7:])) as half:
        if event == "SIGTERM":  # a body of which more would have come
            half.request("POST", "/predict", b"{", {"Content-Type": JSON, "Content-Length": 9})
        answer = pool.submit(ask, process.api + "/predict", {"x": 1000.75})
        time.sleep(0.2)
        # Ctrl-C goes to the whole group
        (os.killpg if event == "SIGINT" else os.kill)(process.pid, signal.Signals[event])
        if event == "SIGTERM":
            for _ in range(2):  # another one changes nothing
                time.sleep(0.1)
                assert process.poll() is None
                os.kill(process.pid, signal.SIGTERM)
        assert answer.result()[1]["prediction"] == 1000.75
        if event == "SIGTERM":
            assert half.getresponse().status == 503
    assert end_of(process, 9)[0] == code  # docker stop kills after 10


def test_start_ends_with_either(started):
    """The API or the page ends: so does the other, at once by another Ctrl-C."""
    os.kill(child(started["API"], "main_api"), signal.SIGKILL)
    deaf = started["page"]
    os.kill(child(deaf, "main_api"), signal.SIGSTOP)
    os.kill(child(deaf, "main_ui"), signal.SIGKILL)
    time.sleep(1)
    assert deaf.poll() is None
    os.killpg(deaf.pid, signal.SIGINT)
    for name in ("API", "page"):
        code, error = end_of(started[name], 9)  # docker stop kills after 10
        assert (code, f"start.sh: the {name} ended with code 137\n" in error) == (137, True)


# a python that says it is 3.10, and has all packages
OLD = f"""#!/bin/sh
[ $1 = -V ] && exec echo Python 3.10.13
exec '{sys.executable}' -c "import sys; sys.version_info = (3, 10); $2" uvicorn"""


@pytest.mark.parametrize(("name", "value", "words"), [
    ("API_PORT", "65536", "'65536' is no port: set API_PORT or UI_PORT to one from 1 to 65535"),
    ("UI_PORT", "abc", "'abc' is no port: set API_PORT or UI_PORT"),
    ("PORT", "def", "'def' is no port: set API_PORT or UI_PORT"),
    ("UI_PORT", "1", "port 1 can't be both API_PORT and UI_PORT"),
    ("API_PORT", "taken", "is taken: stop what uses it, or set API_PORT or UI_PORT"),
    ("PATH", "old", "Python 3.10.13 is found, 3.11 or newer with the packages is needed"),
    ("MODEL_PATH", "none", "start.sh: the API ended with code 3\n"),
])  # fmt: skip
def test_start_refuses(name, value, words, tmp_path):
    """One line that says what to do, and nothing left running."""
    (tmp_path / "python").write_text(OLD)
    (tmp_path / "python").chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = {"taken": str(server.getsockname()[1]), "old": f"{tmp_path}:{PATH}"}
        env = {"API_PORT": "1", name: settings.get(value, value)}
        if name == "PORT":
            env["UI_PORT"] = ""
        with start("bash", str(HERE / "start.sh"), **env) as process:
            code, error = end_of(process, 30)
    own = [line for line in error.splitlines() if line.startswith("start.sh: ")]
    assert (code, len(own), words in error) == (3 if name == "MODEL_PATH" else 1, 1, True)


# README.md, and what leaves the machine

# how blocks of README.md begin that show something, or are run elsewhere: by .ci/run, and above
SHOWN = ("table, or table", "400 rows, 9 columns", "python3 -m venv")
SHOWN += ("PUBLIC_API=1 streamlit run",)  # see test_public_api()
NOT_HERE = re.compile(r"\b(docker|hf|ray)\b")


def test_readme(tmp_path):
    """What README.md says to type works, and prints what stands below it; no block is left out."""
    area, built = np.arange(120) * 7 % 97 + 25.5, np.arange(120) * 11 % 90 + 1900
    sales = {"town": ["Alba", "Asti", "Bra"] * 40, "area (m²)": area, "built": built}
    table = csv_of(sales | {"listed": DAYS[::-1] * 2, "price": 1000 * area + 100 * built})
    (tmp_path / "sales.csv").write_text(table)
    k = np.arange(891)
    people = {"sex": np.where(k * 7 % 11 > 3, "m", "f"), "age": np.where(k % 9, k % 80, "")}
    (tmp_path / "passengers.csv").write_text(csv_of(people | {"survived": k * 3 % 7 // 4}))
    frame = pd.read_csv(tmp_path / "passengers.csv")
    columns = make_column_transformer((OneHotEncoder(), ["sex"]), (SimpleImputer(), ["age"]))
    pipeline = make_pipeline(columns, LogisticRegression()).fit(
        frame[["sex", "age"]], frame.survived
    )
    joblib.dump(pipeline, tmp_path / "notebook.joblib")
    (tmp_path / "train.py").symlink_to(HERE / "train.py")
    wine, printed = fit(tmp_path / "wine", None, build=train.build_model), ""
    (tmp_path / "new.csv").write_text(to_csv(rows_of(wine), wine))
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```", (HERE / "README.md").read_text())
    env = ENV | {"MODEL_PATH": "model.joblib"}  # not the one that is tested
    run = {"cwd": tmp_path, "env": env, "text": True, "stderr": subprocess.DEVNULL}
    with serve(load_api(wine.path).app) as url:
        for language, block in blocks:
            if block.startswith(SHOWN) or NOT_HERE.search(block):
                continue
            if block.startswith(("curl ", "python ")):
                command = block.replace("127.0.0.1:8001", url)
                printed = subprocess.check_output(command, shell=True, **run)
                if "sales.csv" in command:  # and then another one
                    assert "replaces a model of something else: 'What will it sell" in printed
            elif "def build_model" in block:
                names = vars(train) | {"RandomForestRegressor": RandomForestRegressor}
                exec(block, names)  # noqa: S102 as if it stood in train.py
                forest = fit(tmp_path / "forest", table, build=names["build_model"])
            elif language == "python":
                with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
                    patch.chdir(tmp_path)
                    exec(block, {})  # noqa: S102 as a notebook would
                settings = r"\n\{'max_leaf_nodes': \d+, 'learning_rate': 0.\d+\}\n"
                assert re.search(settings, out.getvalue())
            elif block.startswith("{"):
                printed, shown = json.loads(printed), json.loads(block)
                shares = pytest.approx(shown.pop("probabilities"), abs=1e-6)
                assert (printed.pop("probabilities"), printed) == (shares, shown)
            else:
                assert block in printed
    for name in ("forest on the table", "forest on the array"):
        assert re.search(f"  {name} +root mean squared error", forest.printed)
    assert (tmp_path / "scored.csv").read_text().count("\n") == 101


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_secrets_and_tables_stay_here(tmp_path):
    """Neither git nor `hf upload`, which obeys .gitignore, nor the image takes secrets, tables."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    shutil.copy(HERE / ".gitignore", tmp_path)
    stay = [".env", ".env.local", ".streamlit/secrets.toml", "customers.csv", "data/a.parquet"]
    leave = ["table.csv", "model.joblib", ".streamlit/config.toml", "train.py", "requirements.txt"]
    command = ["git", "-C", tmp_path, "check-ignore", "--no-index", *stay, *leave]
    assert subprocess.check_output(command, text=True).split() == stay
    image = re.findall(r"^[^#\n].*", (HERE / ".dockerignore").read_text(), re.MULTILINE)
    assert (image[0], re.findall(r"!.*\*.*", "\n".join(image))) == ("*", ["!*.py"])


def bring(requirements):
    """Return what such requirements bring to this machine, themselves included, with versions."""
    versions, todo = {}, list(requirements)
    for need in todo:  # grows meanwhile
        name = canonicalize_name(need.name)
        versions[name] = f"=={metadata.version(name)}"
        for other in map(Requirement, metadata.requires(name) or []):
            asked = [{"extra": extra} for extra in ("", *need.extras)]
            if other.marker and not any(map(other.marker.evaluate, asked)):
                continue
            if other not in todo:
                todo.append(other)
    return versions


def test_pinned():
    """All that is installed is pinned; the image leaves out what pytest alone brings."""
    text = (HERE / "requirements.txt").read_text()
    top = text[: text.index("\n# sed ")]
    pins = [Requirement(line) for line in re.findall(r"(?m)^[^#\n].*", text)]
    direct = [pin for pin in pins if f"\n{pin}\n" in f"\n{top}\n"]
    pins = [pin for pin in pins if not pin.marker or pin.marker.evaluate()]
    assert bring(pins) == {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    used = bring(pin for pin in direct if pin.name != "pytest")
    left_out = re.search(r"grep -vE '\^\((.*)\)=='", (HERE / "Dockerfile").read_text())[1]
    assert set(left_out.split("|")) == bring(direct).keys() - used.keys()


# in a browser


def test_browser(apis, tmp_path):
    """What AppTest can't: a link reopens form and answer, a file goes up, and its answers down."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("Debian's Chromium is not installed")
    path = tmp_path / "table.csv"
    path.write_text(to_csv(rows_of(apis["here"]), apis["here"]))
    with ExitStack() as stack:
        run = start("bash", str(HERE / "start.sh"), MODEL_PATH=str(MODEL))
        wait(process := stack.enter_context(run))
        browser = stack.enter_context(playwright.sync_playwright()).chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
        )
        stack.callback(browser.close)
        page = browser.new_page()
        page.goto(process.page)
        page.get_by_text("they are no causes").wait_for()
        assert page.title() == apis["here"].card["title"]
        # what is typed is in the address, and comes back by it
        name = next(f["name"] for f in apis["here"].card["features"] if f["type"] == "number")
        page.get_by_role("textbox", name=name).first.fill("98765")
        page.get_by_role("textbox", name=name).first.press("Tab")
        page.get_by_text("How sure the model is there says nothing").wait_for()
        assert "98765" in page.url
        page.goto(page.url)
        page.get_by_text("How sure the model is there says nothing").wait_for()
        playwright.expect(page.get_by_role("textbox", name=name).first).to_have_value("98765")
        page.get_by_role("tab", name="Many rows").click()
        page.locator("input[type=file]").set_input_files(path)
        with page.expect_download() as template:
            page.get_by_role("button", name="Download a template").click()
        names, _, rows = train.read_table(template.value.path().read_bytes())
        examples = [example["features"] for example in apis["here"].card["examples"]]
        assert (names, len(list(rows))) == (list(examples[0]), len(examples))
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the result").click()
        expected = ask(process.api + "/predict/csv", path.read_bytes(), CSV)[1]
        assert download.value.path().read_text(encoding="utf-8-sig") == expected

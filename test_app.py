"""Test train.py, main_api.py, main_ui.py and start.sh with real parts: uvicorn, urllib, AppTest.

    python -m pytest        # about a minute; the rows come from the cards, so any model will do

Two tests need more, and are skipped without it: one a browser (Playwright and Debian's Chromium),
one the command schemathesis.
"""

import hashlib
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

os.environ["OMP_NUM_THREADS"] = "1"  # before scikit-learn is imported, as in train.py

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from streamlit.testing.v1 import AppTest

import main_api
import train

HERE = Path(__file__).parent
MODEL = Path(os.environ.get("MODEL_PATH", HERE / "model.joblib")).resolve()
BIN = Path(sys.executable).parent
PORTS = itertools.count(20_000 + os.getpid() % 10_000)
ENV = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(HERE)}


class SlowModel:
    """Doubles its feature; takes half a second where it is positive, and raises at 13."""

    def predict(self, X):
        values = np.asarray(X)[:, 0]
        if 13 in values:
            raise ValueError("unlucky")
        time.sleep(0.5 if (values > 0).any() else 0)
        return values * 2


def free_port() -> int:
    """Return a new port, below the range from which outgoing connections take theirs."""
    for port in PORTS:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) != 0:
                return port


def ask(url, body=None, content_type="application/json"):
    """Return the status and the answer, which may not hold NaN; bytes are sent as they are."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, {"Content-Type": content_type}), timeout=30) as response:
            return response.status, json.load(response, parse_constant=pytest.fail)
    except HTTPError as error:
        return error.code, json.loads(error.read() or b"{}", parse_constant=pytest.fail)


def wait_for(url, process, seconds=60):
    for _ in range(seconds * 10):
        assert process.poll() is None, "it ended before it was ready"
        try:
            return urlopen(url, timeout=1).read()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} is not ready")


class Api:
    """A real uvicorn in a process of its own, which serves the model at path."""

    def __init__(self, path: Path):
        artifact = joblib.load(path)
        self.path, self.model, self.card = path, artifact["model"], artifact["card"]
        self.port, self.log = free_port(), path.with_suffix(f".{os.getpid()}.log")
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "uvicorn", "main_api:app", "--port", str(self.port)]
        env = ENV | {"MODEL_PATH": str(path)}
        self.process = subprocess.Popen(command, cwd=HERE, env=env, stderr=self.log.open("w"))

    def frame(self, rows):
        """Return rows as the DataFrame that the model was fitted to."""
        columns = {}
        for f in self.card["features"]:
            values = [row.get(f["name"]) for row in rows]
            is_category = f["type"] == "category"
            columns[f["name"]] = (
                pd.Categorical(values, f["choices"]) if is_category else np.array(values, float)
            )
        return pd.DataFrame(columns)

    def random_rows(self, n):
        rng, rows = np.random.default_rng(0), []
        for _ in range(n):
            row = {}
            for f in self.card["features"]:
                if f["nullable"] and rng.random() < 0.2:
                    row[f["name"]] = None
                elif f["type"] == "number":
                    row[f["name"]] = rng.uniform(f["minimum"], f["maximum"])
                else:
                    row[f["name"]] = rng.choice(f.get("choices", [False, True])).item()
            rows.append(row)
        return rows

    def check(self, rows, answer, tolerance=1e-9):
        """Assert that a batch's answer is the model's own for these rows."""
        X = self.frame(rows)
        if "classes" not in self.card:
            assert answer["prediction"] == pytest.approx(self.model.predict(X), rel=tolerance)
            return
        assert answer["prediction"] == self.model.predict(X).tolist()
        assert list(answer["probabilities"]) == self.model.classes_.tolist()
        probabilities = np.transpose(list(answer["probabilities"].values()))
        assert probabilities == pytest.approx(self.model.predict_proba(X), abs=tolerance)


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_mixed(path: Path) -> None:
    """Write a table with everything that tables have: gaps, dates, an id, awkward names."""
    rng = np.random.default_rng(0)
    lines = ['id;class;_x;"say ""hi""";;a;a;model_config;Größe;when;kind']
    for i in range(160):
        x, size = rng.normal(), rng.uniform(1000, 9000)
        colour = rng.choice(["rot", "grün", "None"])
        kind = "A" if x > 0.5 else "B" if colour == "rot" else "c d"
        cells = [i, f"{x:.3f}", rng.integers(9), colour if i % 7 else "?", f"{size:,.2f} €", i % 3]
        cells += [
            "yes" if x > 0 else "no",
            rng.choice(["true", "FALSE"]),
            "" if i % 5 == 0 else i % 11,
        ]
        kind = {0: "", 1: "rare"}.get(i % 80, kind)
        lines.append(";".join(map(str, [*cells, f"2024-01-{i % 28 + 1:02}", kind])))
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))


@pytest.fixture(scope="session")
def apis(tmp_path_factory):
    """The model that is here, and one of each task trained from a mixed table, all served."""
    folder = tmp_path_factory.mktemp("models")
    write_mixed(folder / "mixed.csv")
    jobs = []
    for target in ("kind", "class"):
        command = [sys.executable, "train.py", str(folder / "mixed.csv"), "--target", target]
        env = ENV | {"MODEL_PATH": str(folder / f"{target}.joblib")}
        jobs.append(subprocess.Popen(command, cwd=HERE, env=env, stdout=subprocess.PIPE, text=True))
    shutil.copy(MODEL, folder / "here.joblib")
    slow = {
        "title": "slow", "description": "", "task": "regression", "target": "y",
        "features": [{"name": "x", "type": "number", "minimum": -2, "maximum": -1, "default": -1, "integer": False, "nullable": False}],
        "uncertainty": {"coverage": 0.9, "quantile": 1.0},
        "examples": [{"features": {"x": 1.0}, "target": 2.0}],
    }  # fmt: skip
    SlowModel.__module__ = "test_app"  # not __main__, whatever runs this
    joblib.dump({"model": SlowModel(), "card": slow}, folder / "slow.joblib")
    for job in jobs:
        job.output = job.communicate()[0]
        assert job.returncode == 0
    served = {name: Api(folder / f"{name}.joblib") for name in ("here", "kind", "class", "slow")}
    served["printed"] = jobs[0].output
    apis = [api for api in served.values() if isinstance(api, Api)]
    for api in apis:
        wait_for(f"{api.url}/health", api.process)
    yield served
    for api in apis:
        api.process.terminate()
        assert api.process.wait(10) in (0, -signal.SIGTERM)
        assert "Traceback" not in api.log.read_text()


@pytest.fixture(params=["here", "kind", "class"])
def api(request, apis):
    """Each of the real models, served."""
    return apis[request.param]


@pytest.fixture
def page(api, monkeypatch):
    """The page, drawn for each of the models."""
    monkeypatch.setenv("API_URL", api.url)
    at = AppTest.from_file(str(HERE / "main_ui.py"), default_timeout=30).run()
    assert not at.exception
    return at


# train.py


def test_train_mixed_table(apis):
    """Every column is kept as it is named, or left out with a reason."""
    card = apis["kind"].card
    assert [(f["name"], f["type"], f["nullable"]) for f in card["features"]] == [
        ("class", "number", False),
        ("_x", "number", False),
        ('say "hi"', "category", True),
        ("column 5", "number", False),
        ("a", "number", False),
        ("a (2)", "category", False),
        ("model_config", "boolean", False),
        ("Größe", "number", True),
    ]
    assert [entry["rows"] for entry in card["dropped"] if "rows" in entry] == [2, 2]
    assert "'rare' has fewer than the 5 rows" in card["dropped"][1]["reason"]
    reasons = {e["column"]: e["reason"] for e in card["dropped"] if "column" in e}
    assert reasons == {"id": "an identifier: whole numbers, all different", "when": "dates"}
    assert card["features"][2]["choices"] == ["None", "grün", "rot"]
    assert 1000 <= card["features"][3]["minimum"] <= card["features"][3]["maximum"] <= 9000
    assert card["classes"] == ["A", "B", "c d"]
    assert card["metrics"]["log_loss"] < card["baseline"]["log_loss"]
    assert card["metrics"].keys() == card["baseline"].keys()
    assert "an identifier" in apis["printed"] and "dummy" in apis["printed"]


def test_train_twice_is_the_same(apis, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "MODEL_PATH", tmp_path / "again.joblib")
    table = apis["kind"].path.with_name("mixed.csv")
    monkeypatch.setattr(sys, "argv", ["train.py", str(table), "--target", "kind"])
    train.main()
    again, first = joblib.load(tmp_path / "again.joblib"), apis["kind"]
    assert again["card"] == first.card
    X = first.frame(first.random_rows(50))
    assert np.array_equal(again["model"].predict_proba(X), first.model.predict_proba(X))


def test_train_covers(tmp_path, monkeypatch):
    """Intervals and sets of likely labels hold nine of ten truths of rows kept out."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(3000, 3)), columns=list("abc"))
    table["y"] = table.a + table.b * table.c + rng.normal(size=3000)
    table["label"] = np.where(table.y > 1, "high", np.where(table.y > -1, "mid", "low"))
    monkeypatch.setattr(train, "MODEL_PATH", tmp_path / "model.joblib")
    for target, other in (("y", "label"), ("label", "y")):
        table[:1000].drop(columns=other).to_csv(tmp_path / "t.csv", index=False)
        monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "t.csv"), "--target", target])
        train.main()
        artifact, rest = joblib.load(tmp_path / "model.joblib"), table[1000:]
        quantile, model = artifact["card"]["uncertainty"]["quantile"], artifact["model"]
        if target == "y":
            holds = abs(model.predict(rest[["a", "b", "c"]]) - rest.y) <= quantile
        else:
            probabilities = pd.DataFrame(
                model.predict_proba(rest[["a", "b", "c"]]), rest.index, model.classes_
            )
            holds = [probabilities.at[i, rest.label[i]] >= 1 - quantile for i in rest.index]
        assert 0.87 <= np.mean(holds) <= 0.93


def test_train_own_model(tmp_path, monkeypatch):
    """A pipeline of one's own, which selects columns by name, is trained and served."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 2)), columns=["class", "b"])
    table["y"] = table["class"] * 2
    columns = make_column_transformer((StandardScaler(), ["class"]))
    monkeypatch.setattr(train, "build_model", lambda task, X: make_pipeline(columns, Ridge()))
    monkeypatch.setattr(train, "load_table", lambda path: table)
    monkeypatch.setattr(train, "MODEL_PATH", tmp_path / "model.joblib")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    train.main()
    model, card, _ = main_api.load_model(str(tmp_path / "model.joblib"))
    batcher = main_api.Batcher(model, card)
    assert not batcher.as_array
    answer = batcher.answer(table[["class", "b"]].to_numpy())
    assert answer["prediction"] == model.predict(table[["class", "b"]]).tolist()


ROWS = "".join(f"{i % 7},{i % 2}\n" for i in range(40))


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (None, [], "No such file"),
        (b"\x89PNG\r\n\x00\x00", [], "not a text file"),
        ("", [], "is empty"),
        ("a\n1\n2\n", [], "has one column"),
        ("a,b\n1,2\n1,2,3\n", [], "line 3"),
        ("price,y\n" + ROWS, ["--target", "prize"], "did you mean --target 'price'"),
        ("a,y\n" + ROWS.replace(",1", ",0"), [], "has 1 classes"),
        ("a,y\n" + ROWS[:32], [], "0 classes with 5 rows"),
        ("a,y\n" + ROWS[:32], ["--task", "regression"], "8 usable rows"),
        ("a,y\n" + ROWS, ["--task", "regression", "--target", "a"], None),
        (
            "a,y\n" + "".join(f"{i * 0.7},{i if i - 9 else 'x'}\n" for i in range(40)),
            [],
            "'x' in data row 10",
        ),
        (
            "a,y\n" + "".join(f"{i * 0.7 if i - 9 else 'x'},{i % 2}\n" for i in range(40)),
            [],
            "'x' in data row 10",
        ),
        ("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(40)), [], "no column is left"),
        ("a,y\n" + "".join(f"{i % 7},\n" for i in range(40)), [], "0 classes"),
    ],
)
def test_train_refuses(content, arguments, words, tmp_path, monkeypatch, capsys):
    """Exit code 2, one line on stderr, and the old model is still there."""
    table, model = tmp_path / "table.csv", tmp_path / "model.joblib"
    model.write_text("old")
    if content is not None:
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(train, "MODEL_PATH", model)
    monkeypatch.setattr(sys, "argv", ["train.py", str(table), *arguments])
    if words is None:
        train.main()
        assert model.read_bytes() != b"old"
        return
    with pytest.raises(SystemExit) as end:
        train.main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1
    assert re.search(words, error)
    assert sorted(p.name for p in tmp_path.iterdir() if p != table) == ["model.joblib"]
    assert model.read_text() == "old"


# main_api.py


def test_health(api):
    assert ask(api.url + "/health") == (200, {"status": "ok"})


def test_model(api):
    sha256 = hashlib.sha256(api.path.read_bytes()).hexdigest()
    assert ask(api.url + "/model") == (200, api.card | {"sha256": sha256})


def test_predict_example(api):
    """The answer is the estimator's own, to the last digit."""
    for example in api.card["examples"]:
        status, answer = ask(api.url + "/predict", example["features"])
        assert status == 200
        as_batch = {key: [value] for key, value in answer.items()}
        if "classes" in api.card:
            as_batch["probabilities"] = {k: [v] for k, v in answer["probabilities"].items()}
            assert answer["likely"][0] == answer["prediction"]
            limit = 1 - api.card["uncertainty"]["quantile"]
            others = {k for k, v in answer["probabilities"].items() if v >= limit}
            assert set(answer["likely"]) == others | {answer["prediction"]}
        else:
            half = api.card["uncertainty"]["quantile"]
            ends = [answer["prediction"] - half, answer["prediction"] + half]
            assert answer["interval"] == pytest.approx(ends)
        api.check([example["features"]], as_batch, tolerance=0)
        assert answer["warnings"] == []


def test_predict_outside(api):
    """A number outside the training range is predicted, with a sentence."""
    row = api.card["examples"][0]["features"]
    for f in (f for f in api.card["features"] if f["type"] == "number"):
        for value, word in ((f["maximum"] + 1.5, "above"), (f["minimum"] - 1.5, "below")):
            status, answer = ask(api.url + "/predict", row | {f["name"]: value})
            assert status == 200
            assert len(answer["warnings"]) == 1
            assert answer["warnings"][0].startswith(f"{f['name']} {value:.10g} is {word} ")


def test_predict_without_nullable(api):
    row = api.card["examples"][0]["features"]
    nullable = [f["name"] for f in api.card["features"] if f["nullable"]]
    absent = {name: value for name, value in row.items() if name not in nullable}
    status, answer = ask(api.url + "/predict", absent)
    assert status == 200
    assert ask(api.url + "/predict", absent | dict.fromkeys(nullable)) == (200, answer)


def test_predict_batch(api):
    """One call for many rows gives what the model gives, and what rows alone give."""
    rows = api.random_rows(300)
    status, answer = ask(api.url + "/predict/batch", columns_of(rows))
    assert status == 200
    api.check(rows, answer)
    _, alone = ask(api.url + "/predict", rows[7])
    assert alone["prediction"] == (
        answer["prediction"][7] if "classes" in api.card else pytest.approx(answer["prediction"][7])
    )
    assert len(answer["warnings"]) == 300


def bad_bodies(card):
    """Yield a body, the place and a word of the 422 for all that is refused."""
    row = card["examples"][0]["features"]
    for f in card["features"]:
        name, at = f["name"], ["body", f["name"]]
        wrong = {
            "number": ["12", True, [], 1e31],
            "boolean": ["true", 1],
            "category": ["", 1],
        }
        for value in [*wrong[f["type"]], float("nan"), float("inf"), {}]:
            yield row | {name: value}, at, ""
        if f["type"] == "category":
            yield row | {name: f["choices"][0] + "x"}, at, f["choices"][0]
        if not f["nullable"]:
            yield row | {name: None}, at, ""
            yield {k: v for k, v in row.items() if k != name}, at, "required"
    yield row | {"never heard of": 1}, ["body", "never heard of"], "not permitted"
    for text in (
        b"",
        b"{",
        b'{"\\ud800": "\\ud800"}',
        b"[]",
        b"null",
        b"\xff",
        b"[" * 9999,
        b'{"a":' * 9999,
        b"1" * 9999,
    ):
        yield text, ["body"], ""


def test_predict_refuses(api):
    for body, place, word in bad_bodies(api.card):
        status, answer = ask(api.url + "/predict", body)
        assert status == 422, body
        assert answer["detail"][0]["loc"] == place, body
        assert word in answer["detail"][0]["msg"]
        assert all(entry.keys() == {"loc", "msg", "type"} for entry in answer["detail"])


def test_predict_batch_refuses(api):
    rows = api.random_rows(50)
    columns, name = columns_of(rows), api.card["features"][0]["name"]
    url = api.url + "/predict/batch"
    status, answer = ask(url, columns | {name: columns[name][:7] + [{}] + columns[name][8:]})
    assert (status, answer["detail"][0]["loc"]) == (422, ["body", name, 7])
    status, answer = ask(url, columns | {name: [{}] * 50})
    assert (status, len(answer["detail"])) == (422, 20)
    status, answer = ask(url, columns | {name: columns[name][1:]})
    assert (status, answer["detail"][0]["loc"]) == (422, ["body"])
    assert "equally many rows" in answer["detail"][0]["msg"]
    status, answer = ask(url, {key: [] for key in columns})
    assert status == 422
    assert "at least 1" in answer["detail"][0]["msg"]
    status, answer = ask(url, {name: column * 201 for name, column in columns.items()})
    assert status == 422
    assert "at most 10000" in answer["detail"][0]["msg"]
    with socket.create_connection(("127.0.0.1", api.port)) as s:
        s.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 16777217\r\n\r\n")
        assert b" 413 " in s.recv(99)
    assert ask(url, columns, "text/plain")[0] == 415


def test_fuzz(api):
    """Thousands of bodies made from the card, most of them wrong somewhere: never a 5xx."""
    rng, bodies = random.Random(0), []
    odd = [None, True, 0, -0.0, 1e308, 1e30, -1e29, 5e-324, math.nan, math.inf, 10**400]
    odd += ["", "1", "x", "\0", "\ud800", [], {}, [[]], {"a": 1}]
    for row in api.random_rows(1000):
        path, kind = "/predict", rng.choice(["application/json"] * 20 + ["text/plain", ""])
        for name in rng.sample([*row, "x", "f0", ""], rng.choice([0, 0, 1, 2])):
            row[name] = rng.choice(odd)
        if rng.random() < 0.4:
            path, n = "/predict/batch", rng.choice([0, 1, 3])
            row = {
                name: [value] * n if rng.random() < 0.99 else value for name, value in row.items()
            }
        body = json.dumps(row).encode()
        if rng.random() < 0.1:
            i = rng.randrange(len(body))
            body = body[:i] + rng.randbytes(1) + body[i + rng.choice([1, len(body)]) :]
        bodies.append((api.url + path, body, kind))
    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(status for status, _ in pool.map(lambda body: ask(*body), bodies))
    assert statuses.keys() == {200, 415, 422}
    assert min(statuses[200], statuses[422]) > 150


@pytest.mark.skipif(not shutil.which("schemathesis"), reason="schemathesis is not installed")
def test_schemathesis(api, tmp_path):
    """All checks of schemathesis against /openapi.json find nothing."""
    # note: JSON Schema can't say that columns are equally long, so a valid batch may be refused
    (tmp_path / "schemathesis.toml").write_text(
        '[[operations]]\ninclude-path = "/predict/batch"\n'
        'checks.positive_data_acceptance.expected-statuses = ["2xx", 422]\n'
    )
    command = ["schemathesis", "run", api.url + "/openapi.json", "--checks", "all"]
    command += ["--max-examples", "30", "--seed", "1"]
    run = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_openapi(api):
    """The documentation shows every feature, and examples that work."""
    _, openapi = ask(api.url + "/openapi.json")
    for path, name in (("/predict", "Row"), ("/predict/batch", "Columns")):
        schema = openapi["components"]["schemas"][name]
        assert list(schema["properties"]) == [f["name"] for f in api.card["features"]]
        assert ask(api.url + path, schema["examples"][0])[0] == 200


def test_predict_under_load(api):
    """200 clients at once, each with its own row, each gets its own answer."""
    rows = api.random_rows(200)

    def client(i):
        if i % 10 == 0:  # one that goes away, one that sends rubbish
            with socket.create_connection(("127.0.0.1", api.port)) as s:
                s.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{")
            assert ask(api.url + "/predict", b"{")[0] == 422
        return ask(api.url + "/predict", rows[i])

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(client, range(200)))
    assert {status for status, _ in answers} == {200}
    together = {"prediction": [answer["prediction"] for _, answer in answers]}
    if "classes" in api.card:
        probabilities = [answer["probabilities"] for _, answer in answers]
        together["probabilities"] = columns_of(probabilities)
    api.check(rows, together)


def test_slow_model(apis):
    """While the model works the loop is free, waiting rows share a call, and a bad one fails
    alone."""
    url = apis["slow"].url
    with ThreadPoolExecutor(30) as pool:
        started = time.monotonic()
        first = pool.submit(ask, url + "/predict", {"x": 1.0})
        time.sleep(0.2)
        others = [pool.submit(ask, url + "/predict", {"x": float(x)}) for x in range(2, 22)]
        assert ask(url + "/health")[0] == 200
        assert not first.done()
        assert first.result()[1]["prediction"] == 2.0
        for x, other in zip(range(2, 22), others):
            status, answer = other.result()
            if x == 13:
                assert (status, answer["detail"][0]["type"]) == (422, "no_answer")
            else:
                assert (status, answer["prediction"]) == (200, 2.0 * x)
        # 1 call for the first, about 2 log2(20) to find the bad one; not 20
        assert time.monotonic() - started < 9


def test_too_much_waits(apis):
    """Beyond the queue's limit the answer is 503 with Retry-After; work of the gone is dropped."""
    url = apis["slow"].url
    body = json.dumps({"x": [1.0] * 10_000}).encode()
    request = Request(url + "/predict/batch", body, {"Content-Type": "application/json"})

    def send(_):
        try:
            return urlopen(request, timeout=30).status, None
        except HTTPError as error:
            return error.code, error.headers["Retry-After"]

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(send, range(6))) == {(200, None), (503, "1")}
    body = json.dumps({"x": [1.0] * 300}).encode()  # too many to share a call
    head = "POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", apis["slow"].port)) as s:
            s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    started = time.monotonic()
    assert ask(url + "/predict", {"x": 1.0})[1]["prediction"] == 2.0
    assert time.monotonic() - started < 5, "20 calls for clients that have gone take 10 s"


def test_load_model_refuses(tmp_path, monkeypatch):
    """A bad model.joblib: one line that says what was found and what to type. For the exit code
    see test_start_refuses."""
    good = MODEL.read_bytes()
    with monkeypatch.context() as m:
        m.setattr("sklearn.base.__version__", "1.5.0")
        joblib.dump(joblib.load(MODEL), tmp_path / "older")
    joblib.dump({"model": "of someone else"}, tmp_path / "other")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "truncated").write_bytes(good[: len(good) // 2])
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "pinned").write_bytes(good)
    words = {
        "missing": "can't be read .* run `python train.py`",
        "older": "saved by scikit-learn 1.5.0, this is .* run `python train.py`",
        "other": "not saved by train.py, .* run `python train.py`",
        "empty": "not saved by train.py, .* run `python train.py`",
        "truncated": "not saved by train.py, .* run `python train.py`",
        "pointer": "Git LFS pointer: run `git lfs pull`",
        "pinned": "has SHA-256 .* MODEL_SHA256 is 'abc'",
    }
    for name, pattern in words.items():
        monkeypatch.setattr(main_api, "MODEL_SHA256", "abc" if name == "pinned" else "")
        with pytest.raises(ValueError, match=pattern) as error:
            main_api.load_model(str(tmp_path / name))
        assert f"'{tmp_path / name}'" in str(error.value)
        assert "\n" not in str(error.value)


# main_ui.py


def words_on(at) -> str:
    kinds = ("metric", "markdown", "error", "warning", "success", "info", "caption")
    return " ".join(e.value for kind in kinds for e in at.get(kind)).replace("\\", "")


def test_page_predicts(page, api):
    """Predict shows the answer to what is in the form; nothing is asked before."""
    labels = [
        w.label.replace("\\", "")
        for w in page.main
        if w.type in ("number_input", "selectbox", "toggle")
    ]
    assert set(labels) >= {f["name"] for f in api.card["features"]}
    assert not page.metric
    page.button(key="page:predict").click().run()
    assert not page.exception
    assert [m.label.replace("\\", "") for m in page.metric] == [api.card["target"]]


def test_page_example(page, api):
    """An example fills the form and the address, and the true answer stands beside it."""
    page.button(key="page:try").click().run()
    example = api.card["examples"][0]
    _, answer = ask(api.url + "/predict", example["features"])
    assert not page.exception
    assert "This is a real row" in words_on(page)
    assert f"was {example['target']}" in words_on(page) or "classes" not in api.card
    if "classes" in api.card:
        assert page.metric[0].value == answer["prediction"]
        assert "100.0 %" not in words_on(page)
    assert json.loads(page.code[2].value) == answer
    first = next(f for f in api.card["features"] if f["type"] == "number")["name"]
    assert float(page.query_params[f"_{first}"]) == example["features"][first]


def test_page_warns(page, api):
    """A number outside the training range brings a sentence."""
    first = next(f for f in api.card["features"] if f["type"] == "number")
    page.number_input(key=f"_{first['name']}").set_value(first["maximum"] + 1)
    page.button(key="page:predict").click().run()
    assert "the highest in training" in words_on(page)


def test_page_what_if(page, api):
    """For every feature one chart, and no error."""
    page.button(key="page:try").click().run()
    for f in api.card["features"]:
        page.selectbox(key="page:what-if").select(f["name"]).run()
        assert not page.exception
        assert not page.error
        assert f"at {f['name']} = " in words_on(page)
        spec = json.loads(page.get("vega_lite_chart")[-2].proto.spec)
        assert spec["layer"][0]["mark"]["type"] == ("line" if f["type"] == "number" else "point")


def test_page_many_rows(page, api):
    """What is wrong with which row is said first; the rest is predicted, and nothing is lost."""
    rows = [example["features"] for example in api.card["examples"]]
    first = next(f for f in api.card["features"] if f["type"] == "number")["name"]
    table = pd.DataFrame(rows).assign(mine="kept")
    bad = table.iloc[:2].astype(object).copy()
    bad.iloc[0, bad.columns.get_loc(first)] = "abc"
    bad.iloc[1, bad.columns.get_loc(first)] = 1e31  # for the API to refuse
    text = pd.concat([table, bad]).to_csv(index=False)
    page.file_uploader(key="page:file").set_value(("t.csv", text.encode(), "text/csv")).run()
    assert f"1 of {len(rows) + 2} rows can't be predicted" in words_on(page)
    assert page.dataframe[0].value["problem"].tolist() == [f"{first} is 'abc', no number."]
    page.button(key="page:score").click().run()
    assert not page.exception
    _, result = page.session_state["page:result"]
    _, answer = ask(api.url + "/predict/batch", columns_of(rows))
    assert result["prediction"].tolist()[:-2] == answer["prediction"]
    assert result.columns[: len(table.columns)].tolist() == table.columns.tolist()
    assert result["mine"].eq("kept").all()
    assert result["problem"].tolist()[:-2] == [""] * len(rows)
    assert "no number" in result["problem"].iloc[-2]
    assert "less than or equal" in result["problem"].iloc[-1]


def test_page_refuses_files(page, api):
    for content, words in (
        (b"x\n1\n", "has no column"),
        (b"", "no table"),
        (b'a,b\n"1,2\n', "no table"),
    ):
        page.file_uploader(key="page:file").set_value(("t.csv", content, "text/csv")).run()
        assert not page.exception
        assert words in words_on(page)


def test_page_about(page, api):
    assert f"{api.card['rows']:,} rows" in words_on(page)
    assert hashlib.sha256(api.path.read_bytes()).hexdigest() in words_on(page)
    for entry in api.card["dropped"]:
        assert entry["reason"] in words_on(page)


def test_page_without_api(apis, monkeypatch):
    """No API: a sentence and a way to try again, and nothing of it is kept."""
    monkeypatch.setenv("API_URL", f"http://127.0.0.1:{free_port()}")
    at = AppTest.from_file(str(HERE / "main_ui.py"), default_timeout=30).run()
    assert not at.exception
    assert "The model is not there" in at.error[0].value
    monkeypatch.setenv("API_URL", apis["here"].url)
    at.button(key="page:retry").click().run()
    assert not at.error
    assert apis["here"].card["title"] in at.title[0].value.replace("\\", "")


# start.sh


class Started:
    """start.sh as a process on free ports."""

    def __init__(self, script=HERE / "start.sh", **env):
        self.ports = {"API_PORT": str(free_port()), "UI_PORT": str(free_port())}
        self.api, self.page = (f"http://127.0.0.1:{port}" for port in self.ports.values())
        self.process = subprocess.Popen(
            ["bash", str(script)], cwd="/", env=ENV | self.ports | env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def wait(self):
        wait_for(f"{self.page}/_stcore/health", self.process)

    def end(self, seconds):
        """Assert that it ends in time with nothing left; return the exit code and stderr."""
        error = self.process.communicate(timeout=seconds)[1]
        for port in self.ports.values():
            with socket.socket() as s:
                assert s.connect_ex(("127.0.0.1", int(port))) != 0, "something is left running"
        assert "Traceback" not in error
        return self.process.returncode, error


@pytest.fixture(scope="module")
def started(apis, tmp_path_factory):
    """Copies of start.sh for the events below: from another folder, a path with spaces, without
    the run bit, with the slow model; all at once, to save time."""
    folder = tmp_path_factory.mktemp("a path")
    for name in ("main_api.py", "main_ui.py", "start.sh"):
        shutil.copyfile(HERE / name, folder / name)
    shutil.copytree(HERE / ".streamlit", folder / ".streamlit")
    events = ("SIGTERM", "SIGINT", "main_api", "main_ui")
    path = str(apis["slow"].path)
    started = {event: Started(folder / "start.sh", MODEL_PATH=path) for event in events}
    yield started
    for each in started.values():
        each.process.kill()


@pytest.mark.parametrize(("event", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_start_and_stop(event, code, started):
    """docker stop and Ctrl-C: what is in flight is answered, and both end."""
    copy = started[event]
    copy.wait()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, copy.api + "/predict", {"x": 1.0})
        time.sleep(0.2)
        # Ctrl-C goes to every process of the terminal
        kill = os.killpg if event == "SIGINT" else os.kill
        kill(copy.process.pid, getattr(signal, event))
        assert answer.result()[1]["prediction"] == 2.0
    assert copy.end(5)[0] == code


@pytest.mark.skipif(not shutil.which("pgrep"), reason="pgrep is not installed")
@pytest.mark.parametrize("event", ["main_api", "main_ui"])
def test_start_ends_when_one_is_killed(event, started):
    copy = started[event]
    copy.wait()
    command = ["pgrep", "-P", str(copy.process.pid), "-f", event]
    os.kill(int(subprocess.check_output(command)), signal.SIGKILL)
    assert copy.end(3)[0] == 137


def test_start_refuses(tmp_path):
    """A taken port, no curl, no model: a line that says what to do, and nothing left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name in ("API_PORT", "UI_PORT"):
            process = Started(**{name: port}).process
            error = process.communicate(timeout=5)[1]
            assert process.returncode == 1
            assert error.startswith(f"start.sh: port {port} is taken: ")
            assert error.count("\n") == 1
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    code, error = Started(PATH=str(tmp_path)).end(5)
    assert (code, error.count("\n")) == (1, 1)
    assert "curl is missing: install it" in error
    code, error = Started(MODEL_PATH=str(tmp_path / "none.joblib")).end(30)
    assert code == 3
    assert error.count("run `python train.py`") == 1


# in a browser


def test_browser(apis, tmp_path):
    """Open, predict, upload, download; kill the API and read why; bring it back and predict."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's Chromium is not installed")
    api = Api(shutil.copy(MODEL, tmp_path / "model.joblib"))
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "main_ui.py", "--server.port", str(port)]
    page_process = subprocess.Popen(command, cwd=HERE, env=ENV | {"API_URL": api.url})
    try:
        wait_for(f"{api.url}/health", api.process)
        wait_for(f"http://127.0.0.1:{port}/_stcore/health", page_process)
        with playwright.sync_playwright() as p:
            arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = p.chromium.launch(executable_path=chromium, args=arguments)
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}")
            predict = page.get_by_role("button", name="Predict", exact=True)
            metric = page.get_by_test_id("stMetric")
            predict.click()
            metric.wait_for()
            # a link reopens the filled form with its answer
            page.get_by_role("button", name="Try an example").click()
            page.get_by_text("This is a real row").wait_for()
            page.goto(page.url)
            page.get_by_text("This is a real row").wait_for()
            page.get_by_role("tab", name="Many rows").click()
            rows = [example["features"] for example in api.card["examples"]]
            table = tmp_path / "table.csv"
            pd.DataFrame(rows).to_csv(table, index=False)
            page.locator("input[type=file]").set_input_files(table)
            page.get_by_role("button", name=f"Predict {len(rows)} rows").click()
            with page.expect_download() as download:
                page.get_by_role("button", name="Download the result").click()
            result = pd.read_csv(download.value.path(), dtype={"prediction": str})
            _, answer = ask(api.url + "/predict/batch", columns_of(rows))
            assert result["prediction"].tolist() == list(map(str, answer["prediction"]))
            api.process.kill()
            api.process.wait()
            predict.click()
            page.get_by_text("The model is not there").first.wait_for()
            assert page.get_by_text("Traceback").count() == 0
            again = [sys.executable, "-m", "uvicorn", "main_api:app", "--port", str(api.port)]
            env = ENV | {"MODEL_PATH": str(api.path)}
            api.process = subprocess.Popen(again, cwd=HERE, env=env)
            wait_for(f"{api.url}/health", api.process)
            page.get_by_role("button", name="Try again").first.click()
            predict.click()
            metric.wait_for()
            browser.close()
    finally:
        for process in (api.process, page_process):
            process.terminate()
            process.wait(10)

"""Serve model.joblib over HTTP: schema, documentation and checks are made from the card in it.

uvicorn main_api:app --host 127.0.0.1 --port 8001        # then open /docs
"""

import asyncio
import csv
import gc
import hashlib
import io
import logging
import os
import warnings
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import islice
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NotRequired

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pools would fight with the event loop

import joblib
import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, from_json, to_json
from sklearn import set_config
from sklearn.exceptions import InconsistentVersionWarning
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from train import MAX_NUMBER, check_file, decode, encode, find_encoding, read_date, read_table

MODEL_PATH = os.environ.get("MODEL_PATH") or "model.joblib"
MODEL_SHA256 = os.environ.get("MODEL_SHA256", "")  # if set, any other file is refused
MAX_ROWS, MAX_BODY_BYTES = 10_000, 10 * 2**20  # in one request of JSON
MAX_FILE_ROWS, MAX_FILE_BYTES = 100_000, 50 * 2**20  # of a CSV file
MAX_FILES = 4  # at once; each is held in memory until it is answered
ANSWER_SECONDS = 300  # for a body to come, to be answered, and for its client to take the answer
JSON, CSV = "application/json", "text/csv"
# never 500: read_rows() refuses NaN and a million brackets, Model.answer() survives what raises
REFUSALS: dict[int | str, dict] = {413: {}, 415: {}, 422: {}, 503: {}}
LATER = {"Retry-After": "1"}  # seconds: a header of 503


class Answer(TypedDict):
    prediction: str | float
    probabilities: NotRequired[dict[str, float]]  # of each label, in a classification
    likely: NotRequired[list[str]]  # labels, one of which is true in nine of ten rows
    interval: NotRequired[list[float]]  # in a regression: low, high
    warnings: list[str]  # a sentence for each value outside of what training has seen


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request; for later ones swap it when its file is another."""
    app.state.uploads = asyncio.Semaphore(MAX_FILES)
    await serve_model(app)
    watch = asyncio.create_task(serve_new_models(app))
    gc.freeze()  # collections needn't walk the libraries and the model: a fifth of a request's time
    yield
    watch.cancel()


class JSONRoute(APIRoute):
    """A route in half of FastAPI's time; with dependencies, a login say, it is FastAPI's own."""

    def get_route_handler(self) -> Callable:
        self.ordinary = super().get_route_handler()
        return self.answer

    async def answer(self, request: Request) -> Response:
        try:
            if self.dependencies:
                return await self.ordinary(request)
            return Response(to_json(await self.endpoint(request)), media_type=JSON)
        except (asyncio.CancelledError, ClientDisconnect):
            raise HTTPException(503, "There was no time to answer", LATER) from None

    async def handle(self, *connection: Any) -> None:
        with suppress(TimeoutError):  # too slow with its body: 503, above; to take it: hung up on
            async with asyncio.timeout(ANSWER_SECONDS):
                await super().handle(*connection)


app = FastAPI(lifespan=lifespan, max_body_size=MAX_BODY_BYTES)
app.router.route_class = JSONRoute


@app.head("/health", include_in_schema=False)
@app.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Answer as soon as the model is loaded; before that nothing listens."""
    return {"status": "ok"}


@app.get("/model")
async def model_card(request: Request) -> dict[str, Any]:
    """Return the model's card, with the SHA-256 of the file."""
    return request.app.state.model.card


@app.post("/predict", responses=REFUSALS)
async def predict(request: Request) -> Answer:
    """Predict one row."""
    model, X = await read_rows(request, "Row")
    return model.write([column[0] for column in await model.predict(X)])


@app.post("/predict/batch", responses=REFUSALS)
async def predict_batch(request: Request) -> dict[str, Any]:
    """Predict many rows, given as columns; the answer has the keys of one row's, a list each."""
    model, X = await read_rows(request, "Columns")
    return model.write(await model.predict(X))


@app.post("/explain", responses=REFUSALS)
async def explain(request: Request) -> dict[str, Any]:
    """Say what each feature adds, from the average answer for rows of the table to this one."""
    model, [x] = await read_rows(request, "Row")
    return await share_out(x, model)


async def count_file(request: Request) -> AsyncIterator[None]:
    """Let MAX_FILES in at once, until they are answered or given up."""
    if request.app.state.uploads.locked():
        raise HTTPException(503, f"{MAX_FILES} files are being predicted", LATER)
    async with request.app.state.uploads:
        yield


@app.post(
    "/predict/csv",
    dependencies=[Depends(count_file)],
    max_body_size=MAX_FILE_BYTES,
    response_class=StreamingResponse,
    responses=REFUSALS | {200: {"content": {CSV: {}}}},
)
async def predict_csv(request: Request) -> StreamingResponse:
    """Predict a table as train.py reads it: its columns come back, followed by the answer's."""
    content, model = await read_body(request, CSV), request.app.state.model
    table = await asyncio.to_thread(open_table, content, model)
    return StreamingResponse(predict_lines(table, model), media_type=CSV)


# the story ends here: below is how it is done, with the care that odd models and bodies need

log = logging.getLogger("uvicorn.error")
logging.getLogger("uvicorn.access").disabled = True  # a line a request costs a tenth of the speed

# the model, and its answers
SAVED = ("model", "background", "by_probability", "low", "high", "rarely_missing")  # and the card
MAX_CALL_ROWS = 2_000  # in one call of the model: what is longer lets others in between
MAX_WAITING_ROWS = 20_000  # beyond it the answer is 503: ten calls
MAX_SENTENCES = 20  # warnings for a row, and reasons in a 422


class Model:
    """What train.py saved. All who wait are answered with one call, which costs as much as for one
    row. Nobody waits for company: what arrives during a call is the next batch."""

    def __init__(self, path: str):
        with open(path, "rb") as file:
            content = file.read()
        sha256 = hashlib.sha256(content).hexdigest()
        if MODEL_SHA256.lower() not in ("", sha256):
            raise ValueError(f"it has SHA-256 {sha256}, but MODEL_SHA256 is '{MODEL_SHA256}'")
        with warnings.catch_warnings(action="error", category=InconsistentVersionWarning):
            saved = joblib.load(io.BytesIO(content))
        if not isinstance(saved, dict):
            raise TypeError(f"a bare {type(saved).__name__} has no card: give it with --model")
        vars(self).update({key: saved[key] for key in SAVED})
        self.card = saved["card"] | {"sha256": sha256}
        self.classes = self.card.get("classes", [])  # none: it is a regression
        self.features = {feature["name"]: feature for feature in self.card["features"]}
        self.Row, self.Columns = body_types(self.card)
        self.checked = list(self.features.values())
        if not self.classes:  # then a prediction is checked like a feature
            self.checked.append({"name": self.card["target"], "type": "number"})
            self.low = np.append(self.low, self.card["uncertainty"]["minimum"])
            self.high = np.append(self.high, self.card["uncertainty"]["maximum"])
            self.rarely_missing = np.append(self.rarely_missing, False)
        self.ask(self.background[:1])  # what can't answer is refused now, not at the first request
        self.waiting: deque[tuple[np.ndarray, asyncio.Future]] = deque()
        self.is_called = False  # or will be, by those who wait
        # one thread, so that an estimator is never asked two things at once; with assume_finite
        self.thread = ThreadPoolExecutor(1, initializer=set_config, initargs=(True,))

    async def predict(self, X: np.ndarray) -> list[list]:
        """Return answer()'s columns. Raises HTTPException 422 if it has none, 503 if many wait."""
        if sum(len(rows) for rows, _ in [*self.waiting]) >= MAX_WAITING_ROWS:  # a copy: it shrinks
            raise HTTPException(503, "Too much work is waiting", LATER)
        columns = []
        for start in range(0, len(X), MAX_CALL_ROWS):
            future = asyncio.get_running_loop().create_future()
            self.waiting.append((X[start : start + MAX_CALL_ROWS], future))
            if not self.is_called:
                self.hand_out([], [])
            part = await future
            columns = [a + b for a, b in zip(columns, part)] if columns else part
        if None in columns[0]:
            row = columns[0].index(None)
            raise refusal(f"The model has no answer for these values (row {row})", "no_answer")
        return columns

    def hand_out(self, batch: list, columns: list[list]) -> None:
        """Hand out the answers of a call, and have the next one made if somebody waits."""
        stop = 0
        for X, future in batch:
            start, stop = stop, stop + len(X)
            if not future.done():  # cancelled, as its client has gone
                future.set_result([column[start:stop] for column in columns])
        self.is_called = bool(self.waiting)
        if self.is_called:  # a moment later, so that requests that are read together share a call
            asyncio.get_running_loop().call_soon(self.thread.submit, self.make_call)

    def make_call(self) -> None:
        """Answer those who wait by now with one call. It runs in the thread."""
        batch, room = [], MAX_CALL_ROWS
        while self.waiting and len(self.waiting[0][0]) <= room:
            batch.append(self.waiting.popleft())
            room -= len(batch[-1][0])
        columns = self.answer(np.concatenate([X for X, _ in batch]))
        batch[0][1].get_loop().call_soon_threadsafe(self.hand_out, batch, columns)

    def answer(self, X: np.ndarray, is_part: bool = False) -> list[list]:
        """Return ask()'s columns, with None for a prediction where the model raises."""
        try:
            return self.ask(X)
        except Exception as error:  # noqa: BLE001 an estimator may raise anything
            if len(X) and not is_part:
                log.warning("the model raised %s: %s", type(error).__name__, error)
        if len(X) < 2:
            return [[None] * len(X)] * (len(self.classes) + 3)
        halves = [self.answer(half, True) for half in np.array_split(X, 2)]
        return [first + second for first, second in zip(*halves)]

    def ask(self, X: np.ndarray) -> list[list]:
        """Return columns: prediction; probability of each class, likely, or interval; warnings."""
        uncertainty = self.card["uncertainty"]
        if self.classes:
            outputs = np.asarray(self.model.predict_proba(X), float)
            predicted = outputs.argmax(axis=1)
            if not self.by_probability:  # then it has a rule of its own
                labels = np.reshape(self.model.predict(X), (len(X), 1))
                predicted = (labels == self.model.classes_).argmax(axis=1)
            predictions = [self.classes[place] for place in predicted.tolist()]
            # likely: the predicted label, and all as probable as nine of ten of theirs have been
            likely = [[label] for label in predictions]
            others = outputs >= uncertainty["thresholds"]
            others[np.arange(len(X)), predicted] = False
            for row, place in np.argwhere(others).tolist():
                likely[row].append(self.classes[place])
            columns = [predictions, *outputs.T.tolist(), likely]
        else:
            outputs = np.asarray(self.model.predict(X), float).reshape(len(X), 1)
            band = np.searchsorted(uncertainty["edges"], outputs, side="right")
            width = np.take(uncertainty["widths"], band)
            # where the target is never below zero, nor is an interval, unless its prediction is
            floor = np.where(uncertainty["minimum"] >= 0, 0, -np.inf)
            low = np.minimum(outputs, (outputs - width).clip(floor))
            high = np.maximum(outputs, outputs.clip(floor) + width)
            columns = [outputs[:, 0].tolist(), np.hstack([low, high]).tolist()]
            X = np.hstack([X, outputs])
        for row in np.flatnonzero(~np.isfinite(outputs).all(axis=1)):
            columns[0][row] = None
        # rows share a list until one needs its own: thousands of lists cost as much as a call
        warned: list[list[str]] = [[]] * len(X)
        unseen = (X < self.low) | (X > self.high) | (np.isnan(X) & self.rarely_missing)
        for row in np.flatnonzero(unseen.any(axis=1)):
            places = np.flatnonzero(unseen[row])[:MAX_SENTENCES]
            warned[row] = [self.say(place, X[row, place]) for place in places]
        return [*columns, warned]

    def say(self, place: int, value: float) -> str:
        """Return what is unusual about a value of a feature, or about a prediction."""
        feature, end, side = self.checked[place], self.high[place], "above {}, the highest"
        if np.isnan(value):
            few = f"{feature['missing']:,} of {self.card['rows']:,} rows"
            return f"{feature['name']} is missing, as in only {few} of training"
        if feature["type"] == "category":
            return f"{feature['name']} is a text that training does not know"
        if value < self.low[place]:
            end, side = self.low[place], "below {}, the lowest"
        digits = 15 if feature["name"] in self.features else 6  # as sent, or as a model answers
        unit = f" {feature['unit']}" if "unit" in feature else ""
        spelled = [f"{number:.{digits}g}{unit}" for number in (value, end)]
        if feature["type"] == "date":
            spelled = decode(feature, value), decode(feature, end)
        return f"{feature['name']} {spelled[0]} is {side.format(spelled[1])} in training"

    def write(self, columns: list) -> Answer:
        """Return the answers' columns, or one row of them, under the names that JSON has."""
        prediction, *probabilities, sure, sentences = columns
        more = {"interval": sure}
        if self.classes:
            more = {"probabilities": dict(zip(self.classes, probabilities)), "likely": sure}
        return {"prediction": prediction, **more, "warnings": sentences}


# the schema, made from the card
def to_days(text: str) -> float:
    """Return what encode() makes of a date in ISO 8601."""
    days = read_date(text)
    if days is None:
        raise PydanticCustomError("date_type", "Input should be a date such as 2024-12-31T23:59")
    return days


def body_types(card: dict) -> tuple[TypeAdapter, TypeAdapter]:
    """Return pydantic's types of a row and of columns, which come out as encode() has them."""
    row, columns = {}, {}
    limits = Field(fail_fast=True, min_length=1, max_length=MAX_ROWS)  # the first error will do
    for feature in card["features"]:
        name, one, about = feature["name"], bool, ""
        if "minimum" in feature:
            unit = f" {feature['unit']}" if "unit" in feature else ""
            about = f"{feature['minimum']} to {feature['maximum']}{unit} in training"
        if feature["type"] == "number":
            finite = {"ge": -MAX_NUMBER, "le": MAX_NUMBER, "allow_inf_nan": False}
            one = Annotated[float, Field(description=about, **finite)]
        elif feature["type"] == "date":
            day = Field(description=about, json_schema_extra={"format": "date"})
            one = Annotated[str, day, AfterValidator(to_days)]
        elif feature["type"] == "category":
            places = {choice: place for place, choice in enumerate(feature["choices"])}
            find = AfterValidator(lambda text, places=places: places.get(text, len(places)))
            one = Annotated[str if feature.get("open") else Literal[tuple(places)], find]
        row[name], columns[name] = one, Annotated[list[one], limits]
        if feature["nullable"]:
            row[name] = NotRequired[one | None]
            columns[name] = NotRequired[Annotated[list[one | None], limits] | None]
    return TypeAdapter(TypedDict("Row", row)), TypeAdapter(TypedDict("Columns", columns))


def document(app: FastAPI, model: Model) -> None:
    """Describe in /docs what to send, with examples to execute."""
    app.title, app.description = model.card["title"], model.card["description"]
    app.openapi_schema = None  # of the model before
    paths = app.openapi()["paths"]
    rows = [example["features"] for example in model.card["examples"]]
    columns = {name: [row[name] for row in rows] for name in model.features}
    one = model.Row.json_schema() | {"additionalProperties": False, "examples": rows}
    many = model.Columns.json_schema() | {"additionalProperties": False, "examples": [columns]}
    bodies = {"/predict": {JSON: {"schema": one}}, "/predict/batch": {JSON: {"schema": many}}}
    table = write_csv([[*columns], *zip(*columns.values())], ";", model.card["decimal"])
    bodies["/predict/csv"] = {CSV: {"schema": {"type": "string", "example": table}}}
    for path, content in {**bodies, "/explain": bodies["/predict"]}.items():
        paths[path]["post"]["requestBody"] = {"required": True, "content": content}


# what is sent, and refused
MAX_BRACKETS = 1_000_000  # in a body of JSON, where one label has hardly more than one


def refusal(message: str, kind: str, *place: str | int) -> HTTPException:
    """Return the 422 that says what is wrong at a place of the body."""
    return HTTPException(422, [{"loc": ["body", *place], "msg": message, "type": kind}])


async def read_body(request: Request, media_type: str) -> bytes:
    """Return the body. Raises HTTPException 415 for another type."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise HTTPException(415, f"Send the header 'Content-Type: {media_type}'")
    return await request.body()


async def read_rows(request: Request, kind: str) -> tuple[Model, np.ndarray]:
    """Return the model of now, and a Row or Columns as encode() has them. Raises HTTPException."""
    content, model = await read_body(request, JSON), request.app.state.model
    # note: lists in lists would take forty times their bytes, and seconds
    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise refusal(f"Input should have at most {MAX_BRACKETS:,} brackets", "json_invalid")
    try:
        body = from_json(content)
        for name in body if isinstance(body, dict) else ():  # note: else a million are kept
            if name not in model.features:
                raise refusal("There is no such feature", "extra_forbidden", name[:100])
        values = getattr(model, kind).validate_python(body, strict=True)
    except ValidationError as error:
        entries = error.errors(include_url=False, include_context=False)[:MAX_SENTENCES]
        for entry in entries:
            wrong, sent = entry["type"], entry.pop("input")
            if wrong == "float_type":
                entry["msg"] += ", such as 13.5"
            elif wrong in ("literal_error", "string_type") and isinstance(sent, int | float):
                entry["msg"] = f'Input should be a text, in quotes: "{sent}"'
            entry |= {"loc": ["body", *entry["loc"]], "msg": entry["msg"][:300]}
        raise HTTPException(422, entries) from None
    except ValueError as error:
        raise refusal(str(error), "json_invalid") from None
    if kind == "Row":
        return model, np.array([[values.get(name) for name in model.features]], float)
    lengths = {len(column) for column in values.values() if column}
    if len(lengths) != 1:
        raise refusal(f"Columns should have equally many rows, not {lengths or 0}", "columns")
    gaps = [None] * max(lengths)  # in a column that is left out
    return model, np.array([values.get(name) or gaps for name in model.features], float).T


# what each feature adds to an answer
MAX_EXPLAIN_CELLS = 4_000_000  # of the rows made up for one explanation


async def share_out(x: np.ndarray, model: Model) -> dict[str, Any]:
    """Return permutation Shapley values: rows of the background become x, feature by feature, in a
    random order and its reverse (Strumbelj, Kononenko: Knowledge and Information Systems, 2014)."""
    n, rng = len(x), np.random.default_rng(0)
    rows = model.background[: max(1, MAX_EXPLAIN_CELLS // (2 * n * (n + 1)))]
    there = rng.permuted(np.tile(np.arange(n), (len(rows), 1)), axis=1)
    steps = np.vstack([there, n - 1 - there])  # of each walk, when it replaces each feature
    walks = np.where(np.arange(n + 1)[:, None] > steps[:, None], x, np.tile(rows, (2, 1))[:, None])
    columns = await model.predict(np.vstack([x, *walks]))  # walks of shape (n + 1, n)
    outputs = columns[1 + model.classes.index(columns[0][0])] if model.classes else columns[0]
    value, outputs = outputs[0], np.reshape(outputs[1:], (-1, n + 1))  # a row for each walk
    gains = np.take_along_axis(np.diff(outputs), steps, axis=1)  # of each feature
    shares = zip(model.features, gains.mean(axis=0).tolist())
    shares = dict(sorted(shares, key=lambda share: -abs(share[1])))
    average = outputs[:, 0].mean().item()
    return {"prediction": columns[0][0], "value": value, "average": average, "shares": shares}


# a file
MAX_PART_CHARACTERS = 2_000_000  # of a file, answered together; and ten for each cell


def open_table(content: bytes, model: Model) -> tuple[list[str], str, Iterator[list[str]]]:
    """Return what read_table() does. Raises HTTPException 422 if it can't be predicted."""
    try:
        encoding, _ = find_encoding(content, model.card["told"].get("encoding"))
        names, _, rows = read_table(content, encoding)
        absent = [repr(name) for name in model.features if name not in names]
        if absent:
            raise ValueError(f"it has no column {', '.join(absent[:MAX_SENTENCES])}")
        first = read_part(rows)
        if not 0 < len(first) + sum(1 for _ in islice(rows, MAX_FILE_ROWS)) <= MAX_FILE_ROWS:
            raise ValueError(f"it has no rows, or more than {MAX_FILE_ROWS:,} rows")
        check_file(dict(zip(names, zip(*first))), model.card)
        return read_table(content, encoding)  # from its first row again
    except ValueError as error:
        raise refusal(f"This is no table to predict: {error}", "table") from None


def read_part(rows: Iterator[list[str]]) -> list[list[str]]:
    """Return the next rows of a file, as many as are held as texts at once."""
    part, room = [], MAX_PART_CHARACTERS
    for row in islice(rows, MAX_CALL_ROWS):
        part.append(row)
        room -= sum(map(len, row)) + 10 * len(row)
        if room < 0:
            break
    return part


def predict_lines(table: tuple, model: Model) -> Iterator[str]:
    """Yield the header, then the rows with their answers, part after part. It runs in a thread."""
    (names, separator, rows), decimal = table, model.card["decimal"]
    added = ["prediction", "low", "high", "warnings", "problem"]
    if model.classes:
        added[1:3] = [*(f"probability of {label}" for label in model.classes), "likely"]
    header = names + [f"{name} (model)" if name in names else name for name in added]
    yield write_csv([header], separator, decimal)
    while part := read_part(rows):
        X, unreadable = encode(dict(zip(names, zip(*part))), model.card)
        problems, gaps = defaultdict(list), defaultdict(list)
        for row, name, reason in unreadable:
            feature = model.features[name]
            # as in training, it is a gap where there were gaps, but no other label
            if feature["nullable"] and feature["type"] in ("number", "date"):
                gaps[row].append(f"{name} {reason}, is read as a gap")
            else:
                problems[row].append(f"{name} {reason}")
        for row, cells in enumerate(part):
            if any(cells[len(names) :]):
                problems[row] = [f"the row has {len(cells)} cells, the header {len(names)}"]
            elif not any(map(str.strip, cells)):
                problems[row] = ["the row is empty"]
        readable = [row for row in range(len(part)) if row not in problems]
        answers = zip(*model.thread.submit(model.answer, X[readable]).result())
        lines = []
        for row, cells in enumerate(part):
            line = cells[: len(names)]
            answer = [None] if row in problems else next(answers)
            if answer[0] is None:
                reasons = problems.get(row, ["the model has no answer for this row"])
                line += [""] * (len(added) - 1) + ["; ".join(reasons[:MAX_SENTENCES])]
            else:
                prediction, *numbers, sure, sentences = answer
                line += [prediction, *numbers]
                line += [" or ".join(sure)] if model.classes else sure
                line += ["; ".join((gaps[row] + sentences)[:MAX_SENTENCES]), ""]
            lines.append(line)
        yield write_csv(lines, separator, decimal)


def write_csv(lines: Iterable, separator: str, mark: str) -> str:
    """Return lines of CSV: numbers have that decimal mark, and texts come back as they are."""
    written: list[str] = []
    # note: where lines end with CR LF, and only there, a cell with either of them is quoted
    writer = csv.writer(SimpleNamespace(write=written.append), delimiter=separator)
    for line in lines:
        cells = [str(cell).replace(".", mark) if isinstance(cell, float) else cell for cell in line]
        writer.writerow(cells)
    return "".join(line.removesuffix("\r\n") + "\n" for line in written)


# loading, and swapping
WATCH_SECONDS = 1  # between looks at the file: a new one is served without a restart


async def serve_model(app: FastAPI) -> None:
    """Serve what is in the file now. Raises ValueError after a line that says what to type."""
    try:
        app.state.written = os.stat(MODEL_PATH).st_mtime_ns
        model = await asyncio.to_thread(Model, MODEL_PATH)
        document(app, model)
        app.state.model = model
    except Exception as error:  # noqa: BLE001 a pickle may raise anything
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        log.error("main_api.py: '%s' can't be served (%s): run `python train.py`", MODEL_PATH, why)
        # note: at the start, uvicorn would log a traceback, too
        log.addFilter(lambda record: not record.getMessage().startswith("Traceback"))
        raise ValueError(why) from None


async def serve_new_models(app: FastAPI) -> None:
    """Serve what train.py writes while the app runs; a bad file leaves the model of before."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        with suppress(OSError, ValueError):  # there is none, or a bad one
            if os.stat(MODEL_PATH).st_mtime_ns != app.state.written:
                await serve_model(app)
                log.warning("main_api.py: the new '%s' is served", MODEL_PATH)

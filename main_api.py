"""Serve model.joblib over HTTP. Schema, documentation and checks are made from the card in the
file, so this serves whatever table train.py was given, and a new file as soon as it is there.

    uvicorn main_api:app --host 127.0.0.1 --port 8001        # then open /docs
"""

import asyncio
import csv
import gc
import hashlib
import io
import logging
import os
import queue
import threading
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

# one thread a call: pools would fight with the event loop, and wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import joblib
import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json, to_json
from sklearn import config_context
from sklearn.exceptions import InconsistentVersionWarning
from starlette.requests import ClientDisconnect

from train import MAX_NUMBER, check_decimal, decode, encode, read_date, read_table

MODEL_PATH = os.environ.get("MODEL_PATH") or "model.joblib"
MODEL_SHA256 = os.environ.get("MODEL_SHA256", "")  # if set, any other file is refused
WATCH_SECONDS = 1  # between looks at the file: a new one is served without a restart

MAX_ROWS = 10_000  # in one request of JSON
MAX_BODY_BYTES = 10 * 2**20  # MAX_ROWS of 100 features of ten characters
MAX_BRACKETS = 1_000_000  # in a body of JSON, where one label has hardly more than one
MAX_FILE_ROWS, MAX_FILE_BYTES = 100_000, 50 * 2**20  # of a CSV file
MAX_FILES = 4  # at once; each is held in memory until it is answered
MAX_PART_CHARACTERS = 2_000_000  # of a file, answered together; and ten for each cell
MAX_PIECE = 2**18  # characters of a file's answer sent at once: a slow line takes them in time
MAX_CALL_ROWS = 2_000  # in one call of the model: what is longer lets others in between
MAX_WAITING_ROWS = 100_000  # beyond it the answer is 503: a second of work, or 35 explanations
MAX_EXPLAIN_CELLS = 4_000_000  # of the rows made up for one explanation
MAX_SENTENCES = 20  # reasons in a 422, warnings for a row
BODY_SECONDS = 60  # for a client to send all of its body, or to take a piece of the answer
LATER = {"Retry-After": "1"}  # seconds: a header of 503

log = logging.getLogger("uvicorn.error")
logging.getLogger("uvicorn.access").disabled = True  # a line a request costs a tenth of the speed


def refusal(message: str, kind: str, *place: str | int) -> HTTPException:
    """Return the 422 that says what is wrong at a place of the body."""
    return HTTPException(422, [{"loc": ["body", *place], "msg": message, "type": kind}])


# what is loaded


def load(path: str) -> dict:
    """Return what train.py saved, with the file's SHA-256 and when it was written.

    Raises ValueError with one line: the file, what was found, what to type.
    """
    todo = "run `python train.py`"
    try:
        written, content = os.stat(path).st_mtime_ns, Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"'{path}' can't be read ({error.strerror}): {todo}") from None
    sha256 = hashlib.sha256(content).hexdigest()
    if MODEL_SHA256 and sha256 != MODEL_SHA256.lower():
        raise ValueError(f"'{path}' has SHA-256 {sha256}, but MODEL_SHA256 is '{MODEL_SHA256}'")
    if content.startswith(b"version https://git-lfs"):
        raise ValueError(f"'{path}' is a Git LFS pointer: run `git lfs pull`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InconsistentVersionWarning)
            saved = joblib.load(io.BytesIO(content))
        if {"model", "card", "background", "by_probability", "low", "high"} <= saved.keys():
            return saved | {"sha256": sha256, "written": written}
        found = "was saved by another train.py"
    except InconsistentVersionWarning as error:
        then, now = error.original_sklearn_version, error.current_sklearn_version
        found = f"was saved by scikit-learn {then}, this is {now}"
    except Exception as error:  # noqa: BLE001 a pickle may raise anything
        found = f"was not saved by train.py, or only in part ({type(error).__name__}: {error})"
    raise ValueError(f"'{path}' {found}: {todo}")


# how it answers


OUTSIDE = {  # of the training range
    ("number", "minimum"): "{:.15g} is below {:.15g}, the lowest",
    ("number", "maximum"): "{:.15g} is above {:.15g}, the highest",
    ("date", "minimum"): "{} is before {}, the earliest",
    ("date", "maximum"): "{} is after {}, the latest",
}


class Model:
    """What was loaded, and how it answers. It never changes, so that a request may keep it."""

    def __init__(self, path: str):
        saved = load(path)
        self.card = saved["card"] | {"sha256": saved["sha256"]}
        self.features = {feature["name"]: feature for feature in self.card["features"]}
        self.classes: list[str] = self.card.get("classes", [])  # none: it is a regression
        self.uncertainty = self.card["uncertainty"]
        self.estimator, self.background = saved["model"], saved["background"]
        self.by_probability, self.written = saved["by_probability"], saved["written"]
        self.low, self.high = saved["low"], saved["high"]
        self.Row, self.Columns = body_schemas(self.card)

    def answer(self, X: np.ndarray, is_part: bool = False) -> list[list]:
        """Return the answers' columns: the prediction, of a classification each class' probability
        and likely, of a regression the interval, and the warnings.

        The prediction is None where the estimator has none. A row that makes it raise spoils no
        other.
        """
        try:
            outputs, *columns = self.classify(X) if self.classes else self.regress(X)
            has_answer = np.isfinite(outputs).all(axis=1)
            for row in np.flatnonzero(~has_answer):
                columns[0][row] = None
            return [*columns, self.warn(X)]
        except Exception as error:  # noqa: BLE001 an estimator may raise anything
            if not is_part:
                log.warning("the model raised %s: %s", type(error).__name__, error)
        if len(X) == 1:
            return [[None]] * (len(self.classes) + 3)
        half = len(X) // 2
        halves = self.answer(X[:half], True), self.answer(X[half:], True)
        return [first + second for first, second in zip(*halves)]

    def classify(self, X: np.ndarray) -> tuple[np.ndarray | list, ...]:
        """Return probabilities of shape (rows, classes), and the answers' first columns."""
        probabilities = self.estimator.predict_proba(X)
        if self.by_probability:
            predicted = probabilities.argmax(axis=1)
        else:
            predicted = np.searchsorted(self.classes, self.estimator.predict(X))
        predictions = [self.classes[place] for place in predicted.tolist()]
        # likely: the predicted label, then all that are as probable as nine of ten of theirs were
        likely = [[label] for label in predictions]
        others = probabilities >= self.uncertainty["thresholds"]
        others[np.arange(len(X)), predicted] = False
        rows, places = others.nonzero()
        order = np.argsort(-probabilities[rows, places], kind="stable")
        for row, place in zip(rows[order].tolist(), places[order].tolist()):
            likely[row].append(self.classes[place])
        return probabilities, predictions, *probabilities.T.tolist(), likely

    def regress(self, X: np.ndarray) -> tuple[np.ndarray | list, ...]:
        """Return predictions of shape (rows, 1), and the answers' first columns."""
        predictions = np.asarray(self.estimator.predict(X), float).reshape(len(X), 1)
        band = np.searchsorted(self.uncertainty["edges"], predictions, side="right")
        width = np.take(self.uncertainty["widths"], band)
        ends = [None, None]
        if self.uncertainty["minimum"] >= 0: ends[0] = 0.0
        if self.uncertainty["maximum"] <= 0: ends[1] = 0.0
        middle = predictions.clip(*ends)
        intervals = np.hstack([middle - width, middle + width]).clip(*ends)
        return predictions, predictions[:, 0].tolist(), intervals.tolist()

    def warn(self, X: np.ndarray) -> list[list[str]]:
        """Return for each row a sentence for each value outside of the training range."""
        # rows share a list until one needs its own: thousands of lists cost as much as a call
        sentences: list[list[str]] = [[]] * len(X)
        outside = (X < self.low) | (X > self.high)
        for row in np.flatnonzero(outside.any(axis=1)):
            sentences[row] = []
            for place in np.flatnonzero(outside[row])[:MAX_SENTENCES]:
                feature, value = self.card["features"][place], X[row, place]
                end = "maximum" if value > self.high[place] else "minimum"
                if feature["type"] == "date":
                    value = decode(feature, value)
                if feature["type"] == "category":
                    sentences[row].append(f"{feature['name']} is another text than those of training")
                    continue
                words = OUTSIDE[feature["type"], end].format(value, feature[end])
                sentences[row].append(f"{feature['name']} {words} in training")
        return sentences

    def write(self, columns: list) -> dict[str, Any]:
        """Return the answers' columns, or one row of them, under the names that JSON has."""
        prediction, *probabilities, likely, sentences = columns
        sure = {"interval": likely}
        if self.classes:
            sure = {"probabilities": dict(zip(self.classes, probabilities)), "likely": likely}
        return {"prediction": prediction, **sure, "warnings": sentences}


# the schema, made from the card


def to_days(text: str) -> float:
    """Return what encode() makes of a date in ISO 8601."""
    days = read_date(text)
    if days is None:
        raise ValueError("Input should be a date such as 2024-12-31 or 2024-12-31T23:59")
    return days


def value_type(feature: dict) -> Any:
    """Return pydantic's type of one value, which comes out as encode() has it."""
    if feature["type"] == "category":
        codes = {choice: place for place, choice in enumerate(feature["choices"])}
        if feature.get("open"):
            return Annotated[str, AfterValidator(lambda text: codes.get(text, len(codes)))]
        return Annotated[Literal[tuple(codes)], AfterValidator(codes.__getitem__)]
    if feature["type"] == "boolean":
        return Annotated[bool, Field(strict=True)]
    if feature["type"] == "date":
        is_day = "T" not in feature["minimum"] + feature["maximum"]
        iso = Field(strict=True, json_schema_extra={"format": "date"} if is_day else None)
        return Annotated[str, iso, AfterValidator(to_days)]
    return Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MAX_NUMBER, le=MAX_NUMBER)]


def body_schemas(card: dict) -> tuple[type[BaseModel], type[BaseModel]]:
    """Return the pydantic models of one row and of columns, the features' names as aliases."""
    row, columns = {}, {}
    for place, feature in enumerate(card["features"]):
        one, default, about = value_type(feature), ..., feature["type"]
        if "minimum" in feature:
            about += f", {feature['minimum']} to {feature['maximum']} in training"
        if feature["nullable"]:
            one, default, about = one | None, None, f"{about}, may be missing"
        # the first wrong value of a column is enough: a thousand would cost memory
        many = Annotated[list[one], Field(fail_fast=True, min_length=1, max_length=MAX_ROWS)]
        if feature["nullable"]:
            many = many | None
        field = Field(default, alias=feature["name"], description=about)
        row[f"f{place}"] = one, field
        columns[f"f{place}"] = many, field
    rows = [example["features"] for example in card["examples"]]
    lists = {name: [each[name] for each in rows] for name in rows[0]}

    def schema(name: str, example: Any, fields: dict) -> type[BaseModel]:
        config = ConfigDict(extra="forbid", json_schema_extra={"examples": example})
        return create_model(name, __config__=config, **fields)

    return schema("Row", rows, row), schema("Columns", [lists], columns)


class Answer(BaseModel):
    """Of a classification `probabilities` and `likely`, of a regression `interval`: low, high."""

    prediction: str | float
    probabilities: dict[str, float] | None = None
    likely: list[str] | None = None
    interval: list[float] | None = None
    warnings: list[str]


class Explanation(BaseModel):
    prediction: str | float
    value: float
    average: float
    shares: dict[str, float]


# the queue


class Work(NamedTuple):
    model: Model
    X: np.ndarray
    future: asyncio.Future


class Queue:
    """Answer all waiting requests with one call of the model, which costs as much as for one row.

    The model runs in a thread of its own, so the event loop stays free. Nobody waits for company:
    a lone request is taken at once, and what arrives during its call is the next batch.
    """

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.waiting: deque[Work] = deque()
        self.arrivals: queue.SimpleQueue = queue.SimpleQueue()  # True for each work, False to stop
        self.rows = 0  # of all requests of JSON that are not answered yet
        # a daemon: unlike an executor's, it does not hold up the end of the program
        threading.Thread(target=self.make_calls, daemon=True).start()

    async def predict(self, model: Model, X: np.ndarray) -> list[list]:
        """Return the answers' columns, as soon as the model is free.

        Raises HTTPException 503 if too much waits, or the server stops.
        """
        if self.rows + len(X) > MAX_WAITING_ROWS:
            raise HTTPException(503, "Too much work is waiting", LATER)
        self.rows += len(X)
        try:
            parts = []
            for start in range(0, len(X), MAX_CALL_ROWS):
                parts.append(await self.put(model, X[start : start + MAX_CALL_ROWS]))
            return [list(chain(*values)) for values in zip(*parts)]
        except asyncio.CancelledError:
            raise HTTPException(503, "The server is stopping", LATER) from None
        finally:
            self.rows -= len(X)

    async def put(self, model: Model, X: np.ndarray) -> list[list]:
        """Return the answers for up to MAX_CALL_ROWS rows, however much waits."""
        work = Work(model, X, self.loop.create_future())
        self.waiting.append(work)
        # a moment later, so that requests that are read together share a call
        self.loop.call_soon(self.arrivals.put, True)
        return await work.future

    @config_context(assume_finite=True, skip_parameter_validation=True)
    def make_calls(self) -> None:
        """Call the model again and again, in the thread."""
        while self.arrivals.get():
            # what shares a call: the first, and what fits beside it
            batch, rows = [], 0
            while self.waiting:
                work = self.waiting[0]
                rows += len(work.X)
                if batch and (rows > MAX_CALL_ROWS or work.model is not batch[0].model):
                    break
                batch.append(self.waiting.popleft())
            if batch:  # none, where what arrived has shared the call before
                X = np.concatenate([work.X for work in batch])
                columns = batch[0].model.answer(X)
                self.loop.call_soon_threadsafe(self.deliver, batch, columns)

    def deliver(self, batch: list[Work], columns: list[list]) -> None:
        stop = 0
        for work in batch:
            start, stop = stop, stop + len(work.X)
            if not work.future.done():  # cancelled, as its client has gone
                work.future.set_result([column[start:stop] for column in columns])


# from start to stop


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model once, before the first request; swap it when its file is another one."""
    try:
        serve(app, Model(MODEL_PATH))
    except ValueError as error:
        # note: uvicorn would log a traceback where one line says it all
        log.addFilter(lambda record: not record.getMessage().startswith("Traceback"))
        log.error("main_api.py: %s", error)
        raise
    app.state.queue, app.state.files = Queue(), asyncio.Semaphore(MAX_FILES)
    watch = asyncio.create_task(serve_new_files(app))
    gc.freeze()  # collections needn't walk the libraries and the model again: a fifth of the time
    yield
    watch.cancel()
    app.state.queue.arrivals.put(False)


def serve(app: FastAPI, model: Model) -> None:
    """Let the app answer with this model, and describe in /docs what to send it."""
    app.state.model = model
    app.title, app.description = model.card["title"], model.card["description"]
    app.openapi_schema = None  # of the model before
    paths = app.openapi()["paths"]
    bodies = {"/predict": model.Row, "/predict/batch": model.Columns, "/explain": model.Row}
    contents = {"/predict/csv": {"text/csv": {"schema": {"type": "string"}}}}
    for path, body in bodies.items():
        contents[path] = {"application/json": {"schema": body.model_json_schema()}}
    for path, content in contents.items():
        paths[path]["post"]["requestBody"] = {"required": True, "content": content}


async def serve_new_files(app: FastAPI) -> None:
    """Serve what train.py writes while the app runs.

    Requests in flight finish on the model they began with. A bad file is refused in one line, and
    the model of before goes on.
    """
    seen = app.state.model.written
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            before, seen = seen, os.stat(MODEL_PATH).st_mtime_ns
            if seen != before:
                serve(app, await asyncio.to_thread(Model, MODEL_PATH))
                log.warning("main_api.py: the new '%s' is served", MODEL_PATH)
        except OSError:  # there is none
            continue
        except Exception as error:  # noqa: BLE001 whatever is wrong with it, the next may be right
            log.error("main_api.py: %s; the model of before goes on", error)


# what is sent


async def read_body(request: Request, media_type: str) -> bytes:
    """Return the body. Raises HTTPException 415 for another type, 400 if it does not come."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise HTTPException(415, f"Send the header 'Content-Type: {media_type}'")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except (ClientDisconnect, TimeoutError):
        raise HTTPException(400, f"The body was not there in {BODY_SECONDS} seconds") from None
    except asyncio.CancelledError:
        raise HTTPException(503, "The server is stopping", LATER) from None


async def read_values(request: Request, model: Model, schema: type[BaseModel]) -> list:
    """Return what the body has for each feature, as encode() has it, None for a gap.

    Raises HTTPException 422.
    """
    content = await read_body(request, "application/json")
    # note: lists in lists would take forty times their bytes, and seconds
    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise refusal(f"Input should have at most {MAX_BRACKETS:,} brackets", "json_invalid")
    try:
        body = from_json(content)
    except ValueError as error:
        raise refusal(str(error), "json_invalid") from None
    if not isinstance(body, dict):
        raise refusal("Input should be an object with the names of the features", "model_type")
    # note: for each of a million unknown names pydantic would keep an error
    for name in body:
        if name not in model.features:
            raise refusal("There is no such feature", "extra_forbidden", name[:100])
    try:
        return list(vars(schema.model_validate(body)).values())
    except ValidationError as error:
        entries = error.errors()[:MAX_SENTENCES]
        raise HTTPException(422, [reword(entry, model) for entry in entries]) from None


def reword(entry: dict, model: Model) -> dict:
    """Return pydantic's entry in words for people, and without the input: JSON may not hold it."""
    message, kind, place = entry["msg"].removeprefix("Value error, "), entry["type"], entry["loc"]
    if kind == "literal_error":
        choices, label = model.features[place[0]]["choices"], str(entry["input"])[:100]
        some = choices
        if len(choices) > 10:
            # what begins alike comes first: difflib would take seconds for long texts
            alike = {c: len(os.path.commonprefix([c.lower(), label.lower()])) for c in choices}
            near = sorted(choices, key=alike.get, reverse=True)[:10]
            some = f"{len(choices)} choices, such as {near}"
        message = f"'{label}' is not one of {some}"
    elif kind == "float_type":
        message += ", such as 13.5"
    elif kind in ("less_than_equal", "greater_than_equal"):  # in 31 digits
        message = f"Input should be from {-MAX_NUMBER:g} to {MAX_NUMBER:g}"
    return {"loc": ["body", *place], "msg": message, "type": kind}


# the routes


class JSONRoute(APIRoute):
    """A route that FastAPI documents, but whose answer pydantic writes as it is: half the work
    (FastAPI's "Custom Request and APIRoute"). With dependencies, a login say, it is an ordinary
    route."""

    def get_route_handler(self) -> Callable:
        async def handle(request: Request) -> Response:
            return Response(to_json(await self.endpoint(request)), media_type="application/json")

        return super().get_route_handler() if self.dependencies else handle


app = FastAPI(lifespan=lifespan, max_body_size=MAX_BODY_BYTES)
app.router.route_class = JSONRoute
REFUSALS: dict[int | str, dict] = {400: {}, 413: {}, 415: {}, 422: {}, 503: {}}  # in HTTP's words


@app.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Answer as soon as the model is loaded; before that nothing listens."""
    return {"status": "ok"}


@app.get("/model")
async def model_card(request: Request) -> dict[str, Any]:
    """Return the model's card, with the SHA-256 of the file."""
    return request.app.state.model.card


@app.post("/predict", response_model=Answer, response_model_exclude_none=True, responses=REFUSALS)
async def predict(request: Request) -> dict[str, Any]:
    """Predict one row."""
    model = request.app.state.model
    values = await read_values(request, model, model.Row)
    columns = await request.app.state.queue.predict(model, np.array([values], float))
    if columns[0][0] is None:
        raise refusal("The model has no answer for these values", "no_answer")
    return model.write([column[0] for column in columns])


@app.post("/predict/batch", responses=REFUSALS)
async def predict_batch(request: Request) -> dict[str, Any]:
    """Predict many rows, given as columns; the answer has the keys of one row's, a list each."""
    model = request.app.state.model
    values = await read_values(request, model, model.Columns)
    lengths = {name: len(column) for name, column in zip(model.features, values) if column}
    if len(set(lengths.values())) != 1:
        raise refusal(f"Columns should have equally many rows, not {lengths}", "columns")
    gaps = [None] * max(lengths.values())  # in a column that is left out
    X = np.array([column or gaps for column in values], float).T
    columns = await request.app.state.queue.predict(model, X)
    if None in columns[0]:
        place = columns[0].index(None)
        raise refusal("The model has no answer for this row", "no_answer", place)
    return model.write(columns)


@app.post("/explain", response_model=Explanation, responses=REFUSALS)
async def explain(request: Request) -> dict[str, Any]:
    """Say how much each feature adds to the answer for one row, compared with rows of the table.

    Permutation Shapley values: each of these rows becomes the asked one, feature by feature, in
    a random order and then in its reverse. Strumbelj and Kononenko, "Explaining prediction models
    and individual predictions with feature contributions", 2014.
    """
    model = request.app.state.model
    x = np.array(await read_values(request, model, model.Row), float)
    n = len(x)
    background = model.background[: max(1, MAX_EXPLAIN_CELLS // (2 * n * (n + 1)))]
    rng = np.random.default_rng(0)
    steps, walks = [], []
    for row in background:
        there = rng.permutation(n)  # the step at which each feature is replaced
        for step in (there, n - 1 - there):
            steps.append(step)
            walks.append(np.where(step < np.arange(n + 1)[:, None], x, row))
    columns = await request.app.state.queue.predict(model, np.vstack([x, *walks]))
    outputs = columns[0]
    if None in outputs:
        raise refusal("The model has no answer for values between these", "no_answer")
    prediction = outputs[0]
    if model.classes:
        outputs = columns[1 + model.classes.index(prediction)]
    value, outputs = outputs[0], np.reshape(outputs[1:], (-1, n + 1))  # a row for each walk
    gains = [np.diff(walk)[step] for walk, step in zip(outputs, steps)]  # of each feature
    shares = np.mean(gains, axis=0)
    names = list(model.features)
    return {
        "prediction": prediction,
        "value": value,
        "average": float(outputs[:, 0].mean()),
        "shares": {names[place]: float(shares[place]) for place in np.argsort(-np.abs(shares))},
    }


# a file


class CSVResponse(StreamingResponse):
    """An answer piece after piece; a client that takes none of it for too long is left."""

    media_type = "text/csv"

    async def __call__(self, scope: Any, receive: Any, send: Callable) -> None:
        async def send_in_time(message: dict) -> None:
            async with asyncio.timeout(BODY_SECONDS):
                await send(message)

        with suppress(TimeoutError):
            await super().__call__(scope, receive, send_in_time)


async def count_file(request: Request) -> AsyncIterator[None]:
    """Let MAX_FILES in at once, until they are answered or given up."""
    files = request.app.state.files
    if files.locked():
        raise HTTPException(503, f"{MAX_FILES} files are being predicted", LATER)
    async with files:
        yield


@app.post(
    "/predict/csv",
    dependencies=[Depends(count_file)],
    max_body_size=MAX_FILE_BYTES,
    responses=REFUSALS,
    response_class=CSVResponse,
)
async def predict_csv(request: Request) -> CSVResponse:
    """Predict a table as train.py reads it: its columns come back, followed by the answer's."""
    model = request.app.state.model
    content = await read_body(request, "text/csv")
    table = await asyncio.to_thread(open_table, content, model)
    return CSVResponse(predict_lines(table, model, request.app.state.queue))


def open_table(content: bytes, model: Model) -> tuple[list[str], str, Iterator[list[str]]]:
    """Return what read_table() does. Raises HTTPException 422 if it can't be predicted."""
    try:
        names, _, rows = read_table(content)
        absent = [name for name in model.features if name not in names]
        needed = [name for name in absent if not model.features[name]["nullable"]]
        if needed or len(absent) == len(model.features):
            some = ", ".join(map(repr, (needed or absent)[:MAX_SENTENCES]))
            raise ValueError(f"it has no column {some}")
        first = read_part(rows)
        if not first:
            raise ValueError("it has no rows")
        if len(first) + sum(1 for _ in islice(rows, MAX_FILE_ROWS)) > MAX_FILE_ROWS:
            raise ValueError(f"it has more than {MAX_FILE_ROWS:,} rows")
        check_decimal(dict(zip(names, zip(*first))), model.card)
        return read_table(content)  # from its first row again
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


def predict_lines(table: tuple, model: Model, waiting: Queue) -> Iterator[str]:
    """Yield the rows with their answers, part after part. It runs in a thread."""
    names, separator, rows = table
    absent = [f"there is no column '{name}'" for name in model.features if name not in names]
    absent = absent[:MAX_SENTENCES]
    added = ["prediction", "low", "high", "warnings", "problem"]
    if model.classes:
        of_each = [f"probability of {label}" for label in model.classes]
        added = ["prediction", *of_each, "likely", "warnings", "problem"]
    added = [f"{name} (model)" if name in names else name for name in added]
    lines = [names + added]
    while part := read_part(rows):
        X, found = encode(dict(zip(names, zip(*part))), model.card)
        problems: list[list[str]] = [[] for _ in part]
        for row, cells in enumerate(part):
            if any(cells[len(names) :]):
                problems[row].append(f"the row has {len(cells)} cells, the header {len(names)}")
        for row, name, reason in found:
            if len(problems[row]) < MAX_SENTENCES:
                problems[row].append(f"{name} {reason}")
        readable = [row for row, reasons in enumerate(problems) if not reasons]
        answers: dict[int, tuple] = {}
        if readable:
            call = asyncio.run_coroutine_threadsafe(waiting.put(model, X[readable]), waiting.loop)
            answers = dict(zip(readable, zip(*call.result())))
        for row, cells in enumerate(part):
            spelled = [""] * (len(added) - 1)
            if row in answers and answers[row][0] is not None:
                spelled = spell_answer(answers[row], absent, model)
            elif not problems[row]:
                problems[row].append("the model has no answer for this row")
            lines.append([*cells[: len(names)], *spelled, "; ".join(problems[row])])
        text = io.StringIO()
        csv.writer(text, delimiter=separator, lineterminator="\n").writerows(lines)
        lines = []
        text.seek(0)
        while piece := text.read(MAX_PIECE):
            yield piece


def spell_answer(answer: tuple, absent: list[str], model: Model) -> list[str]:
    """Return the cells of one row's answer, numbers with the table's own decimal mark."""
    prediction, *numbers, likely, sentences = answer
    if not model.classes:
        numbers = [prediction, *likely]
    cells = [repr(number).replace(".", model.card["decimal"]) for number in numbers]
    if model.classes:
        cells = [prediction, *cells, " or ".join(likely)]
    return [*cells, "; ".join(absent + sentences)]

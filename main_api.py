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
import threading
import warnings
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NotRequired

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pools would fight with the event loop
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import joblib
import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from sklearn import config_context
from sklearn.exceptions import InconsistentVersionWarning
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from train import MAX_NUMBER, check_file, decode, encode, read_date, read_table

MODEL_PATH = os.environ.get("MODEL_PATH") or "model.joblib"
MODEL_SHA256 = os.environ.get("MODEL_SHA256", "")  # if set, any other file is refused
MAX_ROWS, MAX_BODY_BYTES = 10_000, 10 * 2**20  # in one request of JSON
MAX_FILE_ROWS, MAX_FILE_BYTES = 100_000, 50 * 2**20  # of a CSV file
MAX_FILES = 4  # at once; each is held in memory until it is answered
# a body that doesn't come, is too large, of another type; what can't be predicted, NaN and nonsense
# included, with the place and the reason; too much work: never 500
REFUSALS: dict[int | str, dict] = {400: {}, 413: {}, 415: {}, 422: {}, 503: {}}
LATER = {"Retry-After": "1"}  # seconds: a header of 503


class Answer(TypedDict):
    prediction: str | float
    probabilities: NotRequired[dict[str, float]]  # of each label, in a classification
    likely: NotRequired[list[str]]  # labels, one of which is true in nine of ten rows
    interval: NotRequired[list[float]]  # in a regression: low, high
    warnings: list[str]  # a sentence for each value outside of what training has seen


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model once, before the first request; swap it when its file is another one."""
    try:
        await serve_file(app)
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


class JSONRoute(APIRoute):
    """A route that FastAPI documents, but whose answer pydantic writes as it is: half the work.
    With dependencies, a login say, it is an ordinary route."""

    def get_route_handler(self) -> Callable:
        async def handle(request: Request) -> Response:
            return Response(to_json(await self.endpoint(request)), media_type="application/json")

        return super().get_route_handler() if self.dependencies else handle


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
    model = (
        request.app.state.model
    )  # a Model: what train.py saved, and the types made from its card
    X = await read_rows(request, model, model.Row)
    columns = await request.app.state.queue.predict(model, X)
    return model.write([column[0] for column in columns])


@app.post("/predict/batch", responses=REFUSALS)
async def predict_batch(request: Request) -> dict[str, Any]:
    """Predict many rows, given as columns; the answer has the keys of one row's, a list each."""
    model = request.app.state.model
    X = await read_rows(request, model, model.Columns)
    return model.write(await request.app.state.queue.predict(model, X))


@app.post("/explain", responses=REFUSALS)
async def explain(request: Request) -> dict[str, Any]:
    """Say what each feature adds: the shares sum to this answer (the predicted label's probability,
    or the number) minus the average answer for rows of the table."""
    model = request.app.state.model
    [x] = await read_rows(request, model, model.Row)
    return await share_out(x, model, request.app.state.queue)


async def count_file(request: Request) -> AsyncIterator[None]:
    """Let MAX_FILES in at once, until they are answered or given up."""
    if request.app.state.files.locked():
        raise HTTPException(503, f"{MAX_FILES} files are being predicted", LATER)
    async with request.app.state.files:
        yield


class CSVResponse(StreamingResponse):
    """An answer part after part; a client that is too slow to take it is left."""

    media_type = "text/csv"

    async def __call__(self, *connection: Any) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await super().__call__(*connection)


@app.post(
    "/predict/csv",
    dependencies=[Depends(count_file)],
    max_body_size=MAX_FILE_BYTES,
    response_class=CSVResponse,
    responses=REFUSALS,
)
async def predict_csv(request: Request) -> CSVResponse:
    """Predict a table as train.py reads it: its columns come back, followed by the answer's."""
    model, queue = request.app.state.model, request.app.state.queue
    content = await read_body(request, "text/csv")
    table = await asyncio.to_thread(open_table, content, model)
    return CSVResponse(predict_lines(table, model, queue))


# The story ends here. What follows is how it is done, and the care it takes: models that raise,
# bodies that are hostile, lines that are slow.

log = logging.getLogger("uvicorn.error")
logging.getLogger("uvicorn.access").disabled = True  # a line a request costs a tenth of the speed

# the model, and its answers
MAX_SENTENCES = 20  # warnings for a row, and reasons in a 422


class Model:
    """What train.py saved, and how it answers. It never changes, so that a request may keep it."""

    def __init__(self, path: str):
        vars(self).update(load(path))  # card, model, background, by_probability, low, high, ...
        self.features = {feature["name"]: feature for feature in self.card["features"]}
        self.Row, self.Columns = body_types(self.card)
        self.classes = self.card.get("classes", [])  # none: it is a regression
        self.checked = list(self.features.values())
        if not self.classes:  # then a prediction is checked like a feature
            self.checked.append({"name": self.card["target"], "type": "number"})
            self.low = np.append(self.low, self.card["uncertainty"]["minimum"])
            self.high = np.append(self.high, self.card["uncertainty"]["maximum"])
            self.rarely_missing = np.append(self.rarely_missing, False)

    def answer(self, X: np.ndarray, is_part: bool = False) -> list[list]:
        """Return the answers' columns: the prediction, of a classification each class' probability
        and likely, of a regression the interval, and the warnings.

        The prediction is None where the model has none. A row that makes it raise spoils no other.
        """
        try:
            outputs, *columns = self.classify(X) if self.classes else self.regress(X)
            for row in np.flatnonzero(~np.isfinite(outputs).all(axis=1)):
                columns[0][row] = None
            return [*columns, self.warn(X if self.classes else np.hstack([X, outputs]))]
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
        probabilities = np.asarray(self.model.predict_proba(X), float)
        predicted = probabilities.argmax(axis=1)
        if not self.by_probability:  # then it has a rule of its own
            labels = np.reshape(self.model.predict(X), (len(X), 1))
            predicted = (labels == self.model.classes_).argmax(axis=1)
        predictions = [self.classes[place] for place in predicted.tolist()]
        # likely: the predicted label, then all that are as probable as nine of ten of theirs were
        likely = [[label] for label in predictions]
        others = probabilities >= self.card["uncertainty"]["thresholds"]
        others[np.arange(len(X)), predicted] = False
        rows, places = others.nonzero()
        order = np.argsort(-probabilities[rows, places], kind="stable")
        for row, place in zip(rows[order].tolist(), places[order].tolist()):
            likely[row].append(self.classes[place])
        return probabilities, predictions, *probabilities.T.tolist(), likely

    def regress(self, X: np.ndarray) -> tuple[np.ndarray | list, ...]:
        """Return predictions of shape (rows, 1), and the answers' first columns."""
        predictions = np.asarray(self.model.predict(X), float).reshape(len(X), 1)
        uncertainty = self.card["uncertainty"]
        band = np.searchsorted(uncertainty["edges"], predictions, side="right")
        width = np.take(uncertainty["widths"], band)
        # an interval keeps the sign that the target has in all of training
        floor = 0.0 if uncertainty["minimum"] >= 0 else -np.inf
        ceiling = 0.0 if uncertainty["maximum"] <= 0 else np.inf
        middle = predictions.clip(floor, ceiling)
        low = np.minimum(predictions, (middle - width).clip(floor))
        high = np.maximum(predictions, (middle + width).clip(None, ceiling))
        return predictions, predictions[:, 0].tolist(), np.hstack([low, high]).tolist()

    def warn(self, values: np.ndarray) -> list[list[str]]:
        """Return for each row a sentence for each value the like of which training has not seen."""
        # rows share a list until one needs its own: thousands of lists cost as much as a call
        sentences: list[list[str]] = [[]] * len(values)
        unseen = (values < self.low) | (values > self.high)
        unseen |= np.isnan(values) & self.rarely_missing
        for row in np.flatnonzero(unseen.any(axis=1)):
            places = np.flatnonzero(unseen[row])[:MAX_SENTENCES]
            sentences[row] = [self.say(place, values[row, place]) for place in places]
        return sentences

    def say(self, place: int, value: float) -> str:
        """Return what is unusual about a value of a feature, or about a prediction."""
        feature, end = self.checked[place], self.low[place]
        name, words = feature["name"], "{} {} is below {}, the lowest in training"
        if np.isnan(value):
            rows = f"{feature['missing']:,} of {self.card['rows']:,} rows"
            return f"{name} is missing, as in only {rows} of training"
        if feature["type"] == "category":
            return f"{name} is none of the {len(feature['choices'])} texts that training knows"
        if value > end:
            end, words = self.high[place], "{} {} is above {}, the highest in training"
        if feature["type"] == "date":
            return words.format(name, decode(feature, value), decode(feature, end))
        unit = f" {feature['unit']}" if "unit" in feature else ""
        digits = ".15g" if name in self.features else ".6g"  # as it was sent, or as a model answers
        return words.format(name, f"{value:{digits}}{unit}", f"{end:{digits}}{unit}")

    def write(self, columns: list) -> Answer:
        """Return the answers' columns, or one row of them, under the names that JSON has."""
        prediction, *probabilities, likely, sentences = columns
        sure = {"interval": likely}
        if self.classes:
            sure = {"probabilities": dict(zip(self.classes, probabilities)), "likely": likely}
        return {"prediction": prediction, **sure, "warnings": sentences}


# the schema, made from the card
MAX_TEXT = 1_000  # characters of a text that is none of the choices


def to_days(text: str) -> float:
    """Return what encode() makes of a date in ISO 8601."""
    days = read_date(text)
    if days is None:
        raise ValueError("Input should be a date such as 2024-12-31 or 2024-12-31T23:59")
    return days


def value_type(feature: dict) -> Any:
    """Return pydantic's type of one value, which comes out as encode() has it."""
    kind, about = feature["type"], {}
    if "minimum" in feature:
        unit = f" {feature['unit']}" if "unit" in feature else ""
        about["description"] = f"{feature['minimum']} to {feature['maximum']}{unit} in training"
    if kind == "category":
        places = {choice: place for place, choice in enumerate(feature["choices"])}
        if not feature.get("open"):
            return Annotated[Literal[tuple(places)], AfterValidator(places.__getitem__)]
        text = Field(strict=True, max_length=MAX_TEXT, examples=feature["choices"])
        return Annotated[str, text, AfterValidator(lambda text: places.get(text, len(places)))]
    if kind == "boolean":
        return Annotated[bool, Field(strict=True)]
    if kind == "date":
        is_day = "T" not in feature["minimum"] + feature["maximum"]
        about |= {"format": "date"} if is_day else {}
        return Annotated[str, Field(strict=True, json_schema_extra=about), AfterValidator(to_days)]
    limits = {"ge": -MAX_NUMBER, "le": MAX_NUMBER, "allow_inf_nan": False}
    return Annotated[float, Field(strict=True, json_schema_extra=about, **limits)]


def body_types(card: dict) -> tuple[TypeAdapter, TypeAdapter]:
    """Return pydantic's types of one row, and of columns."""
    row, columns = {}, {}
    # the first wrong value of a column is enough: a thousand would cost memory
    limits = Field(fail_fast=True, min_length=1, max_length=MAX_ROWS)
    for feature in card["features"]:
        name, one = feature["name"], value_type(feature)
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

    def describe(path: str, media_type: str, schema: dict) -> None:
        content = {media_type: {"schema": schema}}
        paths[path]["post"]["requestBody"] = {"required": True, "content": content}

    rows = [example["features"] for example in model.card["examples"]]
    row = model.Row.json_schema() | {"additionalProperties": False, "examples": rows}
    describe("/predict", "application/json", row)
    describe("/explain", "application/json", row)
    example = {name: [row[name] for row in rows] for name in model.features}
    columns = model.Columns.json_schema() | {"additionalProperties": False, "examples": [example]}
    describe("/predict/batch", "application/json", columns)
    lines = [[spell(row[name], model) for name in model.features] for row in rows]
    table = write_csv([[*model.features], *lines], ";" if model.card["decimal"] == "," else ",")
    describe("/predict/csv", "text/csv", {"type": "string", "example": table})


# what is sent, and refused
MAX_BRACKETS = 1_000_000  # in a body of JSON, where one label has hardly more than one
MAX_MESSAGE = 300  # characters: pydantic would list all choices
BODY_SECONDS = 60  # for a client to send all of its body


def refusal(message: str, kind: str, *place: str | int) -> HTTPException:
    """Return the 422 that says what is wrong at a place of the body."""
    return HTTPException(422, [{"loc": ["body", *place], "msg": message, "type": kind}])


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


async def read_rows(request: Request, model: Model, body_type: TypeAdapter) -> np.ndarray:
    """Return a row or columns as encode() has them. Raises HTTPException 422."""
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
        values = body_type.validate_python(body)
    except ValidationError as error:
        entries = error.errors()[:MAX_SENTENCES]
        raise HTTPException(422, [reword(entry) for entry in entries]) from None
    if body_type is model.Row:
        return np.array([[values.get(name) for name in model.features]], float)
    lengths = {name: len(column) for name, column in values.items() if column}
    if len(set(lengths.values())) != 1:
        raise refusal(f"Columns should have equally many rows, not {lengths}", "columns")
    gaps = [None] * max(lengths.values())  # in a column that is left out
    return np.array([values.get(name) or gaps for name in model.features], float).T


def reword(entry: dict) -> dict:
    """Return pydantic's entry with what to type, and without the input: JSON may not hold it."""
    message, kind = entry["msg"].removeprefix("Value error, "), entry["type"]
    if kind == "float_type":
        message += ", such as 13.5"
    elif kind in ("literal_error", "string_type") and isinstance(entry["input"], float | int):
        message = f'Input should be a text, in quotes: "{to_json(entry["input"]).decode()}"'
    return {"loc": ["body", *entry["loc"]], "msg": message[:MAX_MESSAGE], "type": kind}


# the queue
MAX_CALL_ROWS = 2_000  # in one call of the model: what is longer lets others in between
MAX_WAITING_ROWS = 100_000  # beyond it the answer is 503: a second of work, or 35 explanations


class Queue:
    """Answer all who wait with one call of the model, which costs as much as for one row.

    The model runs in a thread of its own, so the event loop stays free. Nobody waits for company:
    a lone request is taken at once, and what arrives during its call is the next batch.
    """

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.waiting: deque[tuple[Model, np.ndarray, asyncio.Future]] = deque()
        self.rows = 0  # of all requests of JSON that are not answered yet
        self.arrivals: SimpleQueue = SimpleQueue()  # True for each that waits, False to stop
        # a daemon: unlike an executor's, it does not hold up the end of the program
        threading.Thread(target=self.make_calls, daemon=True).start()

    async def predict(self, model: Model, X: np.ndarray) -> list[list]:
        """Return the answers' columns. Raises HTTPException 422 where the model has none, 503 if
        too much waits or the server stops."""
        if self.rows + len(X) > MAX_WAITING_ROWS:
            raise HTTPException(503, "Too much work is waiting", LATER)
        self.rows += len(X)
        columns = []
        try:
            for start in range(0, len(X), MAX_CALL_ROWS):
                part = await self.put(model, X[start : start + MAX_CALL_ROWS])
                columns = [a + b for a, b in zip(columns, part)] if columns else part
        except asyncio.CancelledError:
            raise HTTPException(503, "The server is stopping", LATER) from None
        finally:
            self.rows -= len(X)
        if None in columns[0]:
            place = [columns[0].index(None)] if len(X) > 1 else []
            raise refusal("The model has no answer for these values", "no_answer", *place)
        return columns

    async def put(self, model: Model, X: np.ndarray) -> list[list]:
        """Return the answers for up to MAX_CALL_ROWS rows, however much waits."""
        future = self.loop.create_future()
        self.waiting.append((model, X, future))
        # a moment later, so that requests that are read together share a call
        self.loop.call_soon(self.arrivals.put, True)
        return await future

    @config_context(assume_finite=True, skip_parameter_validation=True)
    def make_calls(self) -> None:
        """Call the model again and again, in the thread."""
        while self.arrivals.get():
            # what shares a call: the first, and what fits beside it
            batch, rows = [], 0
            while self.waiting:
                model, X, _ = self.waiting[0]
                rows += len(X)
                if batch and (rows > MAX_CALL_ROWS or model is not batch[0][0]):
                    break
                batch.append(self.waiting.popleft())
            if batch:  # none, where what arrived has shared the call before
                columns = batch[0][0].answer(np.concatenate([X for _, X, _ in batch]))
                self.loop.call_soon_threadsafe(self.deliver, batch, columns)

    def deliver(self, batch: list[tuple], columns: list[list]) -> None:
        stop = 0
        for _, X, future in batch:
            start, stop = stop, stop + len(X)
            if not future.done():  # cancelled, as its client has gone
                future.set_result([column[start:stop] for column in columns])


# what each feature adds to an answer
MAX_EXPLAIN_CELLS = 4_000_000  # of the rows made up for one explanation


async def share_out(x: np.ndarray, model: Model, queue: Queue) -> dict[str, Any]:
    """Return permutation Shapley values: rows of the background become x, feature by feature, in a
    random order and then in its reverse. Strumbelj and Kononenko, "Explaining prediction models
    and individual predictions with feature contributions", 2014."""
    n, rng = len(x), np.random.default_rng(0)
    walks, steps = [], []
    for row in model.background[: max(1, MAX_EXPLAIN_CELLS // (2 * n * (n + 1)))]:
        there = rng.permutation(n)  # the step at which each feature is replaced
        for step in (there, n - 1 - there):
            steps.append(step)
            walks.append(np.where(step < np.arange(n + 1)[:, None], x, row))
    columns = await queue.predict(model, np.vstack([x, *walks]))
    prediction = columns[0][0]
    outputs = columns[1 + model.classes.index(prediction)] if model.classes else columns[0]
    value, outputs = outputs[0], np.reshape(outputs[1:], (-1, n + 1))  # a row for each walk
    gains = np.take_along_axis(np.diff(outputs), np.array(steps), axis=1)  # of each feature
    shares = dict(zip(model.features, gains.mean(axis=0).tolist()))
    shares = dict(sorted(shares.items(), key=lambda share: -abs(share[1])))
    average = outputs[:, 0].mean().item()
    return {"prediction": prediction, "value": value, "average": average, "shares": shares}


# a file
MAX_PART_CHARACTERS = 2_000_000  # of a file, answered together; and ten for each cell
ANSWER_SECONDS = 600  # for a file to be predicted, and for its client to take the answer


def open_table(content: bytes, model: Model) -> tuple[list[str], str, Iterator[list[str]]]:
    """Return what read_table() does. Raises HTTPException 422 if it can't be predicted."""
    encoding = model.card["told"].get("encoding")
    try:
        names, _, rows = read_table(content, encoding)
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


def predict_lines(table: tuple, model: Model, queue: Queue) -> Iterator[str]:
    """Yield the rows with their answers, part after part. It runs in a thread."""
    names, separator, rows = table
    added = ["low", "high"]
    if model.classes:
        added = [*(f"probability of {label}" for label in model.classes), "likely"]
    added = ["prediction", *added, "warnings", "problem"]
    lines = [names + [f"{name} (model)" if name in names else name for name in added]]
    absent = [f"there is no column '{name}'" for name in model.features if name not in names]
    while part := read_part(rows):
        X, problems, gaps = read_cells(part, names, model)
        readable = [row for row in range(len(part)) if row not in problems]
        answers = {}
        if readable:
            call = asyncio.run_coroutine_threadsafe(queue.put(model, X[readable]), queue.loop)
            answers = dict(zip(readable, zip(*call.result())))
        for row, answer in answers.items():
            if answer[0] is None:
                problems[row].append("the model has no answer for this row")
        for row, cells in enumerate(part):
            spelled = [""] * (len(added) - 1)
            if row not in problems:
                prediction, *numbers, likely, sentences = answers[row]
                ends = [" or ".join(likely)] if model.classes else likely
                spelled = [spell(value, model) for value in (prediction, *numbers, *ends)]
                sentences = absent + gaps[row] + sentences
                spelled.append("; ".join(sentences[:MAX_SENTENCES]))
            lines.append([*cells[: len(names)], *spelled, "; ".join(problems[row][:MAX_SENTENCES])])
        yield write_csv(lines, separator)
        lines = []


def read_cells(part: list, names: list[str], model: Model) -> tuple[np.ndarray, dict, dict]:
    """Return what encode() makes of rows, by row the reasons why it can't be predicted, and what
    is read as a gap: as in training, if that had gaps there."""
    X, unreadable = encode(dict(zip(names, zip(*part))), model.card)
    problems, gaps = defaultdict(list), defaultdict(list)
    for row, name, reason in unreadable:
        feature = model.features[name]
        if feature["nullable"] and feature["type"] in ("number", "date"):
            gaps[row].append(f"{name} {reason}, is read as a gap")
        else:
            problems[row].append(f"{name} {reason}")
    for row, cells in enumerate(part):
        if any(cells[len(names) :]):
            problems[row] = [f"the row has {len(cells)} cells, the header {len(names)}"]
        elif not any(map(str.strip, cells)):
            problems[row] = ["the row is empty"]
    return X, problems, gaps


def spell(value: Any, model: Model) -> str:
    """Return a value of JSON as the table would have it."""
    if isinstance(value, float):
        return repr(value).replace(".", model.card["decimal"])
    return "" if value is None else str(value)


def write_csv(lines: list[list[str]], separator: str) -> str:
    """Return lines of CSV, in which each cell comes back as it is."""
    written: list[str] = []
    # note: where lines end with CR LF, and only there, a cell with either of them is quoted
    csv.writer(SimpleNamespace(write=written.append), delimiter=separator).writerows(lines)
    return "".join(line.removesuffix("\r\n") + "\n" for line in written)


# loading, and swapping
WATCH_SECONDS = 1  # between looks at the file: a new one is served without a restart
SAVED = ("model", "background", "by_probability", "low", "high", "rarely_missing")  # and the card


async def serve_file(app: FastAPI) -> None:
    """Serve what is in the file now. Raises ValueError, as load() does."""
    model = await asyncio.to_thread(Model, MODEL_PATH)
    document(app, model)
    app.state.model = model


async def serve_new_files(app: FastAPI) -> None:
    """Serve what train.py writes while the app runs. Requests in flight finish on the model they
    began with; a bad file is refused in one line, and the model of before goes on."""
    seen = app.state.model.written
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            before, seen = seen, os.stat(MODEL_PATH).st_mtime_ns
            if seen != before:
                await serve_file(app)
                log.warning("main_api.py: the new '%s' is served", MODEL_PATH)
        except OSError:  # there is none
            continue
        except Exception as error:  # noqa: BLE001 whatever is wrong with it, the next may be right
            log.error("main_api.py: %s; the model of before goes on", error)


def load(path: str) -> dict:
    """Return what train.py saved, and when. Raises ValueError with one line: what was found, and
    what to type."""
    todo = "run `python train.py`"
    try:
        written, content = os.stat(path).st_mtime_ns, Path(path).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if MODEL_SHA256.lower() not in ("", sha256):
            raise ValueError(f"it has SHA-256 {sha256}, but MODEL_SHA256 is '{MODEL_SHA256}'")
        with warnings.catch_warnings():
            warnings.simplefilter("error", InconsistentVersionWarning)
            saved = joblib.load(io.BytesIO(content))
        if isinstance(saved, dict):
            card = saved["card"] | {"sha256": sha256}
            return {key: saved[key] for key in SAVED} | {"card": card, "written": written}
        found = f"is a bare {type(saved).__name__}"
        todo = "run `python train.py TABLE --target COLUMN --model PATH`"
    except InconsistentVersionWarning as error:
        then, now = error.original_sklearn_version, error.current_sklearn_version
        found = f"was saved by scikit-learn {then}, this is {now}"
    except Exception as error:  # noqa: BLE001 a pickle may raise anything
        found = f"can't be served ({type(error).__name__}: {error})"
    raise ValueError(f"'{path}' {found}: {todo}")

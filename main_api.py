"""Serve model.joblib over HTTP. Schema, documentation and checks are made from the card in the
file, so this serves whatever table train.py was given.

    uvicorn main_api:app --host 127.0.0.1 --port 8001        # then open /docs
"""

import asyncio
import difflib
import gc
import hashlib
import io
import json
import logging
import os
import queue
import sys
import threading
import time
import warnings
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

# the batcher keeps one core busy; pools of BLAS and OpenMP would fight over it
os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import joblib
import numpy as np
import pandas as pd
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import to_json
from sklearn import config_context
from sklearn.exceptions import InconsistentVersionWarning

MODEL_PATH = os.environ.get("MODEL_PATH", "model.joblib")
MODEL_SHA256 = os.environ.get("MODEL_SHA256", "")  # if set, any other file is refused
MAX_ROWS = 10_000  # in one request
MAX_BODY_BYTES = 16 * 2**20  # MAX_ROWS of 100 features
MAX_WAITING_ROWS = 2 * MAX_ROWS  # beyond it the answer is 503
MAX_BATCH_ROWS = 256  # of many requests in one call of the model
PATIENCE_SECONDS = 1.0  # work that has waited longer is dropped if its client has gone
MAX_NUMBER = 1e30  # the square of a larger one overflows inside many estimators
MAX_ERRORS = 20  # entries in a 422

REFUSALS: dict = {
    413: {"description": f"The body is larger than {MAX_BODY_BYTES:,} bytes"},
    415: {"description": "The Content-Type is not JSON"},
    503: {"description": "Too much work is waiting: try again after Retry-After seconds"},
}

log = logging.getLogger("uvicorn.error")
logging.getLogger("uvicorn.access").disabled = True  # a line a request costs a tenth of the speed
warnings.filterwarnings("ignore", "X does not have valid feature names")


# low and high; a list, since not every reader of OpenAPI 3.1 knows a tuple's prefixItems
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Classification(BaseModel):
    prediction: str
    probabilities: dict[str, float]
    likely: list[str]
    warnings: list[str]


class Regression(BaseModel):
    prediction: float
    interval: Interval
    warnings: list[str]


class Classifications(BaseModel):
    prediction: list[str]
    probabilities: dict[str, list[float]]
    likely: list[list[str]]
    warnings: list[list[str]]


class Regressions(BaseModel):
    prediction: list[float]
    interval: list[Interval]
    warnings: list[list[str]]


def load_model(path: str) -> tuple[Any, dict, str]:
    """Return the estimator, its card and the file's SHA-256.

    Raises ValueError with one line: the file, what was found, what to type.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"'{path}' can't be read ({error.strerror}): run `python train.py`"
        ) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if MODEL_SHA256 and sha256 != MODEL_SHA256.lower():
        raise ValueError(f"'{path}' has SHA-256 {sha256}, but MODEL_SHA256 is '{MODEL_SHA256}'")
    if content.startswith(b"version https://git-lfs"):
        raise ValueError(f"'{path}' is a Git LFS pointer: run `git lfs pull`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InconsistentVersionWarning)
            artifact = joblib.load(io.BytesIO(content))
        return artifact["model"], artifact["card"], sha256
    except InconsistentVersionWarning as error:
        saved, here = error.original_sklearn_version, error.current_sklearn_version
        found = f"was saved by scikit-learn {saved}, this is {here}"
    except Exception as error:  # noqa: BLE001 a pickle may raise anything
        found = f"was not saved by train.py, or only in part ({type(error).__name__}: {error})"
    raise ValueError(f"'{path}' {found}: run `python train.py`")


def make_schema(card: dict) -> tuple[type[BaseModel], type[BaseModel]]:
    """Return the pydantic models of one row and of many, the features' names as aliases."""
    row, columns = {}, {}
    finite = Field(strict=True, allow_inf_nan=False, ge=-MAX_NUMBER, le=MAX_NUMBER)
    for i, f in enumerate(card["features"]):
        default, about = ..., f["type"]
        if f["type"] == "number":
            kind = Annotated[float, finite]
            about = f"{f['minimum']:.10g} to {f['maximum']:.10g} in training"
            about += ", whole numbers" * f["integer"]
        elif f["type"] == "boolean":
            kind = Annotated[bool, Field(strict=True)]
        else:
            kind = Literal[tuple(f["choices"])]
        if f["nullable"]:
            kind, default, about = kind | None, None, about + ", may be missing"
        kinds = Annotated[list[kind], Field(min_length=1, max_length=MAX_ROWS)]
        kinds = kinds | None if f["nullable"] else kinds
        row[f"f{i}"] = kind, Field(default, alias=f["name"], description=about)
        columns[f"f{i}"] = kinds, Field(default, alias=f["name"], description=about)
    rows = [example["features"] for example in card["examples"]]
    lists = [{name: [r[name] for r in rows] for name in rows[0]}]
    forbid = ConfigDict(extra="forbid")
    return (
        create_model("Row", __config__=forbid | {"json_schema_extra": {"examples": rows}}, **row),
        create_model(
            "Columns", __config__=forbid | {"json_schema_extra": {"examples": lists}}, **columns
        ),
    )


class Work(NamedTuple):
    X: np.ndarray
    request: Request
    future: asyncio.Future
    since: float


class Batcher:
    """Answer all waiting requests with one call of the model, which costs as much as for one row.

    Nobody waits for company: a lone request is taken at once, and what arrives during its call
    is the next batch. The model runs in a thread of its own, so the event loop stays free.
    """

    def __init__(self, model, card: dict):
        self.model, self.features = model, card["features"]
        self.classes = np.array(card["classes"], object) if "classes" in card else None
        self.quantile = card["uncertainty"]["quantile"]
        self.low = np.array([f.get("minimum", np.nan) for f in self.features], float)
        self.high = np.array([f.get("maximum", np.nan) for f in self.features], float)
        self.waiting_rows, self.queue = 0, queue.SimpleQueue()
        # two savings, each only if it changes no answer on made-up rows: a plain array in place
        # of a DataFrame, and the most probable class in place of a second call for the prediction
        sizes = [len(f.get("choices", "ft")) for f in self.features]
        rows = np.random.default_rng(0).uniform(0, 1, (64, len(sizes)))
        numbers = self.low + rows * (self.high - self.low)
        rows = np.where(np.isnan(self.low), np.floor(rows * sizes), numbers)
        self.as_array = self.by_probability = False
        many, one = self.call(rows), self.call(rows[:1])
        self.by_probability = np.array_equal(many[0].argmax(axis=1), many[1])
        try:
            self.as_array = not any("choices" in f for f in self.features)
            self.as_array &= all(map(np.array_equal, self.call(rows), many))
            self.as_array &= all(map(np.array_equal, self.call(rows[:1]), one))
        except Exception:  # noqa: BLE001 say, a pipeline that selects columns by name
            self.as_array = False

    def to_frame(self, X: np.ndarray) -> pd.DataFrame:
        """Return X, shape (rows, features), as the DataFrame that the model was fitted to."""
        columns = {f["name"]: X[:, i] for i, f in enumerate(self.features)}
        for i, f in enumerate(self.features):
            if "choices" in f:
                codes = np.nan_to_num(X[:, i], nan=-1).astype(int)
                columns[f["name"]] = pd.Categorical.from_codes(codes, f["choices"])
        return pd.DataFrame(columns)

    def call(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the model's own answers: the probabilities, shape (rows, classes), and the place
        of the predicted class, shape (rows,); or the predictions, shape (rows, 1), and zeros."""
        table = X if self.as_array else self.to_frame(X)
        if self.classes is None:
            predictions = np.asarray(self.model.predict(table), float)
            return predictions.reshape(-1, 1), np.zeros(len(X), int)
        probabilities = self.model.predict_proba(table)
        if self.by_probability:
            return probabilities, probabilities.argmax(axis=1)
        return probabilities, np.searchsorted(self.model.classes_, self.model.predict(table))

    def call_safely(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Like call(), but a row that makes the model raise is NaN and spoils no other."""
        try:
            return self.call(X)
        except Exception as error:  # noqa: BLE001 an estimator may raise anything
            if len(X) == 1:
                log.warning("the model raised %s: %s", type(error).__name__, error)
                width = 1 if self.classes is None else len(self.classes)
                return np.full((1, width), np.nan), np.zeros(1, int)
            half = len(X) // 2
            halves = self.call_safely(X[:half]), self.call_safely(X[half:])
            return tuple(map(np.concatenate, zip(*halves)))

    def answer(self, X: np.ndarray) -> dict[str, Any]:
        """Return the answer's columns; the prediction is None where the model has none."""
        answers, places = self.call_safely(X)
        # rows share their lists until one needs another: thousands of lists cost as much as a call
        sentences: list[list[str]] = [[]] * len(X)
        for row, i in zip(*((X < self.low) | (X > self.high)).nonzero()):
            f, value = self.features[i], X[row, i]
            bound, where, end = f["maximum"], "above", "highest"
            if value < self.low[i]:
                bound, where, end = f["minimum"], "below", "lowest"
            words = f"{f['name']} {value:.10g} is {where} {bound:.10g}, the {end} in training"
            sentences[row] = [*sentences[row], words]
        if self.classes is None:
            predictions = answers[:, 0]
            interval = np.column_stack([predictions - self.quantile, predictions + self.quantile])
            columns = {"prediction": predictions.tolist(), "interval": interval.tolist()}
        else:
            # likely: the predicted class, then those that reach the conformal threshold
            predictions = self.classes[places].tolist()
            alone = [[label] for label in self.classes]
            likely = [alone[place] for place in places]
            others = answers >= 1 - self.quantile
            others[np.arange(len(X)), places] = False
            for row in others.any(axis=1).nonzero()[0]:
                order = np.argsort(-answers[row], kind="stable")
                likely[row] = likely[row] + self.classes[order[others[row, order]]].tolist()
            columns = {"prediction": predictions, "probabilities": answers, "likely": likely}
        for row in (~np.isfinite(answers).all(axis=1)).nonzero()[0]:
            columns["prediction"][row] = None
        return columns | {"warnings": sentences}

    async def predict(self, X: np.ndarray, request: Request) -> tuple[dict[str, Any], slice]:
        """Return the columns of a batch's answer and the rows of X in it, once the model is free.

        Raises HTTPException 503 if too much waits, and 422 if the model has no answer.
        """
        if self.waiting_rows + len(X) > MAX_WAITING_ROWS:
            raise HTTPException(503, "Too much work is waiting", headers={"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        work = Work(X, request, loop.create_future(), time.monotonic())
        self.waiting_rows += len(X)
        loop.call_soon(self.queue.put, work)  # after the other requests that are being read
        try:
            columns, mine = await work.future
        finally:
            self.waiting_rows -= len(X)
        predictions = columns["prediction"][mine]
        if None in predictions:
            entry = {"msg": "The model has no answer for these values", "type": "no_answer"}
            rows = [row for row, prediction in enumerate(predictions) if prediction is None]
            raise RequestValidationError([{"loc": ["body", row]} | entry for row in rows])
        return columns, mine

    def run(self) -> None:
        """Answer batch after batch, until the queue holds None."""
        with config_context(assume_finite=True, skip_parameter_validation=True):
            while batch := self.take():
                try:
                    columns = self.answer(np.concatenate([work.X for work in batch]))
                except Exception as error:  # noqa: BLE001 to those who asked; the thread lives on
                    columns = error
                batch[0].future.get_loop().call_soon_threadsafe(self.deliver, batch, columns)

    def take(self) -> list[Work]:
        """Wait for work and return what there is, up to MAX_BATCH_ROWS if it comes from several
        requests, without what nobody waits for any more. Return [] at the end."""
        batch, rows = [], 0
        while not batch or (rows < MAX_BATCH_ROWS and not self.queue.empty()):
            work = self.queue.get()
            if work is None:
                return []
            if time.monotonic() - work.since > PATIENCE_SECONDS:
                loop, is_gone = work.future.get_loop(), work.request.is_disconnected()
                if asyncio.run_coroutine_threadsafe(is_gone, loop).result():
                    error = HTTPException(503, "The client has gone")
                    loop.call_soon_threadsafe(self.deliver, [work], error)
                    continue
            batch.append(work)
            rows += len(work.X)
        return batch

    @staticmethod
    def deliver(batch: list[Work], columns: dict[str, Any] | Exception) -> None:
        """Hand each its rows, in the event loop."""
        start = 0
        for work in batch:
            end = start + len(work.X)
            if isinstance(columns, Exception) and not work.future.done():
                work.future.set_exception(columns)
            elif not work.future.done():
                work.future.set_result((columns, slice(start, end)))
            start = end


class JSONRoute(APIRoute):
    """A route that FastAPI documents, but whose body pydantic reads and whose answer it writes
    without Python objects in between: half the work (FastAPI's "Custom Request and APIRoute")."""

    def get_route_handler(self):
        schema = self.endpoint.__annotations__["body"]

        async def handle(request: Request) -> Response:
            if "json" not in request.headers.get("content-type", ""):
                raise HTTPException(415, "Send the header 'Content-Type: application/json'")
            try:
                body = schema.model_validate_json(await request.body())
            except ValidationError as error:
                entries = error.errors(include_url=False, include_context=False)
                raise RequestValidationError([e | {"loc": ("body", *e["loc"])} for e in entries])
            answer = await self.endpoint(body, request)
            return Response(to_json(answer), media_type="application/json")

        return handle


@asynccontextmanager
async def lifespan(app: FastAPI):
    """Load the model once, and add the routes that its card describes."""
    try:
        model, card, sha256 = load_model(MODEL_PATH)
        batcher = Batcher(model, card)
    except Exception as error:  # noqa: BLE001
        # note: raising here would log a traceback; nothing runs yet, so say it and end
        print(f"main_api.py: {error}", file=sys.stderr, flush=True)
        os._exit(3)
    thread = threading.Thread(target=batcher.run, daemon=True)
    thread.start()
    Row, Columns = make_schema(card)
    One, Many = (
        (Classification, Classifications) if "classes" in card else (Regression, Regressions)
    )
    places = {  # the model is given the place of a choice
        f["name"]: {None: None} | {choice: place for place, choice in enumerate(f["choices"])}
        for f in card["features"]
        if "choices" in f
    }
    names = [f["name"] for f in card["features"]]

    async def predict(body: Row, request: Request) -> One:
        """Predict one row."""
        values = list(vars(body).values())
        for i, name in enumerate(names) if places else ():
            if name in places:
                values[i] = places[name][values[i]]
        columns, mine = await batcher.predict(np.array([values], float), request)
        answer = {key: column[mine.start] for key, column in columns.items()}
        if One is Classification:
            answer["probabilities"] = dict(zip(card["classes"], answer["probabilities"].tolist()))
        return answer

    async def predict_batch(body: Columns, request: Request) -> Many:
        """Predict many rows, given and answered as columns."""
        given = {n: column for n, column in zip(names, vars(body).values()) if column is not None}
        lengths = {name: len(column) for name, column in given.items()}
        if len(set(lengths.values())) != 1:
            message = f"Columns should have equally many rows, at least 1, not {lengths}"
            raise RequestValidationError([{"loc": ["body"], "msg": message, "type": "columns"}])
        for name in places.keys() & given.keys():
            given[name] = [places[name][choice] for choice in given[name]]
        missing = [None] * max(lengths.values())
        X = np.array([given.get(name, missing) for name in names], float).T
        columns, mine = await batcher.predict(X, request)
        answer = {key: column[mine] for key, column in columns.items()}
        if Many is Classifications:
            answer["probabilities"] = dict(zip(card["classes"], answer["probabilities"].T.tolist()))
        return answer

    app.title, app.description = card["title"], card["description"]
    app.state.card, app.state.places = card | {"sha256": sha256}, places
    for path, endpoint in (("/predict", predict), ("/predict/batch", predict_batch)):
        app.router.add_api_route(
            path, endpoint, methods=["POST"], responses=REFUSALS, route_class_override=JSONRoute
        )
    gc.freeze()  # collections needn't walk the libraries and the model again: a fifth of the time
    yield
    batcher.queue.put(None)


app = FastAPI(lifespan=lifespan, max_body_size=MAX_BODY_BYTES)


@app.exception_handler(RequestValidationError)
async def answer_422(request: Request, error: RequestValidationError) -> Response:
    """Answer with the first MAX_ERRORS entries and none of the input, which JSON may not hold."""
    detail = []
    for entry in error.errors()[:MAX_ERRORS]:
        if entry["type"] == "literal_error":
            choices = [c for c in app.state.places[entry["loc"][1]] if c is not None]
            label = str(entry["input"])[:100]
            near = difflib.get_close_matches(label, choices, n=10, cutoff=0)
            few = len(choices) <= len(near)
            entry["msg"] = (
                f"'{label}' is not one of {choices if few else f'{len(choices)}, such as {near}'}"
            )
        detail.append({key: entry[key] for key in ("loc", "msg", "type")})
    return Response(json.dumps({"detail": detail}), 422, media_type="application/json")


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer as soon as the model is loaded; before that nothing listens."""
    return {"status": "ok"}


@app.get("/model")
async def model_card() -> dict[str, Any]:
    """Return the model's card, with the SHA-256 of the file."""
    return app.state.card

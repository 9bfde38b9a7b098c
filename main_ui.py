"""The page: asks the API what the model is, draws a form from its card, and shows the answers.

streamlit run main_ui.py --server.port 7860        # while main_api.py runs
"""

import asyncio
import gzip
import io
import json
import os
import re
import shlex
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pandas as pd
import streamlit as st
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from streamlit.runtime import get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

PUBLIC_API = os.environ.get("PUBLIC_API") == "1"  # the page's port answers under /api too
MAX_LINK = 4_000  # characters that all servers take
UNFOLDED = 24  # features in sight; of more, the less important ones are folded away
BARS = 10  # in a chart; nobody compares more
state = st.session_state  # of one visitor: what the fields hold, and ours under "page:"


def main() -> None:
    """Draw the page from top to bottom; Streamlit runs it again whenever a field has changed."""
    card = get_card()
    st.set_page_config(card["title"], layout="wide")
    st.title(plain(card["title"]))
    st.text(card["description"])
    tabs = ["One row", "Many rows", "About the model"]
    one, many, about = st.tabs(tabs, key="tab", bind="query-params")
    with one:
        form, answers = st.columns([3, 2], gap="large")
        with form:
            texts = draw_form(card)  # always: the address forgets a field that isn't drawn
        if one.open:
            with saying("row", st.bottom):
                row = read_row(card, texts)
                with answers:
                    draw_answer(card, row)
                    draw_why(card, row)
                draw_what_if(card, row)
    with many:
        if many.open:
            draw_many_rows(card)
    with about:
        if about.open:
            draw_about(card)


def draw_form(card: dict) -> dict[str, str]:
    """Draw the rows to start from and a field for each feature; return what the fields hold."""
    labels, ranked, texts = start_labels(card), list(card["importance"]), {}
    kept = {"default": labels[0], "required": True, "key": "row", "bind": "query-params"}
    st.pills(f"Start from a real row, by its {plain(card['target'])}", labels, **kept)
    shown = folded = st.grid(3)
    if len(ranked) > UNFOLDED:
        folded = st.expander("What matters less").grid(3)
    for feature in card["features"]:
        grid = shown if feature["name"] in ranked[:UNFOLDED] else folded
        texts[feature["name"]] = draw_field(grid, card, feature)
    st.button("Reset to this row", key="page:reset", on_click=refill, args=[card])
    if length_of_link(card, texts) > MAX_LINK:
        st.text("So much has been changed that the address is too long for a link.")
    return texts


def draw_answer(card: dict, row: dict) -> None:
    """Draw the prediction, how sure it is, and what else is likely."""
    answer = call("/predict", row)
    value, sure = say(card, answer)
    with st.bottom:  # always in sight, on a phone too, and read out by a screen reader
        words = plain(". ".join([sure, *answer["warnings"][:1]]))
        kind = st.warning if answer["warnings"] else st.success
        kind(f"**{plain(card['target'])}: {plain(value)}**, {words}. [Why?](#why)")
    st.metric(plain(card["target"]), plain(value))
    if "classes" in card:
        ranked = pd.Series(answer["probabilities"]).nlargest(BARS)
        draw_bars(card, ranked, "Probabilities", end=1)
    draw_remarks(card, row, answer)


def draw_why(card: dict, row: dict) -> None:
    """Draw how much each value adds, from the average over the table to this answer."""
    st.header("Why this answer", anchor="why")
    with saying("why"):
        why = call("/explain", row)
        with turn("chart"):
            draw_shares(card, row, why)


@st.fragment
def draw_what_if(card: dict, row: dict) -> None:
    """Draw how the answer changes with one feature, and where the table has its rows."""
    st.header("What if one value were different?")
    name = st.selectbox("Vary", list(card["importance"]), key="page:vary", persist_state="session")
    feature = next(feature for feature in card["features"] if feature["name"] == name)
    values = values_to_try(feature, row[name])
    columns = {other: [value] * len(values) for other, value in row.items()} | {name: values}
    with saying("what if"):
        answer = call("/predict/batch", columns)
        with turn("chart"):
            draw = draw_curve if "minimum" in feature else draw_choices
            draw(card, feature, values, answer, row[name])


def draw_many_rows(card: dict) -> None:
    """Draw where a file goes up, and what came of it."""
    words = "A CSV file with a column for each feature, written as in the table, up to 100,000 rows"
    st.text(f"{words}. With a column {card['target']} the answers are scored.")
    st.download_button("Download a template", template(card), "template.csv", on_click="ignore")
    file = st.file_uploader("Your file", ["csv", "tsv", "txt"], key="page:file")
    with saying("file"):
        result = predict_file(card, file)
        if result:
            draw_result(card, result)


def draw_about(card: dict) -> None:
    """Draw what the model is, how good it is, what it goes by, and how a program asks it."""
    words = (
        "It predicts {target} by {estimator}, trained on {trained} with {rows:,} rows. Its scores "
    )
    words += "are those of models like it, on rows that these had not seen ({measured})."
    st.text(words.format(**card))
    draw_scores(card)
    st.header("What matters most")
    gains = pd.Series(card["importance"]).clip(0)
    draw_bars(card, (gains / (gains.sum() or 1)).head(BARS), "Importance")
    draw_details(card)


# the story ends here; what follows is the care that it takes, to be looked up by its headings


# asking the API

BASE_PATH = f"/{st.get_option('server.baseUrlPath').strip('/')}".rstrip("/")
API_PORT, API_URL = os.environ.get("API_PORT"), os.environ.get("API_URL")
if PUBLIC_API and not API_PORT and not API_URL:  # page and API are one process
    API_URL = f"http://127.0.0.1:{st.get_option('server.port')}{BASE_PATH}/api"
API_URL = (API_URL or f"http://127.0.0.1:{API_PORT or 8001}").rstrip("/")
TIMEOUT_SECONDS = 10  # until the next bytes come
GONE = "The model is not there or too busy. Please try again in a moment."


class NoAnswer(Exception):
    """The API has no answer; the words, for people, say why."""


def call(path: str, body: dict | bytes | None = None) -> Any:
    """Send a row, columns or a CSV file; return the answer. Raises NoAnswer."""
    kind, content = "text/csv", body
    if not isinstance(body, bytes):
        kind, content = "application/json", body and json.dumps(body).encode()
    opener = build_opener(ProxyHandler({}))  # a proxy is for the world, not for this machine
    try:
        request = Request(API_URL + path, content, {"Content-Type": kind})
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return response.read() if kind == "text/csv" else json.load(response)
    except (OSError, HTTPException, ValueError) as error:
        if not isinstance(error, HTTPError) or error.code != 422:
            raise NoAnswer(GONE) from None
        reason = json.load(error)["detail"][0]
        raise NoAnswer(": ".join(map(str, [*reason["loc"][1:], reason["msg"]]))) from None


@contextmanager
def saying(what: str, place: Any = None) -> Iterator[None]:
    """Say that the API has no answer, and why, there or in a place."""
    try:
        yield
    except NoAnswer as problem:
        with place or st.container():
            st.error(plain(str(problem)))
            st.button("Try again", key=f"page:retry {what}")


@st.cache_resource(show_spinner=False)
def turn(what: str) -> threading.Lock:
    """Let one visitor at a time: several files would fill the memory, and all the charts that are
    drawn at once would keep the answers waiting."""
    return threading.Lock()


def get_card() -> dict:
    """Return the model's card; without an API the one that was seen last, or stop."""
    seen = state.get("page:card")
    with saying("card"):
        card = call("/model")
        if seen and card["sha256"] != seen["sha256"]:
            # what was filled in and answered belongs to another model
            state.clear()
            state["row"] = start_labels(card)[0]
            refill(card)
            st.toast("The model has changed: please check the form.", duration="infinite")
        seen = state["page:card"] = card
    return seen or st.stop()


# words and numbers as people read and write them

GAP = "(unknown)"  # the choice that stands for a gap


def plain(text: str) -> str:
    """Return a text so that Markdown shows it as it is, and most names as they are: what is escaped
    is read out with its backslashes where it labels a field."""
    # escaped or not, Streamlit makes icons of :name:, signs of ->, links of addresses: an
    # invisible word joiner keeps their parts from being one; numbers need none
    parts = r"(?<=[:@])(?=[^\s\d]|\d+:)|(?<=[<>~-])(?=[-=>])|(?<=ww)(?=w)"
    text = re.sub(parts, "\u2060", text)
    # inside of a line, and at its start, where 1. and - make lists
    signs = r"[\\`*[\]<>#$~|&]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])|^[-+=]|(?<=\d)[.)](?=\s|$)"
    return re.sub(signs, r"\\\g<0>", text, flags=re.MULTILINE)


def spell(card: dict, value: Any) -> str:
    """Return a value as a person types it; "" is unknown."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value).removesuffix(".0").replace(".", card["decimal"])


def write(card: dict, value: float, scale: float = 0.0, sign: str = "") -> str:
    """Return a number with three digits of the scale, of its interval say; or with four digits."""
    decimals = 2 - int(np.floor(np.log10(scale or abs(value) / 10 or 1)))
    text = f"{value:{sign}z,.{max(decimals, 0)}f}"  # z: no -0.0
    if abs(value) < 10_000:
        text = text.replace(",", "")  # a year has no comma
    return text.translate({44: ".", 46: ","}) if card["decimal"] == "," else text


def percent(card: dict, share: float) -> str:
    """Return a share, never as a certainty."""
    return f"{100 * min(max(share, 0.001), 0.999):.1f} %".replace(".", card["decimal"])


def points(card: dict, share: float) -> str:
    return f"{write(card, 100 * share, 10, '+')} points"


def read_number(card: dict, text: str) -> float:
    """Return what a person typed. A comma is a decimal mark too, but 1,234 may be a thousand where
    the table writes 1.234. Raises ValueError where it is no number, or might be two."""
    other = "," if card["decimal"] == "." else "."
    if re.fullmatch(rf"[-+]?[1-9]\d{{0,2}}\{other}\d{{3}}", text):
        raise ValueError
    value = float(text.replace(",", "."))
    return int(value) if value.is_integer() else value


def say(card: dict, answer: dict) -> tuple[str, str]:
    """Return the prediction in words, and how sure it is."""
    value = answer["prediction"]
    if "probabilities" in answer:
        return value, f"{percent(card, answer['probabilities'][value])} probable"
    low, high = answer["interval"]
    ends = f"{write(card, low, high - low)} to {write(card, high, high - low)}"
    return write(card, value, high - low), f"likely {ends}"


def draw_remarks(card: dict, row: dict, answer: dict) -> None:
    """Draw what is likely, how far that can be trusted, and the truth where it is known."""
    covered = f"{100 * card['uncertainty']['coverage']:.0f} %"
    if "interval" in answer:
        likely = say(card, answer)[1].capitalize()
        st.text(f"{likely}: in {covered} of the rows of this size the truth lay in such a range.")
    elif len(answer["likely"]) > 1:
        labels = " or ".join(answer["likely"][:BARS])
        words = f"of each class, {covered} of the rows had their own label among such labels."
        st.text(f"Not clear, it may be {labels}: {words}")
    for sentence in answer["warnings"]:
        st.warning(plain(f"{sentence}. How sure the model is there says nothing."))
    loss = next(iter(card["metrics"]))
    if card["notes"] and card["metrics"][loss] >= card["baseline"][loss]:
        # the dummy, or a given model that is no better: the first note says so
        st.warning(plain(card["notes"][0]))


# the form: its fields are bound to the address, which holds what differs from the row that it
# starts from; so a link, a reload and the browser's Back bring all of it again

CODES = 8  # whole numbers in so narrow a range are chosen from a list


def start_labels(card: dict) -> list[str]:
    """Return what the rows to start from are called."""
    examples = enumerate(card["examples"], 1)
    return [plain(f"{number}: {spell(card, row['target'])}") for number, row in examples]


def start_of(card: dict, feature: dict) -> tuple[str, str]:
    """Return a field's name in the address, a new one for each row, and what it begins with."""
    place, name = start_labels(card).index(state["row"]), feature["name"]
    value = card["examples"][place]["features"][name]
    text = spell(card, value) or (GAP if choices_of(feature) else "")
    return f"{place or ''}_{name}", text


def length_of_link(card: dict, texts: dict[str, str]) -> int:
    """Return about how many characters of the address hold what differs from the row."""
    length = 0
    for feature in card["features"]:
        (key, start), text = start_of(card, feature), texts[feature["name"]]
        if text != start:
            length += len(quote(f"{key}={text}"))
    return length


def refill(card: dict) -> None:
    """Let all fields hold again what the row has."""
    for feature in card["features"]:
        # note: each field that was changed is a step of the browser's history
        key, start = start_of(card, feature)
        state[key] = start


def choices_of(feature: dict) -> list[str]:
    """Return what is to choose from; nothing where it is typed."""
    choices = feature.get("choices", [])
    if feature["type"] == "boolean":
        choices = ["false", "true"]
    elif feature.get("integer") and feature["maximum"] - feature["minimum"] < CODES:
        choices = list(map(str, range(feature["minimum"], feature["maximum"] + 1)))
    return [*choices, GAP] if choices and feature["nullable"] else choices


def draw_field(grid: Any, card: dict, feature: dict) -> str:
    """Draw the field of one feature; return what it holds."""
    choices, label = choices_of(feature), feature["name"]
    key, start = start_of(card, feature)
    if "unit" in feature:
        label += f" ({feature['unit']})"
    if "minimum" in feature and not choices:
        label += f" ({spell(card, feature['minimum'])} to {spell(card, feature['maximum'])})"
    is_long = len(max(choices, key=len, default="")) > 22  # characters, where it would be cut
    kept = {"key": key, "bind": "query-params"}
    with grid.cell(column_span="all" if is_long else 1):
        if choices:
            kept["accept_new_options"] = "open" in feature or feature["type"] == "number"
            choices = list(dict.fromkeys([*choices, start]))
            return st.selectbox(plain(label), choices, choices.index(start), **kept)
        empty = "unknown" if feature["nullable"] else "needed"
        # a text: number inputs round what they show, and swallow a comma
        return st.text_input(plain(label), start, placeholder=empty, **kept)


def read_row(card: dict, texts: dict[str, str]) -> dict[str, Any]:
    """Return the row as the API is sent it. Raises NoAnswer for what is no number."""
    row: dict[str, Any] = {}
    for feature in card["features"]:
        name = feature["name"]
        value: Any = texts[name].strip()
        if value in ("", GAP):
            value = None
        elif feature["type"] == "boolean":
            value = value == "true"
        elif feature["type"] == "number":
            try:
                value = read_number(card, value)
            except ValueError:
                such = f"such as {spell(card, 1234.5)}"
                raise NoAnswer(f"{name}: '{value}' is not clear as a number, {such}.") from None
        # what is missing is left out: the API says so
        if value is not None or feature["nullable"]:
            row[name] = value
    return row


# charts: a table with bars in it, which screen readers read too; a curve in Vega-Lite


def draw_bars(
    card: dict, values: Any, about: str, spelled: Callable = percent, end: float = 0.0
) -> None:
    """Draw a table with a bar in each cell, minus and plus in two colours on both sides of zero."""
    frame = pd.DataFrame(values).rename(index=plain)
    # half of a colour: 7 : 1 to the words, on white and on black
    bars = {"axis": None, "align": "mid", "color": ["#fa732380", "#3796f080"]}
    bars["vmin"], bars["vmax"] = min(0, frame.min(axis=None)), max(end, 1e-9, frame.max(axis=None))
    bars["props"] = f"width: {60 // len(frame.columns)}%;"
    styled = frame.style.format(partial(spelled, card)).bar(**bars)
    st.table(styled, hide_header=len(frame.columns) == 1, alt=about)


def draw_shares(card: dict, row: dict, why: dict) -> None:
    """Draw what each value adds to the average, as far as a chart has room."""
    spelled, added = percent, points
    if "classes" not in card:
        ends = card["uncertainty"]
        spelled = partial(write, scale=ends["maximum"] - ends["minimum"])
        added = partial(spelled, sign="+")
    start, end = spelled(card, why["average"]), spelled(card, why["value"])
    st.text(f"What adds most, from {start}, the average of rows of the table, to {end}:")
    shares = {}
    for name, share in why["shares"].items():
        shares[f"{name} = {spell(card, row[name]) or GAP}"] = share
    draw_bars(card, pd.Series(shares).head(BARS), "Shares", added)
    st.text("These shares tell how the model decides; they are no causes.")


WHAT_IF_POINTS, WHAT_IF_CHOICES = 151, 30


def values_to_try(feature: dict, here: Any) -> list:
    """Return frequent choices, or many values in the range; and the form's own."""
    if "minimum" not in feature:
        choices = feature.get("choices", [False, True])
        frequent = pd.Series(dict(zip(choices, feature["counts"]))).nlargest(WHAT_IF_CHOICES)
        kept = [choice for choice in choices if choice in frequent or choice == here]
        return kept if here in kept else [*kept, here]
    ends = [feature["minimum"], feature["maximum"], here]
    ends = places_of(feature, ends if here is not None else ends[:2])
    low, high = ends.min(), ends.max()
    if feature["type"] == "date":
        values = pd.date_range(low, high, WHAT_IF_POINTS)
        # over long whole days: several times of day would be a zigzag
        is_long = high - low > pd.Timedelta(days=WHAT_IF_POINTS)
        values = values.floor("D" if is_long else "s").union(ends)
        return values.unique().strftime("%Y-%m-%dT%H:%M:%S").tolist()
    values = np.linspace(low, high, WHAT_IF_POINTS)
    if feature["integer"]:
        values = values.round()
    return np.unique([*values, *ends]).tolist()


def places_of(feature: dict, values: list) -> Any:
    """Return where numbers or dates stand on an axis."""
    if feature["type"] == "date":
        return pd.to_datetime(values, format="ISO8601", utc=True).tz_localize(None)
    return np.array(values, float)  # an integer may be too large for numpy


def lines_of(card: dict, answer: dict, index: Any) -> pd.DataFrame:
    """Return the answers to many rows, a column for each class, the most probable ones first."""
    lines = answer.get("probabilities", {card["target"]: answer["prediction"]})
    lines = pd.DataFrame(lines, index)
    return lines[lines.max().nlargest(BARS).index]


def draw_choices(card: dict, feature: dict, values: list, answer: dict, here: Any) -> None:
    """Draw the answers for each choice, and in how many rows of the table it is."""
    counts = dict(zip(feature.get("choices", [False, True]), feature["counts"]))
    counts[None], names, spelled = feature["missing"], [], percent
    for value in values:
        now = ", as in the form" if value == here else ""
        names.append(f"{spell(card, value) or GAP} ({counts.get(value, 0):,} rows{now})")
    lines = lines_of(card, answer, names)
    if "classes" not in card:
        spelled = partial(write, scale=lines.abs().max(axis=None) / 10)
    lines = lines.rename(columns=plain).rename_axis(plain(feature["name"]))
    draw_bars(card, lines, "Answers", spelled)


def draw_curve(card: dict, feature: dict, values: list, answer: dict, here: Any) -> None:
    """Draw the answers along a number or a date, over a faint histogram of the table."""
    lines = lines_of(card, answer, places_of(feature, values))
    # note: labels never become columns, they may be called "at" or "value"
    points = lines.stack().rename_axis(["at", "label"]).reset_index(name="value")
    dashed = pd.DataFrame({"at": places_of(feature, [] if here is None else [here])})
    evenly = pd.date_range if feature["type"] == "date" else np.linspace
    ends = places_of(feature, [feature["minimum"], feature["maximum"]])
    edges = evenly(*ends, len(feature["counts"]) + 1)
    seen = pd.DataFrame({"at": edges[:-1], "end": edges[1:], "rows": feature["counts"]})
    if feature.get("integer"):
        # as many as each of the whole numbers in a step has: one step may have two of them
        seen["rows"] /= np.diff([*np.ceil(edges[:-1].round(9)), edges[-1] + 1]).clip(1)
    number = {"type": "quantitative", "axis": {"format": "~r"}}  # a year has no comma
    x = {"field": "at", "title": feature["name"], "scale": {"zero": False, "nice": False}}
    x |= {"type": "temporal"} if feature["type"] == "date" else number
    room = answer.get("interval", [0.0, 1.0])  # to draw less than intervals would exaggerate
    y = {"field": "value", "scale": {"domain": [np.min(room), np.max(room)]}, **number}
    y["title"] = "probability" if "classes" in card else card["target"]
    legend = {"orient": "top", "title": None, "columns": 2, "labelLimit": 150}
    color = {"field": "label", "sort": None, "legend": legend if "classes" in card else None}
    rows = {"field": "rows", "type": "quantitative", "axis": None}
    bars = {"mark": {"type": "rect", "color": "gray", "opacity": 0.2}, "data": {"name": "seen"}}
    bars["encoding"] = {"x2": {"field": "end"}, "y": rows}
    curve = {"mark": "line", "encoding": {"y": y, "color": color}, "data": {"name": "points"}}
    rule = {"mark": {"type": "rule", "strokeDash": [4, 4]}, "data": {"name": "dashed"}}
    chart = {"height": 300, "encoding": {"x": x}, "layer": [bars, curve, rule]}
    chart["datasets"] = {"seen": seen, "points": points, "dashed": dashed}
    chart["resolve"] = {"scale": {"y": "independent"}}
    ink = {"labelColor": "#767676", "titleColor": "#767676"}  # 4.5 : 1 on white and on black
    chart["config"] = {"axis": ink, "legend": ink, "rule": {"color": "gray"}}
    st.text("Dashed: the value in the form. Gray: where the table has its rows.")
    st.vega_lite_chart(chart, alt=f"How the answer changes with {feature['name']}")


# a file

MAX_FILE_MB = 50  # as .streamlit/config.toml has it
SHOWN_ROWS = 1_000  # of a file on the screen; the download has all


def template(card: dict) -> bytes:
    """Return a CSV file of the examples, as the table is written."""
    rows = pd.DataFrame(pd.DataFrame(card["examples"])["features"].tolist())
    marks = {"sep": ";", "decimal": ","} if card["decimal"] == "," else {}
    return rows.to_csv(index=False, **marks).encode("utf-8-sig")


def predict_file(card: dict, file: Any) -> dict | None:
    """Return what came of the last upload. Raises NoAnswer; if the API is away, the upload is kept,
    and with it what came of the one before."""
    file_id, result = state.get("page:result", ("", None))
    if file is not None and file.file_id != file_id:
        with turn("file"), st.spinner("Predicting", show_time=True):
            try:
                result = read_result(card, call("/predict/csv", file.getvalue()))
            except NoAnswer as problem:
                result = str(problem)
        if result != GONE:
            state["page:result"] = file.file_id, result
            # note: Streamlit would keep the upload until some session ends
            run = get_script_run_ctx()
            run.uploaded_file_mgr.remove_file(run.session_id, file.file_id)
            file.close()
    if isinstance(result, str):
        raise NoAnswer(result)
    return result


def read_result(card: dict, content: bytes) -> dict:
    """Return what is shown of the API's CSV file, and all of it packed."""
    separator = re.search(rb"warnings( \(model\))?(.)problem( \(model\))?\n", content)[2].decode()
    how = {"sep": separator, "lineterminator": "\n", "decimal": card["decimal"]}
    names = list(pd.read_csv(io.BytesIO(content), nrows=0, **how))
    # what the API added, and the numbers in it
    added = names[-len(card.get("classes", "a")) - 4 :]
    numbers = added[1:-3] if "classes" in card else added[:3]
    how |= {"keep_default_na": False, "na_values": {name: [""] for name in numbers}}
    how["dtype"] = defaultdict(lambda: str, dict.fromkeys(numbers, float))
    first = pd.read_csv(io.BytesIO(content), nrows=SHOWN_ROWS, **how)
    # of all rows only some columns: a large file would fill the memory
    used = {*added, card["target"]}.intersection(names)
    rows = pd.read_csv(io.BytesIO(content), usecols=list(used), **how)
    names = {added[0]: "prediction", added[-2]: "warnings", added[-1]: "problem"}
    rows = rows.rename(columns=names | {card["target"]: "truth"})
    rows.index += 1
    good, problems = rows[rows["problem"] == ""], rows["problem"][rows["problem"] != ""]
    return {
        "predictions": good["prediction"],
        "warned": int((good["warnings"] != "").sum()),
        "score": score_file(card, good, numbers) if "truth" in rows else "",
        "first": first[[*added, *first.columns.drop(added)]],
        "problems": problems.head(SHOWN_ROWS).rename_axis("row").reset_index(),
        "failed": len(problems),
        # gzip unpacks two to one: the mark without which Excel takes ü for Ã¼, and the file
        "packed": gzip.compress("\ufeff".encode()) + gzip.compress(content, 1),
    }


def score_file(card: dict, rows: pd.DataFrame, numbers: list[str]) -> str:
    """Return how good the answers are for the rows whose truth the file has."""
    truth, own = rows["truth"].str.strip(), card["metrics"]
    if "classes" in card:
        truth = truth[truth.isin(card["classes"])]
    else:
        truth = pd.to_numeric(truth.str.replace(card["decimal"], "."), errors="coerce").dropna()
    if truth.empty:
        return ""
    rows = rows.loc[truth.index]
    if "classes" in card:
        places = pd.Index(card["classes"]).get_indexer(truth)
        losses = -np.log(rows[numbers].to_numpy()[range(len(truth)), places].clip(1e-15))
        right = percent(card, (rows["prediction"] == truth).mean())
        score = f"{right} right, log loss {write(card, losses.mean())}"
        own = f"{percent(card, own['accuracy'])}, {write(card, own['log_loss'])}"
    else:
        score = f"A mean error of {write(card, (rows['prediction'] - truth).abs().mean())}"
        own = write(card, own["mean_absolute_error"])
    words = f"in {len(truth):,} rows whose {card['target']} the file tells"
    return f"{score}, {words}. The same in training, for unseen rows: {own}."


def draw_result(card: dict, result: dict) -> None:
    """Draw the summary, what can't be predicted and why, and the first rows."""
    predictions, failed = result["predictions"], result["failed"]
    good = len(predictions)
    st.header(f"{good:,} of {good + failed:,} rows predicted")
    if failed:
        row, problem = result["problems"].iloc[0]
        st.warning(plain(f"{failed:,} can't be predicted. The first is row {row}: {problem}."))
        st.dataframe(result["problems"], hide_index=True)
    if result["warned"]:
        st.warning(
            f"Rows with values that training had not seen, see warnings: {result['warned']:,}."
        )
    if result["score"]:
        st.info(plain(result["score"]))
    if good and "classes" in card:
        draw_bars(card, predictions.value_counts(normalize=True).head(BARS), "Rows", end=1)
    st.text(f"The first {SHOWN_ROWS:,} rows; the download has all.")
    st.dataframe(result["first"], hide_index=True, placeholder="")
    unpack = partial(gzip.decompress, result["packed"])
    st.download_button("Download the result", unpack, "predictions.csv", on_click="ignore")


# what the model is, and how a program asks it

SCORES = {
    "log_loss": "how far the probabilities are from the truth; lower is better",
    "accuracy": "the share of rows that are answered right; higher is better",
    "balanced_accuracy": "the same, where each class counts alike; higher is better",
    "roc_auc": "how well it tells the two classes apart, 0.5 by chance; higher is better",
    "root_mean_squared_error": "the usual error, where large ones count more; lower is better",
    "mean_absolute_error": "the mean error, in the unit of what is predicted; lower is better",
    "r2": "the share of the differences that it explains, 1 is all; higher is better",
}


def draw_scores(card: dict) -> None:
    """Draw how good it is, what to know of that, and what acting earlier or later would bring."""
    scores = {"model": card["metrics"], "always the same answer": card["baseline"]}
    frame = pd.DataFrame(scores).map(partial(write, card))
    frame["what it is"] = frame.index.map(SCORES).fillna("")
    st.table(frame.set_axis(frame.index.str.replace("_", " ")).rename_axis("score"))
    for note in card["notes"]:
        st.info(plain(note))
    if "cutoffs" in card:
        label = card["cutoffs"]["label"]
        st.header(f"When to act on {plain(label)}")
        st.text(f"Who acts from a lower probability of {label} on finds more, and errs more:")
        columns = ["act from", "so many of these are right", "so many of all are found"]
        frame = pd.DataFrame(card["cutoffs"]["rows"], columns=columns)
        st.table(frame.map(partial(percent, card), "ignore").fillna("nobody is"), hide_index=True)


def draw_details(card: dict) -> None:
    """Draw what was left out, what it was trained with, and how a program asks it."""
    st.header("What it was trained on")
    for entry in card["dropped"]:
        what = [f"{key} {value}" for key, value in entry.items() if key != "reason"]
        st.text(f"left out: {', '.join(what)} ({entry['reason']})")
    versions = ", ".join(map(" ".join, card["versions"].items()))
    st.text(f"Trained with {versions}. SHA-256 of the file: {card['sha256']}")
    st.header("For programmers")
    url = API_URL
    if PUBLIC_API:  # below whatever path the page is
        url = f"{st.context.url.partition('?')[0].rstrip('/')}/api"
        st.markdown(f"The API's documentation: {url}/docs")
    body = shlex.quote(json.dumps(card["examples"][0]["features"], ensure_ascii=False))
    curl = f"curl {url}/predict -H 'Content-Type: application/json' -d {body}"
    st.code(curl, None, wrap_lines=True)


# the server: it answers for the API too if that is to be public; else nothing is below /api

MAX_HELD_MB = 150  # of all visitors' uploads: they fit into 1 GB beside the rest
UPLOAD_SECONDS = 600  # for all of a file to come; a phone that is gone may not say so


class LimitUploads:
    """Refuse an upload while others fill the memory: each is held until it has been predicted."""

    def __init__(self, app: Any):
        self.app, self.coming = app, 0  # bytes

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope.get("method") != "PUT":
            return await self.app(scope, receive, send)
        length = int(Headers(scope=scope).get("content-length", MAX_FILE_MB * 2**20))
        visitors = get_instance().uploaded_file_mgr.file_storage.values()
        held = sum(len(file.data) for files in visitors for file in files.values())
        if self.coming + held + length > MAX_HELD_MB * 2**20:
            return await PlainTextResponse("Too many files", 503)(scope, receive, send)
        self.coming += length
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                await self.app(scope, receive, send)
        except (ClientDisconnect, TimeoutError):
            await PlainTextResponse("The file did not come", 408)(scope, receive, send)
        finally:
            self.coming -= length


if __name__ == "__main__":
    main()
else:
    api: Any = Starlette()
    routes = []
    if PUBLIC_API:
        from fastapi.openapi.docs import get_swagger_ui_html

        from main_api import app as api

        # below whatever path: the API's addresses are relative to its documentation
        api.servers, api.root_path_in_servers = [{"url": "."}], False
        docs = get_swagger_ui_html(openapi_url="openapi.json", title=api.title)
        routes.append(Route(f"{BASE_PATH}/api/docs", lambda _: docs))
    app = st.App(
        __file__,
        routes=[*routes, Route(f"{BASE_PATH}/api", api), Mount(f"{BASE_PATH}/api", api)],
        middleware=[Middleware(LimitUploads)],
        lifespan=lambda _: api.router.lifespan_context(api),
    )

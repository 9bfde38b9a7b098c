"""The page: asks the API what the model is, draws a form from its card, and shows the answers.

streamlit run main_ui.py --server.port 7860        # while main_api.py runs
"""

import asyncio
import codecs
import gzip
import io
import json
import math
import os
import re
import shlex
import threading
from contextlib import suppress
from datetime import date, datetime
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urljoin
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

API_PORT = os.environ.get("API_PORT") or "8001"
API_URL = os.environ.get("API_URL") or f"http://127.0.0.1:{API_PORT}"
PUBLIC_API = os.environ.get("PUBLIC_API") == "1"  # the page's port answers under /api too
TIMEOUT_SECONDS = 10  # until the next bytes come
UNFOLDED = 24  # features in sight; of more, the less important ones are folded away
BARS = 10  # in a chart; nobody compares more
WHAT_IF_POINTS = 150
WHAT_IF_CHOICES = 30  # the most frequent ones
MAX_FILE_MB = 50
MAX_HELD_MB = 150  # of all visitors' uploads: they fit into 1 GB beside the rest
UPLOAD_SECONDS = 600  # for all of a file to come; a phone that is gone may not say so
SHOWN_ROWS = 1_000  # of a file on the screen; the download has all

GONE = "The model is not there or too busy. Please try again in a moment."

# what is kept of one visitor: what each field holds, a text, under "_" and the feature's name;
# "page:card", the last one seen; "page:asked", all that the address asked for when it was read;
# "page:result", what came of the last file: its id, a problem or "", and what read_result() returns
state = st.session_state


def main() -> None:
    """Draw the page from top to bottom; Streamlit runs it again after each click."""
    card = get_card()
    st.set_page_config(card["title"], layout="wide")
    st.title(plain(card["title"]))
    st.text(card["description"])
    follow_address(card)
    tabs = {
        "One row": draw_one_row,
        "Many rows": draw_many_rows,
        "About the model": draw_about,
        "For programmers": draw_programmers,
    }
    # only the open one is drawn; what it holds is kept while it is closed
    for tab, draw in zip(st.tabs(list(tabs), key="page:tab", on_change="rerun"), tabs.values()):
        if tab.open:
            with tab:
                draw(card)


# asking the API


def call(path: str, body: dict | bytes | None = None) -> tuple[Any, str]:
    """Send a row or columns, or a CSV file; return the answer and "", or None and a problem."""
    kind, content, read = "application/json", body, json.load
    if isinstance(body, dict):
        content = json.dumps(body).encode()
    elif body is not None:
        kind, read = "text/csv", partial(read_lines, expected=body.count(b"\n") + 1)
    request = Request(API_URL.rstrip("/") + path, content, {"Content-Type": kind})
    opener = build_opener(ProxyHandler({}))  # a proxy is for the world, not for this machine
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return read(response), ""
    except (OSError, HTTPException, ValueError) as error:
        if not isinstance(error, HTTPError) or error.code != 422:
            return None, GONE
        reasons = []
        for entry in json.load(error)["detail"]:
            reasons.append(": ".join(map(str, [*entry["loc"][1:], entry["msg"]])))
        more = f" And {len(reasons) - 3} more." if len(reasons) > 3 else ""
        return None, f"{'. '.join(reasons[:3])}.{more}"


def read_lines(response: Any, expected: int) -> bytes:
    """Return a scored file; a bar moves by the lines that have come."""
    bar, content, lines = st.progress(0.0, "Predicting"), io.BytesIO(), 0
    while part := response.read1(2**20):
        content.write(part)
        lines += part.count(b"\n")
        bar.progress(min(1.0, lines / expected), f"{lines:,} lines of about {expected:,}")
    bar.empty()
    return content.getvalue()


def get_card() -> dict:
    """Return the model's card; without an API the one that was seen last, or stop."""
    card, problem = call("/model")
    seen = state.get("page:card")
    if problem:
        st.error(problem)
        st.button("Try again", key="page:retry")
        return seen or st.stop()
    if seen is None or card["sha256"] != seen["sha256"]:
        # what was filled in and answered belongs to another model
        state["page:card"], state["page:asked"] = card, None
        state["page:result"] = None, "", None
        if seen:
            st.query_params.clear()
            st.toast("The model has changed: please check the form.", duration="infinite")
    return card


# words and numbers as people read them


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


def spell(value: Any) -> str:
    """Return a feature's value as a person types it; "" is unknown."""
    if value is None or isinstance(value, str | date):
        return str(value or "")
    return json.dumps(value).removesuffix(".0")


def write(value: float, scale: float = 0.0, sign: str = "") -> str:
    """Return a number with three digits of the scale, of its interval say; or with four digits."""
    decimals = 2 - math.floor(math.log10(scale or abs(value) / 10 or 1))
    if decimals > 12 and abs(value) < 1e-9:
        return f"{value:{sign}.3g}"
    text = f"{value:{sign}z,.{min(max(decimals, 0), 12)}f}"  # z: no -0.0
    return text if abs(value) >= 10_000 else text.replace(",", "")  # a year has no comma


def percent(share: float) -> str:
    """Return a share, never as a certainty."""
    return f"{100 * min(max(share, 0.001), 0.999):.1f} %"


# charts


def draw_chart(spec: dict, about: str) -> None:
    # labels in a contrast of 7 : 1, where Streamlit's own have 3.7
    ink = "#c9cbd1" if st.context.theme.type == "dark" else "#45474f"
    of_text = {"labelColor": ink, "titleColor": ink}
    st.vega_lite_chart(spec=spec | {"config": {"axis": of_text, "legend": of_text}}, alt=about)


def color_of(card: dict, legend: dict | None = None) -> dict:
    """Return Vega's encoding of a class as its colour, the same one in all charts."""
    if card["task"] == "regression":
        return {"value": "#1f77b4"}
    labels = card["classes"]
    if legend and len(labels) > BARS:  # more than there are colours
        labels = legend["values"]
    return {"field": "label", "scale": {"domain": labels}, "legend": legend}


def draw_bars(bars: list[dict], about: str, color: dict, end: float = 1e-9) -> None:
    """Draw the "value" of each as a bar, up to the end or further, its "name" above it."""
    values = [bar["value"] for bar in bars]
    ends = [min([0, *values]), max([end, *values])]
    # the axis' labels stand inside the chart: so they have all its width, on a phone too
    axis = {"labelAlign": "left", "labelBaseline": "bottom", "labelOffset": -4, "labelPadding": 0}
    axis |= {"labelLimit": {"expr": "width"}, "labelFontSize": 14, "ticks": False, "domain": False}
    axis |= {"minExtent": 0, "maxExtent": 0, "title": None}
    bands = {"paddingInner": 0.75, "paddingOuter": 0.4}
    y = {"field": "name", "type": "nominal", "sort": None, "axis": axis, "scale": bands}
    x = {"field": "value", "type": "quantitative", "axis": None, "scale": {"domain": ends}}
    encoding = {"y": y, "x": x, "color": color}
    mark = {"type": "bar", "yOffset": 8}
    spec = {"data": {"values": bars}, "mark": mark, "encoding": encoding, "height": {"step": 38}}
    draw_chart(spec, f"{about}: {', '.join(bar['name'] for bar in bars)}")


# the form, and the address: it holds the first feature and what differs from the defaults


def defaults_of(card: dict) -> dict[str, str]:
    """Return what a fresh form holds: nothing where nothing is needed."""
    return {f["name"]: "" if f["nullable"] else spell(f["default"]) for f in card["features"]}


def read_form(card: dict) -> dict[str, str]:
    return {f["name"]: spell(state[f"_{f['name']}"]) for f in card["features"]}


def follow_address(card: dict) -> None:
    """Fill the form from the address if that is new: a link, Back, a press, another model."""
    defaults = defaults_of(card)
    texts = {n: st.query_params[f"_{n}"] for n in defaults if f"_{n}" in st.query_params}
    asked = defaults | texts if texts else {}
    if asked != state["page:asked"]:
        state["page:asked"] = asked
        for feature in card["features"]:
            value: Any = (asked or defaults)[feature["name"]] or None
            # a day's field takes a date; a day in other words, 2024-W05-1 say, stays a text
            with suppress(ValueError):
                if value and is_day(feature) and str(date.fromisoformat(value)) == value:
                    value = date.fromisoformat(value)
            state[f"_{feature['name']}"] = value


def press(card: dict, texts: dict[str, str] | None = None) -> None:
    """Ask for texts, or what the form holds: one step in the browser's history, one address."""
    texts, defaults = texts or read_form(card), defaults_of(card)
    # the first one makes it a link to an answer if all are defaults
    first = next(iter(texts))
    asked = {f"_{n}": text for n, text in texts.items() if n == first or text != defaults[n]}
    st.query_params.from_dict(asked)
    state["page:asked"] = None  # so that the form is filled also where the address is the same


def press_example(card: dict) -> None:
    chosen, state["page:try"] = state["page:try"], None  # none stays marked beside other values
    if chosen is not None:
        example = card["examples"][chosen]["features"]
        press(card, {name: spell(value) for name, value in example.items()})


def read_row(card: dict) -> dict[str, Any]:
    """Return the row that the address asks for, as the API is sent it; {} if it asks for none."""
    row: dict[str, Any] = {}
    for feature, text in zip(card["features"], state["page:asked"].values()):
        value: Any = text.strip() or None
        # what is no number goes as a text, and what is missing is left out: the API says so
        if feature["type"] == "boolean":
            value = {"false": False, "true": True}.get(value, value)
        if feature["type"] == "number":
            with suppress(ValueError):
                value = float(text)
                value = int(value) if value.is_integer() else value
        if value is not None or feature["nullable"]:
            row[feature["name"]] = value
    return row


# drawing the form


def is_day(feature: dict) -> bool:
    """Return whether it is a date without a time of day."""
    return feature["type"] == "date" and "T" not in feature["minimum"] + feature["maximum"]


def draw_field(feature: dict) -> None:
    """Draw the field of one feature; follow_address() says what it holds.

    What can't be, by a link, is shown, and refused by the API.
    """
    label, key = plain(feature["name"]), f"_{feature['name']}"
    kept = {"key": key, "persist_state": "session"}
    empty = "unknown" if feature["nullable"] else "needed"
    if "minimum" not in feature:
        choices = feature.get("choices", ["false", "true"])
        if state[key] not in [None, *choices]:
            choices = [*choices, state[key]]
        st.selectbox(label, choices, None, placeholder=empty, **kept)
        return
    seen = plain(f"{spell(feature['minimum'])} to {spell(feature['maximum'])} in training")
    if is_day(feature) and not isinstance(state[key], str):
        st.date_input(label, None, date.min, date.max, help=seen, format="YYYY-MM-DD", **kept)
    else:
        # a text: number inputs round what they show, and swallow a comma
        st.text_input(label, None, help=seen, placeholder=empty, **kept)


def draw_form(card: dict) -> None:
    """Draw the examples and the fields, in the table's order; of many features some are folded."""
    ranked, examples = list(card["importance"]), []
    for example in card["examples"]:
        values = [f"{n} = {spell(example['features'][n]) or 'unknown'}" for n in ranked[:3]]
        examples.append(plain(f"{spell(example['target'])}: {', '.join(values)}"))
    label, places = "Try a row of the table", range(len(examples))
    choose = {"on_change": press_example, "args": [card], "wrap": True, "key": "page:try"}
    st.pills(label, places, format_func=examples.__getitem__, **choose)
    shown = st.grid(3)
    less = st.expander("What matters less").grid(3) if ranked[UNFOLDED:] else None
    for feature in card["features"]:
        with shown if feature["name"] in ranked[:UNFOLDED] else less:
            draw_field(feature)


# the answer to one row


def draw_one_row(card: dict) -> None:
    left, right = st.columns([3, 2], gap="large")
    with left:
        draw_form(card)
    row, answer, kind = read_row(card), None, st.info
    if not state["page:asked"]:
        words = "Fill in what you know and press Predict."
    elif read_form(card) != state["page:asked"]:
        words = "The form has changed: press Predict for its answer."
    else:
        answer, words = call("/predict", row)
        kind = st.error
    if answer is not None:
        value, sure, _ = say(answer)
        kind, words = st.success, f"{value}, {sure}"
        if answer["warnings"]:
            kind, words = st.warning, f"Not to be trusted, as {answer['warnings'][0]}: {words}"
    # always in sight, on a phone too, and read out by a screen reader, as alerts are
    with st.bottom:
        button, sentence = st.columns([1, 4], vertical_alignment="center", wrap=False)
        button.button("Predict", type="primary", key="page:predict", on_click=press, args=[card])
        with sentence:
            kind(plain(words))
    if answer is not None:
        with right:
            draw_answer(card, row, answer)
            draw_why(card, row, answer)
        draw_what_if(card, row)


def say(answer: dict) -> tuple[str, str, str]:
    """Return the prediction in words, how sure it is, and what is likely."""
    value = answer["prediction"]
    if "probabilities" in answer:
        sure = f"{percent(answer['probabilities'][value])} probable"
        likely, others = answer["likely"][:BARS], len(answer["likely"]) - BARS
        if others > 0:
            likely.append(f"{others} more")
        return value, sure, " or ".join(likely)
    low, high = answer["interval"]
    likely = f"{write(low, high - low)} to {write(high, high - low)}"
    return write(value, high - low), f"likely {likely}", likely


def draw_answer(card: dict, row: dict, answer: dict) -> None:
    for sentence in answer["warnings"]:
        st.warning(plain(f"{sentence}. How sure the model is there says nothing."))
    value, _, likely = say(answer)
    st.metric(plain(card["target"]), plain(value))
    if card["task"] == "classification":
        ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:BARS]
        bars = [{"name": f"{percent(p)}  {k}", "value": p, "label": k} for k, p in ranked]
        draw_bars(bars, "Probabilities", color_of(card), 1)
    sure = f"about {100 * card['uncertainty']['coverage']:.0f} %"
    st.markdown(f"Likely **{plain(likely)}**: such answers held the truth in {sure} of rows.")
    for example in card["examples"]:
        if example["features"] == row:
            truth = f"{card['target']} was {spell(example['target'])}"
            st.success(plain(f"This is a real row of the table: its {truth}."))


def draw_why(card: dict, row: dict, answer: dict) -> None:
    """Draw how much each value adds, from the average over the table to this answer."""
    st.header("Why this answer")
    why, problem = call("/explain", row)
    if problem:
        st.info(plain(problem))
        return
    what, factor, scale, unit = f"probability of {why['prediction']}", 100, 10, " %"
    start, end = percent(why["average"]), percent(why["value"])
    if card["task"] == "regression":
        low, high = answer["interval"]
        what, factor, scale, unit = "answer", 1, high - low, ""
        start, end = write(why["average"], scale), write(why["value"], scale)
    shares = {f"{n} = {spell(row[n]) or 'unknown'}": why["shares"][n] for n in why["shares"]}
    names = list(shares)
    if len(names) > BARS:
        others = names[BARS - 1 :]
        shares[f"the other {len(others)}"] = sum(shares.pop(name) for name in others)
    bars = []
    for name, share in shares.items():
        words = f"{write(factor * share, scale, '+')}{unit}  {name}"
        bars.append({"name": words, "value": share, "label": why["prediction"]})
    st.text(f"From {start}, the average {what} for up to 100 rows of the table, to {end}:")
    draw_bars(bars, "Shares", color_of(card))
    st.text("These shares tell how the model decides; they are no causes.")


# what if one value were different


def place_of(feature: dict, value: Any) -> Any:
    """Return where a value stands on an axis: a date at its milliseconds since 1970."""
    if feature["type"] == "date":
        return 1000 * pd.to_datetime(datetime.fromisoformat(value), utc=True).timestamp()
    return value if feature["type"] == "number" else spell(value)


def values_to_try(feature: dict, here: Any) -> tuple[list, dict]:
    """Return the values to ask for, and at which places the table has how many rows."""
    if "minimum" not in feature:
        often = dict(zip(feature.get("choices", [False, True]), feature["counts"]))
        kept = [*sorted(often, key=often.get)[-WHAT_IF_CHOICES:], here]
        values = [choice for choice in often if choice in kept]
        return values, {spell(choice): often[choice] for choice in values}
    ends = [place_of(feature, feature["minimum"]), place_of(feature, feature["maximum"])]
    edges = np.linspace(*ends, len(feature["counts"]) + 1).tolist()
    seen = dict(zip(edges, [*feature["counts"], 0]))
    if here is not None:
        ends.append(place_of(feature, here))
    # also the value itself, as a float: an integer may be too large for numpy
    ends = np.array(ends, float)
    values = np.append(np.linspace(ends.min(), ends.max(), WHAT_IF_POINTS + 1), ends[2:])
    if feature["type"] == "date":
        unit, day = "D" if is_day(feature) else "s", 86_400_000
        if unit == "s" and np.ptp(ends) > WHAT_IF_POINTS * day:
            # at one time of day: several would be a zigzag
            values = ends[-1] + ((values - ends[-1]) / day).round() * day
        values = values.astype("datetime64[ms]").astype(f"datetime64[{unit}]").astype(str)
    elif feature["integer"]:
        values = values.round()
    return np.unique(values).tolist(), seen


@st.fragment
def draw_what_if(card: dict, row: dict) -> None:
    """Draw how the answer changes with one feature, over a faint histogram of the table."""
    st.header("What if one value were different?")
    name = st.selectbox("Vary", list(card["importance"]), 0, key="page:what-if")
    now, problem = call("/model")
    if not problem and now["sha256"] != card["sha256"]:
        st.rerun()  # all of the page: only this part of it runs when a name is chosen
    feature = next(feature for feature in card["features"] if feature["name"] == name)
    values, seen = values_to_try(feature, row[name])
    columns = {other: [value] * len(values) for other, value in row.items()} | {name: values}
    answer, problem = call("/predict/batch", columns)
    if problem:
        st.error(plain(problem))
        return
    lines = answer.get("probabilities", {card["target"]: answer["prediction"]})
    places, points = [place_of(feature, value) for value in values], []
    for label in sorted(lines, key=lambda label: -max(lines[label]))[:BARS]:
        for place, value in zip(places, lines[label]):
            points.append({"at": place, "value": value, "label": label})
    dashed = [] if row[name] is None else [{"at": place_of(feature, row[name])}]
    seen = [{"at": place, "value": n} for place, n in seen.items()]
    ends = [0, 1]
    if card["task"] == "regression":
        ends = [*answer["prediction"], *np.ravel(answer["interval"]).tolist()]
    draw_layers(card, feature, [seen, points, dashed], [min(ends), max(ends)])
    words = "Dashed: the value in the form. " if dashed else ""
    st.text(f"{words}Gray: where the table has its rows.")


def draw_layers(card: dict, feature: dict, data: list[list[dict]], ends: list) -> None:
    """Draw what the table has, the answers, and where the form is. A number or a date goes along
    x; a category down the page, where each choice has a line to be read on. The answers' axis has
    room for their intervals: what changes less than that is seen to change little."""
    labels = list(dict.fromkeys(point["label"] for point in data[1]))
    at = {"field": "at", "title": feature["name"], "sort": None}
    value = {"field": "value", "type": "quantitative", "title": card["target"]}
    value |= {"axis": {"format": "~r"}, "scale": {"domain": ends}}
    if card["task"] == "classification":
        value |= {"title": "probability", "axis": {"format": "%"}}
    along, across, height = "x", "y", 240 + 20 * len(labels)
    area, mark = {"type": "area", "interpolate": "step-after"}, {"type": "line"}
    if feature["type"] == "date":
        at |= {"type": "temporal", "scale": {"type": "utc"}, "axis": {"format": "%Y-%m-%d"}}
    elif feature["type"] == "number":
        at |= {"type": "quantitative", "scale": {"zero": False, "nice": False}}
        at["axis"] = {"format": "~r", "tickMinStep": int(feature["integer"])}
    else:
        along, across, height = "y", "x", {"step": 24}
        area, mark = {"type": "bar"}, {"type": "circle", "size": 90, "opacity": 1}
        at |= {"type": "nominal", "axis": {"labelLimit": 180, "labelOverlap": False}}
    legend = {"values": labels, "orient": "top", "title": None, "columns": 1}
    legend["labelLimit"] = {"expr": "width"}
    rows = {"field": "value", "type": "quantitative", "axis": None}
    rule = {"type": "rule", "strokeDash": [4, 4], "color": "gray"}
    layers = [
        {"mark": area | {"color": "gray", "opacity": 0.2}, "encoding": {along: at, across: rows}},
        {"mark": mark, "encoding": {along: at, across: value, "color": color_of(card, legend)}},
        {"mark": rule, "encoding": {along: at}},
    ]
    for layer, values in zip(layers, data):
        layer["data"] = {"values": values}
    spec = {"height": height, "resolve": {"scale": {across: "independent"}}, "layer": layers}
    draw_chart(spec, f"How the answer changes with {feature['name']}")


# many rows


@st.cache_resource
def one_file() -> threading.Lock:
    """Return what lets one visitor's file be predicted at a time: several would fill the memory."""
    return threading.Lock()


def draw_many_rows(card: dict) -> None:
    st.text(
        "A CSV file with a column for each feature, written as in the table, up to 100,000 rows "
        f"and {MAX_FILE_MB} MB. Other columns stay as they are. The next file replaces the last."
    )
    rows = pd.DataFrame([example["features"] for example in card["examples"]])
    comma = {"sep": ";", "decimal": ","} if card["decimal"] == "," else {}
    template = rows.to_csv(index=False, **comma).encode("utf-8-sig")
    st.download_button("Download a template", template, "template.csv", on_click="ignore")
    file = st.file_uploader("Your file", "csv", max_upload_size=MAX_FILE_MB, key="page:file")
    if file is not None and file.file_id != state["page:result"][0]:
        with one_file():
            content, problem = call("/predict/csv", file.getvalue())
            if problem == GONE:  # the upload is kept, and with it what came of the one before
                st.error(problem)
                st.button("Try again", key="page:retry-file")
            else:
                # note: Streamlit would keep the upload until some session ends
                run = get_script_run_ctx()
                run.uploaded_file_mgr.remove_file(run.session_id, file.file_id)
                file.close()
                result = None if problem else read_result(content, card)
                state["page:result"] = file.file_id, problem, result
    _, problem, result = state["page:result"]
    if problem:
        st.error(plain(problem))
    elif result:
        draw_result(result, card)


def read_result(content: bytes, card: dict) -> dict:
    """Return what is shown of the API's CSV file, and all of it packed."""
    header_end = re.search(rb"warnings( \(model\))?(.)problem( \(model\))?\n", content)
    separator = header_end[2].decode()
    how = {"sep": separator, "lineterminator": "\n", "dtype": str, "keep_default_na": False}
    first = pd.read_csv(io.BytesIO(content), nrows=SHOWN_ROWS, **how)
    # what the API added, and the numbers in it
    added = list(first)[-5:]
    numbers = added[:3]
    if card["task"] == "classification":
        added = list(first)[-len(card["classes"]) - 4 :]
        numbers = added[1:-3]
    for name in numbers:
        first[name] = pd.to_numeric(first[name].str.replace(card["decimal"], "."))
    # of all rows only two columns: a large file would fill the memory
    ends = pd.read_csv(io.BytesIO(content), usecols=[added[0], added[-1]], **how)
    ends.columns, ends.index = ["prediction", "problem"], ends.index + 1
    problems = ends["problem"][ends["problem"] != ""]
    predictions = ends["prediction"].drop(problems.index)
    if card["task"] == "regression":
        predictions = pd.to_numeric(predictions.str.replace(card["decimal"], "."))
    return {
        "rows": len(ends),
        "predictions": predictions,
        "first": first[[*added, *first.columns.drop(added)]],
        "problems": problems.head(SHOWN_ROWS).rename_axis("row").reset_index(),
        # gzip unpacks two to one: the mark without which Excel takes ü for Ã¼, and the file
        "packed": gzip.compress(codecs.BOM_UTF8) + gzip.compress(content, 1),
    }


def draw_result(result: dict, card: dict) -> None:
    """Draw the summary, the first rows, and what can't be predicted and why."""
    predictions, rows = result["predictions"], result["rows"]
    good = len(predictions)
    st.header(f"{good:,} of {rows:,} rows predicted")
    if good and card["task"] == "classification":
        bars = []
        for label, n in predictions.value_counts().head(BARS).items():
            words = f"{100 * n / good:.1f} %  {label}: {n:,}"
            bars.append({"name": words, "value": n, "label": label})
        draw_bars(bars, "Predictions", color_of(card), good)
    elif good:
        ends = predictions.mean(), predictions.min(), predictions.max()
        mean, low, high = (write(value, ends[2] - ends[1]) for value in ends)
        st.text(f"{card['target']}: {mean} on average, from {low} to {high}.")
    if good < rows:
        words = f"{rows - good:,} can't be predicted, as listed below. The first is"
        row, problem = result["problems"].iloc[0]
        st.warning(plain(f"{words} row {row}: {problem}."))
    if rows > SHOWN_ROWS:
        st.text(f"Only the first {SHOWN_ROWS:,} rows are shown; the download has all.")
    st.dataframe(result["first"], hide_index=True, placeholder="")
    unpack = partial(gzip.decompress, result["packed"])
    st.download_button("Download the result", unpack, "predictions.csv", on_click="ignore")
    if good < rows:
        st.dataframe(result["problems"], hide_index=True)


# what the model is


def draw_about(card: dict) -> None:
    dummy = "most frequent label" if card["task"] == "classification" else "mean"
    st.text(
        f"It predicts {card['target']} by {card['estimator']}, trained on {card['rows']:,} rows. "
        f"How good it is was measured on {card['measured']}, with models like the one that is "
        "served, on rows that these had not seen."
    )
    scores = {"model": card["metrics"], f"always the {dummy}": card["baseline"]}
    st.table(pd.DataFrame(scores).map(write).rename(lambda key: key.replace("_", " ")))
    for note in card["notes"]:
        st.warning(plain(note))  # some are questions
    st.header("What matters most")
    gains = {name: max(0.0, gain) for name, gain in card["importance"].items()}
    total, bars = sum(gains.values()) or 1, []
    for name, gain in list(gains.items())[:BARS]:
        bars.append({"name": f"{100 * gain / total:.0f} %  {name}", "value": gain})
    draw_bars(bars, "Importance", {"value": "#767676"})
    st.header("What it was trained on")
    columns = ["name", "type", "nullable", "minimum", "maximum", "choices"]
    features = pd.DataFrame(card["features"], columns=columns)
    features[columns[3:5]] = features[columns[3:5]].map(spell, "ignore")
    st.dataframe(features, hide_index=True, placeholder="")
    for entry in card["dropped"]:
        what = [f"{key} {value}" for key, value in entry.items() if key != "reason"]
        st.text(f"left out: {', '.join(what)} ({entry['reason']})")
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    st.text(f"Trained with {versions}. SHA-256 of the file: {card['sha256']}")


def draw_programmers(card: dict) -> None:
    row = read_row(card)
    body = json.dumps(row or card["examples"][0]["features"], ensure_ascii=False)
    url = f"{API_URL.rstrip('/')}/predict"
    if PUBLIC_API:
        url = urljoin(st.context.url, "/api/predict")
        st.markdown(f"The API's documentation: {urljoin(st.context.url, '/api/docs')}")
    else:
        st.text("The API answers on the machine or in the container where it runs.")
    curl = f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    st.code(curl, None, wrap_lines=True)
    if row:
        answer, problem = call("/predict", row)
        words = problem or json.dumps(answer, indent=2, ensure_ascii=False)
        st.code(words, None, wrap_lines=True)


# the server: it runs this file anew for each click of a visitor, and answers for the API if that
# is to be public; else there is nothing below /api


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
    if PUBLIC_API:
        from main_api import app as api
    app = st.App(
        __file__,
        routes=[Route("/api", api), Mount("/api", api)],
        middleware=[Middleware(LimitUploads)],
        lifespan=lambda _: api.router.lifespan_context(api),
    )

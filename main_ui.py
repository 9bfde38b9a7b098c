"""The page: asks the API what the model is, draws a form from its card, and shows the answers.

streamlit run main_ui.py --server.port 7860        # while main_api.py runs
"""

import csv
import gzip
import io
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pandas as pd
import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

API_URL = os.environ.get("API_URL", f"http://127.0.0.1:{os.environ.get('API_PORT', '8001')}")
TIMEOUT_SECONDS = 10  # until the next bytes come
FORM_COLUMNS = 3
UNFOLDED = 21  # features in sight; of clearly more, the less important ones are folded away
BARS = 10  # in a chart; nobody compares more
WHAT_IF_POINTS = 150
WHAT_IF_CHOICES = 30  # the most frequent ones
WEEK = 7 * 86_400_000  # in milliseconds, as charts count
MAX_FILE_MB = 50
SHOWN_ROWS = 1_000  # of a file on the screen; the download has all

# what a person types as a number; a comma may stand for two things, so it is none
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
# reasons of the API that can be said better beside a form
REASONS = {
    "float_type": "is no number: write it like 13.5",
    "finite_number": "is too large",
    "less_than_equal": "is too large",
    "greater_than_equal": "is too far below zero",
    "value_error": "is no date: write it like 2024-12-31 or 2024-12-31T23:59",
}
# what is kept of one visitor, beside what the fields hold (their keys are "_" and the name)
STATE = {
    "page:card": None,  # the last one seen, for when the API is gone
    "page:address": None,  # of which model and which features the form was filled from
    "page:wrong": "",  # what the address asks for and can't be
    "page:row": None,  # what was asked last, feature to value
    "page:answers": {},  # the API's answers to that row, by path
    "page:file-id": None,  # the last upload that was predicted
    "page:result": None,  # what came of it: see read_result()
}
state = st.session_state


def main() -> None:
    """Draw the page from top to bottom; Streamlit runs it again after each click."""
    st.set_page_config(layout="wide")
    for key, value in STATE.items():
        state.setdefault(key, value)
    card = get_card()
    st.set_page_config(card["title"])
    st.title(plain(card["title"]))
    st.markdown(plain(card["description"]))
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


def call(
    path: str, content: bytes | None, media_type: str, read: Callable = json.load
) -> tuple[int, Any]:
    """Return 200 and what is read of the answer, 422 and its details, or 0 and a sentence."""
    request = Request(API_URL.rstrip("/") + path, content, {"Content-Type": media_type})
    opener = build_opener(ProxyHandler({}))  # a proxy is for the world, not for this machine
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status, read(response)
    except HTTPError as error:
        if error.code == 422:
            return error.code, json.load(error)["detail"]
        problem = "is busy" if error.code == 503 else f"answered with error {error.code}"
    except TimeoutError:
        problem = f"took longer than {TIMEOUT_SECONDS} seconds"
    except (OSError, HTTPException, ValueError):
        problem = "is not there: it may still be starting"
    return 0, f"The model {problem}. Please try again in a moment."


def get_card() -> dict:
    """Return the model's card; without an API the one that was seen last, or stop."""
    status, card = call("/model", None, "application/json")
    if status == 200:
        state["page:card"] = card
    else:
        st.error(card)
        st.button("Try again", key="page:retry")
    if state["page:card"] is None:
        st.stop()
    return state["page:card"]


def ask(path: str) -> tuple[int, Any]:
    """Return the API's answer to the row that was asked; each row is asked once."""
    if path in state["page:answers"]:
        return state["page:answers"][path]
    status, answer = call(path, json.dumps(state["page:row"]).encode(), "application/json")
    if status:
        state["page:answers"][path] = status, answer
    return status, answer


# words, numbers and charts as people read them


def plain(text: str) -> str:
    """Return a text from the table so that Markdown shows it as it is."""
    text = re.sub(r"([\\`*_{}\[\]()#+\-.!|~$:<>&=])", r"\\\1", text)
    # escaped or not, Streamlit makes icons of :name:, signs of ->, links of addresses: an
    # invisible word joiner keeps their parts from being one
    text = re.sub(r"(?<=[-<>~])(?=\\[-<>=])|(?<=@)|(?<=ww)(?=w)", "\u2060", text)
    return re.sub(r"(?<=:)(?=[^\d\s])|(?<=:)(?<!\d\\:)(?=\d)", "\u2060", text)  # not in 23:59


def write(value: Any, scale: float = 0.0) -> str:
    """Return a value as the page writes it; of a number three digits of scale, if there is one."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "unknown", True: "yes", False: "no"}[value]
    text = f"{value:,.10g}"
    if scale > 0:
        decimals = max(0, 2 - math.floor(math.log10(scale)))
        text = f"{value:,.{min(decimals, 12)}f}"
    return text if abs(value) >= 10_000 else text.replace(",", "")  # a year has no comma


def percent(share: float) -> str:
    """Return a share, never as a certainty."""
    if share > 0.999:
        return "over 99.9 %"
    return "under 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def count(number: int, word: str) -> str:
    """Return "1 row" or "1,234 rows"."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def color_of(card: dict, shown: list[str] | None = None) -> dict:
    """Return Vega's encoding of a class as its colour, the same one in all charts."""
    if card["task"] == "regression":
        return {"value": "#1f77b4"}
    legend: dict[str, Any] | None = None
    if shown:
        is_wide = sum(map(len, shown)) > 30  # too wide for a phone: one below the other
        legend = {"values": shown, "orient": "top", "title": None, "columns": int(is_wide)}
    return {"field": "label", "scale": {"domain": card["classes"]}, "legend": legend}


def draw_chart(spec: dict, about: str) -> None:
    ink = "#c9cbd1" if st.context.theme.type == "dark" else "#45474f"  # 7 : 1; Streamlit's has 3.7
    of_text = {"labelColor": ink, "titleColor": ink}
    st.vega_lite_chart(spec=spec | {"config": {"axis": of_text, "legend": of_text}}, alt=about)


def draw_bars(bars: list[dict], about: str, ends: list[float], color: dict) -> None:
    """Draw the "value" of each as a bar between the ends, its "name" above it."""
    # the axis' labels stand inside the chart: so they have all its width, on a phone too
    axis = {"labelAlign": "left", "labelBaseline": "bottom", "labelOffset": -4, "labelPadding": 0}
    axis |= {"labelLimit": 1000, "labelFontSize": 14, "ticks": False, "domain": False}
    axis |= {"minExtent": 0, "maxExtent": 0, "title": None}
    bands = {"paddingInner": 0.75, "paddingOuter": 0.4}
    y = {"field": "name", "type": "nominal", "sort": None, "axis": axis, "scale": bands}
    x = {"field": "value", "type": "quantitative", "axis": None, "scale": {"domain": ends}}
    encoding = {"y": y, "x": x, "color": color}
    mark = {"type": "bar", "yOffset": 8}
    spec = {"data": {"values": bars}, "mark": mark, "encoding": encoding, "height": {"step": 38}}
    draw_chart(spec, f"{about}: {', '.join(bar['name'] for bar in bars)}")


# the form, and the address: it holds what differs from the defaults


def spell(value: Any) -> str:
    """Return a value as the address, the fields and a file spell it."""
    if value is None:
        return ""
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return text.lower() if isinstance(value, bool) else text


def default_of(feature: dict) -> str:
    return "" if feature["nullable"] else spell(feature["default"])


def is_day(feature: dict) -> bool:
    """Return whether it is a date without a time of day."""
    return feature["type"] == "date" and "T" not in feature["minimum"] + feature["maximum"]


def fill(card: dict, texts: dict[str, str]) -> None:
    """Put texts into the fields, the defaults where there is none; note what they can't be."""
    state["page:wrong"] = ""
    for feature in card["features"]:
        name = feature["name"]
        value: Any = texts.get(name, default_of(feature))
        try:
            if feature["type"] in ("category", "boolean") and value:
                choices = feature.get("choices", [False, True])
                value = choices[[spell(choice) for choice in choices].index(value)]
            elif is_day(feature) and value:
                value = date.fromisoformat(value)
        except ValueError:
            state["page:wrong"] += f"The link has '{value}' for {name}, which can't be. "
            value = None
        state[f"_{name}"] = None if value == "" else value


def read_form(card: dict) -> dict[str, Any]:
    """Return the row to send: what is no number goes as a text, for the API to refuse."""
    row = {}
    for feature in card["features"]:
        value = state[f"_{feature['name']}"]
        if isinstance(value, date):
            value = value.isoformat()
        elif feature["type"] in ("number", "date") and value is not None:
            value = value.strip() or None
        if feature["type"] == "number" and NUMBER.fullmatch(value or ""):
            value = float(value)
            value = int(value) if value.is_integer() and abs(value) < 2**53 else value
        row[feature["name"]] = value
    return row


def follow_address(card: dict) -> None:
    """Fill the form from the address if that is new: a link, Back, Forward, another model."""
    names = [feature["name"] for feature in card["features"]]
    texts = {n: st.query_params[f"_{n}"] for n in names if f"_{n}" in st.query_params}
    if state["page:address"] != (card["sha256"], texts):
        fill(card, texts)
        row = read_form(card) if texts and not state["page:wrong"] else None
        state["page:address"] = card["sha256"], texts
        state["page:row"], state["page:answers"] = row, {}


def press(card: dict) -> None:
    """Ask for what the form holds: one step in the browser's history, one address."""
    row, texts = read_form(card), {}
    for feature in card["features"]:
        text = spell(row[feature["name"]])
        if text != default_of(feature):
            texts[feature["name"]] = text
    if not texts:  # all are defaults: one of them makes it a link to an answer
        texts[feature["name"]] = text
    st.query_params.from_dict({f"_{name}": text for name, text in texts.items()})
    state["page:address"], state["page:wrong"] = (card["sha256"], texts), ""
    state["page:row"], state["page:answers"] = row, {}


def press_example(card: dict) -> None:
    chosen, state["page:try"] = state["page:try"], None  # none stays marked beside other values
    if chosen is not None:
        example = card["examples"][chosen]["features"]
        fill(card, {name: spell(value) for name, value in example.items()})
        press(card)


# drawing the form


def draw_field(feature: dict) -> None:
    """Draw the field of one feature; fill() says what it holds."""
    label, kind = plain(feature["name"]), feature["type"]
    kept = {"key": f"_{feature['name']}", "persist_state": "session"}
    if kind in ("category", "boolean"):
        choices = feature.get("choices", [False, True])
        st.selectbox(label, choices, None, write, placeholder="unknown", **kept)
        return
    seen = plain(f"{write(feature['minimum'])} to {write(feature['maximum'])} in training")
    if is_day(feature):
        st.date_input(label, None, date.min, date.max, help=seen, format="YYYY-MM-DD", **kept)
    else:
        # a text: number inputs round what they show, and swallow a comma
        st.text_input(label, None, help=seen, placeholder="unknown", **kept)


def draw_form(card: dict) -> None:
    """Draw the examples and the fields, of many features the important ones first."""
    ranked, examples = list(card["importance"]), []
    for example in card["examples"]:
        values = [f"{name} = {write(example['features'][name])}" for name in ranked[:3]]
        examples.append(plain(f"{write(example['target'])}: {', '.join(values)}"))
    label, places = "Try a row of the table", range(len(examples))
    choose = {"on_change": press_example, "args": [card], "wrap": True, "key": "page:try"}
    st.pills(label, places, format_func=examples.__getitem__, **choose)
    features = {feature["name"]: feature for feature in card["features"]}
    parts = [(st.container(), list(features))]
    if len(features) > UNFOLDED + FORM_COLUMNS:
        more = st.expander(f"{len(features) - UNFOLDED} more, which matter less")
        parts = [(parts[0][0], ranked[:UNFOLDED]), (more, ranked[UNFOLDED:])]
    for box, names in parts:
        for start in range(0, len(names), FORM_COLUMNS):
            for column, name in zip(box.columns(FORM_COLUMNS), names[start:]):
                with column:
                    draw_field(features[name])


# the answer to one row


def draw_one_row(card: dict) -> None:
    left, right = st.columns([3, 2], gap="large")
    with left:
        draw_form(card)
    status, kind, words = 0, st.info, "Fill in what you know and press Predict."
    if state["page:wrong"]:
        kind, words = st.error, plain(state["page:wrong"])
    elif state["page:row"] is not None and state["page:row"] != read_form(card):
        words = "The form has changed: press Predict for its answer."
    elif state["page:row"] is not None:
        status, answer = ask("/predict")
        kind, words = sum_up(status, answer)
    # always in sight, on a phone too, and read out by a screen reader, as alerts are
    with st.bottom:
        button, sentence = st.columns([1, 4], vertical_alignment="center", wrap=False)
        button.button("Predict", type="primary", key="page:predict", on_click=press, args=[card])
        with sentence:
            kind(words)
    if status == 200:
        with right:
            draw_answer(answer, card)
            draw_why(card)
        draw_what_if(card)


def sum_up(status: int, answer: Any) -> tuple[Callable, str]:
    """Return the answer in a sentence, and the kind of alert to draw it with."""
    if status == 0:
        return st.error, answer
    if status == 422:
        return st.error, plain(" ".join(say_reason(entry) for entry in answer))
    words, kind = say_prediction(answer), st.success
    if "probabilities" in answer:
        words += f", {percent(answer['probabilities'][answer['prediction']])} probable"
    if answer["warnings"]:
        words, kind = f"Not to be trusted, as {answer['warnings'][0]}: {words}", st.warning
    return kind, plain(words)


def say_reason(entry: dict) -> str:
    """Return why a row can't be predicted."""
    name = entry["loc"][-1]
    value = state.get(f"_{name}", name)
    if value is None or not str(value).strip():
        return f"{name} is missing."
    if entry["type"] in REASONS:
        return f"{name} '{value}' {REASONS[entry['type']]}."
    return f"{name}: {entry['msg']}." if len(entry["loc"]) > 1 else f"{entry['msg']}."


def say_prediction(answer: dict) -> str:
    if "probabilities" in answer:
        return answer["prediction"]
    low, high = answer["interval"]
    low, value, high = (write(v, high - low) for v in (low, answer["prediction"], high))
    return f"{value}, likely {low} to {high}"


def draw_answer(answer: dict, card: dict) -> None:
    for sentence in answer["warnings"]:
        st.warning(plain(f"{sentence}. How sure the model is there says nothing."))
    sure = f"{100 * card['uncertainty']['coverage']:.0f} %"
    words = say_prediction(answer)
    if card["task"] == "regression":
        value, _, likely = words.partition(", likely ")
        rule = f"such a range held the truth in about {sure} of rows with a prediction of this size"
    else:
        value, likely = words, " or ".join(answer["likely"])
        rule = f"such a list held the true label in about {sure} of the rows of each class"
    st.metric(plain(card["target"]), plain(value))
    if card["task"] == "classification":
        ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:BARS]
        bars = [{"name": f"{k}: {percent(p)}", "value": p, "label": k} for k, p in ranked]
        draw_bars(bars, "Probabilities", [0, 1], color_of(card))
    st.markdown(f"Likely **{plain(likely)}**: {rule}.")
    for example in card["examples"]:
        if example["features"] == state["page:row"]:
            truth = f"{card['target']} was {write(example['target'])}"
            st.success(plain(f"This is a real row of the table: its {truth}."))


def draw_why(card: dict) -> None:
    """Draw how much each value adds, from the average over the table to this answer."""
    st.header("Why this answer")
    status, why = ask("/explain")
    if status != 200:
        st.info(why if status == 0 else "There is no explanation for these values.")
        return
    low, high = ask("/predict")[1].get("interval", [0, 1])
    row = state["page:row"]

    def say(value: float, sign: str = "") -> str:
        if card["task"] == "classification":
            return f"{100 * value:{sign}.1f} %"
        return ("+" if sign and value > 0 else "") + write(value, high - low)

    shares = [(f"{name} = {write(row[name])}", share) for name, share in why["shares"].items()]
    if len(shares) > BARS:
        others = sum(share for _, share in shares[BARS - 1 :])
        shares[BARS - 1 :] = [(f"the other {len(shares) - BARS + 1}", others)]
    bars = [
        {"name": f"{name}: {say(share, '+')}", "value": share, "label": why["prediction"]}
        for name, share in shares
    ]
    what = "answer" if card["task"] == "regression" else f"probability of {why['prediction']}"
    start, end = say(why["average"]), say(why["value"])
    st.markdown(
        plain(f"From {start}, the average {what} for up to 100 rows of the table, to {end}:")
    )
    ends = [min(0, *(share for _, share in shares)), max(0, *(share for _, share in shares))]
    draw_bars(bars, "Shares", ends, color_of(card))
    st.markdown("These shares tell how the model decides; they are no causes.")


# what if one value were different


def place_of(value: Any) -> Any:
    """Return where a value stands on an axis: a date at its milliseconds since 1970."""
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    return 1000 * (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def values_to_try(feature: dict, here: Any) -> tuple[list, list[dict]]:
    """Return values to ask for, and a histogram of those in the table."""
    values, seen, counts = [], [], feature["counts"]
    if feature["type"] in ("category", "boolean"):
        least = sorted(counts)[-WHAT_IF_CHOICES:][0]
        for choice, n in zip(feature.get("choices", [False, True]), counts):
            if n >= least or choice == here:
                values.append(choice)
                seen.append({"at": write(choice), "value": n})
        return values, seen

    low, high = place_of(feature["minimum"]), place_of(feature["maximum"])
    for i, n in enumerate([*counts, 0]):
        seen.append({"at": low + (high - low) * i / len(counts), "value": n})
    if here is not None:
        low, high = min(low, place_of(here)), max(high, place_of(here))
    step = (high - low) / WHAT_IF_POINTS
    if feature["type"] == "date" and step > WEEK / 7:
        step = WEEK * math.ceil(step / WEEK)  # else weekdays would look like leaps in time
    place = low
    while place <= high + step / 1e6 and len(values) <= WHAT_IF_POINTS:
        value: Any = min(place, high)
        if feature["type"] == "date":
            moment = datetime(1970, 1, 1) + timedelta(seconds=round(place / 1000))
            value = (moment.date() if is_day(feature) else moment).isoformat()
        elif feature["integer"]:
            value = round(place)
        values.append(value)
        place += step
    return list(dict.fromkeys(values)), seen


@st.fragment
def draw_what_if(card: dict) -> None:
    """Draw how the answer changes with one feature, over a faint histogram of the table."""
    st.header("What if one value were different?")
    name = st.selectbox("Vary", list(card["importance"]), 0, write, key="page:what-if")
    feature = next(feature for feature in card["features"] if feature["name"] == name)
    row, here = state["page:row"], state["page:row"][name]
    values, seen = values_to_try(feature, here)
    columns = {other: [value] * len(values) for other, value in row.items()} | {name: values}
    content = json.dumps(columns).encode()
    status, answer = call("/predict/batch", content, "application/json")
    if status != 200:
        st.error(answer if status == 0 else plain(answer[0]["msg"]))
        return
    lines = {card["target"]: answer["prediction"]}
    if card["task"] == "classification":
        largest = sorted(answer["probabilities"].items(), key=lambda item: -max(item[1]))
        lines = dict(largest[:BARS])
    place = write if feature["type"] in ("category", "boolean") else place_of
    points = []
    for label, line in lines.items():
        for at, value in zip(values, line):
            points.append({"at": place(at), "value": value, "label": label})
    dashed = [] if here is None else [{"at": place(here)}]
    draw_layers(feature, [seen, points, dashed], color_of(card, list(lines)), card)
    words = "" if here is None else f"Dashed: {name} is {write(here)}. "
    st.markdown(plain(f"{words}Gray: where the table has its rows."))


def axis_of(values: list[float]) -> dict:
    """Return Vega's axis for numbers, which it would write 1,990 and 1.5k otherwise."""
    largest = max(abs(value) for value in values)
    return {"axis": {"format": "~r" if largest < 10_000 else ",~r"}, "scale": {"zero": False}}


def draw_layers(feature: dict, layers: list[list[dict]], color: dict, card: dict) -> None:
    """Draw what was seen, the answers, and where the form is. A number or a date goes along x; a
    category down the page, where each choice has a line to be read on."""
    seen, points, dashed = layers
    at: dict[str, Any] = {"field": "at", "title": feature["name"], "sort": None}
    value = {"field": "value", "type": "quantitative", "title": card["target"]}
    if card["task"] == "classification":
        value |= {"title": "probability", "axis": {"format": "%"}, "scale": {"domain": [0, 1]}}
    else:
        value |= axis_of([point["value"] for point in points])
    along, across, height = "x", "y", 300
    area, mark = {"type": "area", "interpolate": "step-after"}, {"type": "line"}
    if feature["type"] == "date":
        at |= {"type": "temporal", "scale": {"type": "utc"}, "axis": {"format": "%Y-%m-%d"}}
    elif feature["type"] == "number":
        at |= {"type": "quantitative"} | axis_of([point["at"] for point in points])
        at["axis"]["tickMinStep"] = int(feature["integer"])
        at["scale"]["nice"] = False
    else:
        along, across, height = "y", "x", {"step": 24}
        area, mark = {"type": "bar"}, {"type": "circle", "size": 90, "opacity": 1}
        at |= {"type": "nominal", "axis": {"labelLimit": 180, "labelOverlap": False}}
    faint = area | {"color": "gray", "opacity": 0.2}
    often = {"field": "value", "type": "quantitative", "axis": None}
    rule = {"type": "rule", "strokeDash": [4, 4], "color": "gray"}
    parts = [(seen, faint, {across: often}), (points, mark, {across: value, "color": color})]
    if dashed:
        parts.append((dashed, rule, {}))
    spec = {"height": height, "resolve": {"scale": {across: "independent"}}, "layer": []}
    for data, mark, encoding in parts:
        encoding[along] = at
        spec["layer"].append({"data": {"values": data}, "mark": mark, "encoding": encoding})
    draw_chart(spec, f"How the answer changes with {feature['name']}")


# many rows


def make_template(card: dict) -> str:
    """Return the examples as a CSV file that the model's reader reads."""
    text, decimal = io.StringIO(), card["decimal"]
    writer = csv.writer(text, delimiter=";" if decimal == "," else ",")
    writer.writerow(feature["name"] for feature in card["features"])
    for example in card["examples"]:
        cells = []
        for feature in card["features"]:
            cell = spell(example["features"][feature["name"]])
            cells.append(cell.replace(".", decimal) if feature["type"] == "number" else cell)
        writer.writerow(cells)
    return text.getvalue()


def write_answer(cells: list[str], card: dict) -> list[str]:
    """Return the cells that the API added to a row, the numbers as the page writes them."""
    if cells[-1]:  # a problem, and all else empty
        return cells
    first, end = (0, 3) if card["task"] == "regression" else (1, len(card["classes"]) + 1)
    values = [float(cell.replace(card["decimal"], ".")) for cell in cells[first:end]]
    if card["task"] == "regression":
        written = [write(value, values[2] - values[1]) for value in values]
    else:
        written = [percent(value) for value in values]
    return cells[:first] + written + cells[end:]


def read_result(response: Any, card: dict, expected: int) -> dict:
    """Return what is shown of an answer, and all of it packed; move a bar while it comes."""
    bar, packed = st.progress(0.0, "Predicting"), io.BytesIO()
    copy = gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1)

    def lines() -> Iterator[str]:
        for number, line in enumerate(response):
            copy.write(line)
            if number % 1000 == 0:
                bar.progress(min(1.0, number / expected), f"{number:,} rows of about {expected:,}")
            yield line.decode()

    stream, header, end = lines(), "", None
    while end is None:  # a column's name may have a line break
        header += next(stream)
        end = re.search(r"(.)problem( \(model\))?\n$", header)
    names = next(csv.reader(io.StringIO(header), delimiter=end[1]))
    added = 5 if card["task"] == "regression" else len(card["classes"]) + 4
    rows, problems, predictions = [], [], Counter()
    for number, cells in enumerate(csv.reader(stream, delimiter=end[1]), 1):
        if number <= SHOWN_ROWS:
            rows.append(write_answer(cells[-added:], card) + cells[:-added])
        if cells[-1]:
            problems.append((number, cells[-1]))
        else:
            predictions[cells[-added]] += 1
    copy.close()
    bar.empty()
    return {
        "problems": problems,  # row, sentence
        "predictions": predictions,  # how often which text
        "first": pd.DataFrame(rows, columns=names[-added:] + names[:-added]),
        "packed": packed.getvalue(),
    }


@st.fragment
def draw_many_rows(card: dict) -> None:
    st.markdown(
        "A CSV file with a column for each feature, written as in the table, up to 100,000 rows "
        f"and {MAX_FILE_MB} MB. Other columns stay as they are. The next file replaces the last."
    )
    template = {"file_name": "template.csv", "key": "page:template", "on_click": "ignore"}
    st.download_button("Download a template", make_template(card), **template)
    file = st.file_uploader("Your file", "csv", max_upload_size=MAX_FILE_MB, key="page:file")
    if file is not None and file.file_id != state["page:file-id"]:
        predict_file(file, card)
    if state["page:result"] is not None:
        status, result = state["page:result"]
        if status == 200:
            draw_result(result, card)
        else:
            st.error(plain(result[0]["msg"]))


def predict_file(file: Any, card: dict) -> None:
    """Send an upload to the API, keep what comes back, and let go of the upload."""
    content = file.getvalue()
    expected = max(1, content.count(b"\n"))
    status, result = call(
        "/predict/csv", content, "text/csv", lambda answer: read_result(answer, card, expected)
    )
    if status == 0:  # the upload is kept, and with it what came of the one before
        st.error(result)
        st.button("Try again", key="page:retry-file")
        return
    state["page:file-id"], state["page:result"] = file.file_id, (status, result)
    # note: Streamlit would keep the upload until some session ends
    run = get_script_run_ctx()
    run.uploaded_file_mgr.remove_file(run.session_id, file.file_id)


def draw_result(result: dict, card: dict) -> None:
    """Draw the summary, the first rows, and what can't be predicted and why."""
    problems, predictions = result["problems"], result["predictions"]
    good = predictions.total()
    rows = good + len(problems)
    st.header(f"{good:,} of {count(rows, 'row')} predicted")
    if card["task"] == "classification":
        bars = []
        for label, n in predictions.most_common(BARS):
            name = f"{label}: {count(n, 'row')}, {100 * n / good:.1f} %"
            bars.append({"name": name, "value": n, "label": label})
        draw_bars(bars, "Predictions", [0, good], color_of(card))
    elif predictions:
        values = [float(text.replace(card["decimal"], ".")) for text in predictions.elements()]
        low, high = min(values), max(values)
        low, mean, high = (write(v, high - low) for v in (low, sum(values) / good, high))
        st.markdown(plain(f"{card['target']}: {mean} on average, from {low} to {high}."))
    if problems:
        row, problem = problems[0]
        words = f"{count(len(problems), 'row')} can't be predicted"
        st.warning(plain(f"{words}: see below. The first is row {row}: {problem}."))
    if rows > SHOWN_ROWS:
        st.markdown(f"Only the first {SHOWN_ROWS:,} rows are shown; the download has all.")
    st.dataframe(result["first"], hide_index=True)
    download = {"file_name": "predictions.csv", "key": "page:result-csv", "on_click": "ignore"}
    st.download_button("Download the result", lambda: gzip.decompress(result["packed"]), **download)
    if problems:
        shown = pd.DataFrame(problems[:SHOWN_ROWS], columns=["row", "problem"])
        st.dataframe(shown, hide_index=True)


# what the model is


def draw_about(card: dict) -> None:
    score, base = card["metrics"], card["baseline"]
    st.markdown(
        f"It is a {card['estimator']} that predicts **{plain(card['target'])}** from "
        f"{count(len(card['features']), 'feature')}, trained on {count(card['rows'], 'row')}."
    )
    if card["task"] == "classification":
        right, guess = f"{100 * score['accuracy']:.0f}", f"{100 * base['accuracy']:.0f}"
        st.markdown(
            f"Of 100 rows it has not seen, it is right in about **{right}**; always naming the "
            f"most frequent label is right in {guess}."
        )
    else:
        error = score["mean_absolute_error"]
        guess = write(base["mean_absolute_error"], error)
        st.markdown(
            f"On rows it has not seen it is off by **{write(error, error)}** on average; always "
            f"naming the mean is off by {guess}."
        )
    for note in card["notes"]:
        st.warning(plain(f"{note}."))
    scores = pd.DataFrame({"model": score, "dummy": base}).map(
        lambda score: write(float(f"{score:.4g}"))
    )
    st.table(scores.rename(lambda key: key.replace("_", " ")))
    st.markdown(
        plain(f"Measured on {card['measured']}: with models like the one that is served, on rows ")
        + "that these had not seen. So are the ranges and lists that are called likely."
    )
    st.header("What matters most")
    gains = {name: max(0.0, gain) for name, gain in card["importance"].items()}
    total, bars = sum(gains.values()) or 1, []
    for name, gain in list(gains.items())[:BARS]:
        bars.append({"name": f"{name}: {100 * gain / total:.0f} %", "value": gain})
    draw_bars(bars, "Importance", [0, max(gains.values()) or 1], {"value": "#767676"})
    draw_data(card)


def draw_data(card: dict) -> None:
    """Draw what the model was trained on, and what was left out."""
    st.header("What it was trained on")
    table = []
    for f in card["features"]:
        values = ", ".join(f.get("choices", ["no", "yes"]))
        if "minimum" in f:
            values = f"{write(f['minimum'])} to {write(f['maximum'])}"
        table.append([f["name"], f["type"], values, write(f["nullable"])])
    columns = ["feature", "type", "values", "may be unknown"]
    st.dataframe(pd.DataFrame(table, columns=columns), hide_index=True)
    for entry in card["dropped"]:
        what = entry.get("column") or count(entry["rows"], "row")
        if "cells" in entry:
            what += f", {count(entry['cells'], 'cell')}"
        st.markdown(f"- left out: {plain(what)} ({plain(entry['reason'])})")
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    st.markdown(f"Trained with {versions}. SHA-256 of the file: {card['sha256']}")


def draw_programmers(card: dict) -> None:
    row = state["page:row"] or card["examples"][0]["features"]
    body, url = json.dumps(row, ensure_ascii=False), f"{API_URL.rstrip('/')}/predict"
    st.markdown("The API answers on the machine or in the container where it runs.")
    curl = f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    st.code(curl, None, wrap_lines=True)
    if state["page:row"] is not None:
        st.code(json.dumps(ask("/predict")[1], indent=2, ensure_ascii=False), None, wrap_lines=True)


main()

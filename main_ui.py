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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import altair as alt
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
API_PORT = os.environ.get("API_PORT") or ("" if PUBLIC_API else "8001")  # "": the page's own port
BASE_PATH = f"/{st.get_option('server.baseUrlPath').strip('/')}".rstrip("/")
UNFOLDED = 24  # features in sight; of more, the less important ones are folded away
BARS = 10  # in a chart; nobody compares more
CODES = 8  # whole numbers in so narrow a range are chosen from a list
WHAT_IF_POINTS, WHAT_IF_CHOICES = 150, 30
MAX_FILE_MB = 50
SHOWN_ROWS = 1_000  # of a file on the screen; the download has all
MAX_LINK = 4_000  # characters that all servers take
SCORES = {
    "log_loss": "how far the probabilities are from the truth: lower is better",
    "accuracy": "the share of rows that are answered right: higher is better",
    "balanced_accuracy": "the same, where each class counts alike: higher is better",
    "roc_auc": "how well the two classes are told apart, 0.5 by chance: higher is better",
    "root_mean_squared_error": "the usual error, where large ones count more: lower is better",
    "mean_absolute_error": "the mean error, in the unit of what is predicted: lower is better",
    "r2": "the share of the differences that is explained, 1 is all: higher is better",
}
state = (
    st.session_state
)  # of one visitor: each field under "_" and its name, the rest under "page:"


def main() -> None:
    """Draw the page from top to bottom; Streamlit runs it again whenever a field has changed."""
    card = get_card()
    st.set_page_config(card["title"], layout="wide")
    st.title(plain(card["title"]))
    st.text(card["description"])
    names = ["One row", "Many rows", "About the model"]
    one, many, about = st.tabs(names, key="tab", bind="query-params")
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
            draw_programmers(card, texts)


def draw_form(card: dict) -> dict[str, str]:
    """Draw the rows to start from and a field for each feature; return what the fields hold."""
    if is_no_better(card):
        st.warning(plain(card["notes"][0]))
    names, refill = start_names(card), {"on_click": fill, "args": [card]}
    kept = {"key": "row", "bind": "query-params", "on_change": fill, "args": [card]}
    st.pills("Start from a row of the table", names, default=names[0], required=True, **kept)
    ranked, start, texts = list(card["importance"]), start_row(card), {}
    shown = st.grid(3)
    less = st.expander("What matters less").grid(3) if ranked[UNFOLDED:] else None
    for feature in card["features"]:
        name = feature["name"]
        grid = shown if name in ranked[:UNFOLDED] else less
        is_long = len(max(choices_of(feature), key=len, default="")) > 22
        with grid.cell(column_span="all" if is_long else 1):
            texts[name] = draw_field(card, feature, field_value(card, feature, start[name]))
    st.button("Reset to the row of the table", key="page:reset", type="tertiary", **refill)
    if len(urlencode(texts)) > MAX_LINK:
        st.text("So much has been changed that the page's address may be too long for a link.")
    return texts


def draw_answer(card: dict, row: dict) -> None:
    """Draw the prediction, how sure it is, and what else is likely."""
    answer = call("/predict", row)
    value, sure = say(card, answer)
    target = card["target"]
    # always in sight, on a phone too, and read out by a screen reader, as alerts are
    kind = st.warning if answer["warnings"] else st.success
    with st.bottom:
        kind(f"**{plain(f'{target}: {value}')}**, {plain(sure)}. [Why?](#why)")
    st.metric(plain(target), plain(value))
    for sentence in answer["warnings"]:
        st.warning(plain(f"{sentence}. How sure the model is there says nothing."))
    if "probabilities" in answer:
        ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
        draw_bars(dict(ranked[:BARS]), partial(percent, card), "Probabilities", 1)
    st.text(say_likely(card, answer))
    for example in card["examples"]:
        if example["features"] == row:
            truth = f"{target} was {spell(card, example['target'])}"
            st.info(plain(f"This is a real row of the table: its {truth}."))


def draw_why(card: dict, row: dict) -> None:
    """Draw how much each value adds, from the average over the table to this answer."""
    st.header("Why this answer", anchor="why")
    with saying("why"):
        why = call("/explain", row)
        what, write_share = f"probability of {why['prediction']}", partial(points, card)
        start, end = percent(card, why["average"]), percent(card, why["value"])
        if card["task"] == "regression":
            scale = max(map(abs, why["shares"].values()))
            what, write_share = "answer", partial(write, card, scale=scale, sign="+")
            start, end = write(card, why["average"]), write(card, why["value"])
        st.text(f"From {start}, the average {what} for up to 100 rows of the table, to {end}:")
        shares = {f"{n} = {spell(card, row[n]) or GAP}": s for n, s in why["shares"].items()}
        draw_bars(sum_others(shares), write_share, "Shares")
        st.text("These shares tell how the model decides; they are no causes.")


@st.fragment
def draw_what_if(card: dict, row: dict) -> None:
    """Draw how the answer changes with one feature, and where the table has its rows."""
    st.header("What if one value were different?")
    name = st.selectbox("Vary", list(card["importance"]), key="page:vary", persist_state="session")
    feature = next(feature for feature in card["features"] if feature["name"] == name)
    with saying("what if"):
        values = values_to_try(feature, row[name])
        columns = {other: [value] * len(values) for other, value in row.items()} | {name: values}
        answer = call("/predict/batch", columns)
        draw_answers(card, feature, values, answer, row[name])


def draw_many_rows(card: dict) -> None:
    """Draw where a file goes up, and what came of it."""
    st.text(
        "A CSV file with a column for each feature, written as in the table, up to 100,000 rows "
        f"and {MAX_FILE_MB} MB. Other columns stay as they are. With a column {card['target']} it "
        "is also told how many rows were answered right."
    )
    st.download_button("Download a template", template(card), "template.csv", on_click="ignore")
    kinds = ["csv", "tsv", "txt"]
    file = st.file_uploader("Your file", kinds, max_upload_size=MAX_FILE_MB, key="page:file")
    st.caption("A red sign beside its name: it is too large, or too many came at once; try again.")
    with saying("file"):
        result = predict_file(file, card)
        if result:
            draw_result(result, card)


def draw_about(card: dict) -> None:
    """Draw what the model is, how good it is, and what it goes by."""
    st.text(
        f"It predicts {card['target']} by {card['estimator']}, trained on {card['trained']} with "
        f"{card['rows']:,} rows. How good it is was measured on {card['measured']}, with models "
        "like the one that is served, on rows that these had not seen."
    )
    draw_scores(card)
    for note in card["notes"]:
        st.info(plain(note))
    draw_cutoffs(card)
    st.header("What matters most")
    gains = {name: max(0.0, gain) for name, gain in card["importance"].items()}
    total = sum(gains.values()) or 1
    shares = {name: gain / total for name, gain in gains.items()}
    draw_bars(dict(list(shares.items())[:BARS]), partial(percent, card), "Importance")
    st.header("What it was trained on")
    columns = ["name", "unit", "type", "nullable", "minimum", "maximum", "choices"]
    features = pd.DataFrame(card["features"], columns=columns)
    features[columns[4:6]] = features[columns[4:6]].map(partial(spell, card), "ignore")
    st.dataframe(features, hide_index=True, placeholder="")
    for entry in card["dropped"]:
        what = [f"{key} {value}" for key, value in entry.items() if key != "reason"]
        st.text(f"left out: {', '.join(what)} ({entry['reason']})")


# this is the whole page; what follows is the care that it takes


# asking the API

GONE = "The model is not there or too busy. Please try again in a moment."
TIMEOUT_SECONDS = 10  # until the next bytes come


class NoAnswer(Exception):
    """The API has no answer; the words, for people, say why."""


def api_url() -> str:
    """Return where the API is: as it is set, beside this program, or within it."""
    address = f"http://127.0.0.1:{API_PORT}"
    if not API_PORT:
        address = f"http://127.0.0.1:{st.get_option('server.port')}{BASE_PATH}/api"
    return (os.environ.get("API_URL") or address).rstrip("/")


def call(path: str, body: dict | bytes | None = None) -> Any:
    """Send a row or columns, or a CSV file; return the answer. Raises NoAnswer."""
    kind, content = "text/csv", body
    if not isinstance(body, bytes):
        kind, content = "application/json", body and json.dumps(body).encode()
    request = Request(api_url() + path, content, {"Content-Type": kind})
    opener = build_opener(ProxyHandler({}))  # a proxy is for the world, not for this machine
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return response.read() if kind == "text/csv" else json.load(response)
    except HTTPError as error:
        if error.code != 422:
            raise NoAnswer(GONE) from None
        reasons = []
        for entry in json.load(error)["detail"]:
            reasons.append(": ".join(map(str, [*entry["loc"][1:], entry["msg"]])))
        more = f" And {len(reasons) - 3} more." if len(reasons) > 3 else ""
        raise NoAnswer(f"{'. '.join(reasons[:3])}.{more}") from None
    except (OSError, HTTPException, ValueError):
        raise NoAnswer(GONE) from None


@contextmanager
def saying(what: str, place: Any = None) -> Iterator[None]:
    """Say on the page that the API has no answer, and why, there or in a place."""
    try:
        yield
    except NoAnswer as problem:
        with place or st.container():
            st.error(plain(str(problem)))
            if str(problem) == GONE:
                st.button("Try again", key=f"page:retry {what}")


def get_card() -> dict:
    """Return the model's card; without an API the one that was seen last, or stop."""
    seen = state.get("page:card")
    try:
        card = call("/model")
    except NoAnswer as problem:
        if seen is None:
            st.error(str(problem))
            st.button("Try again", key="page:retry")
            st.stop()
        return seen
    state["page:card"] = card
    if seen and card["sha256"] != seen["sha256"]:
        # what was filled in and answered belongs to another model
        state["row"] = start_names(card)[0]
        fill(card)
        state.pop("page:result", None)
        st.toast("The model has changed: please check the form.", duration="infinite")
    return card


# words and numbers as people read them, and as they write them

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
    decimals = 2 - math.floor(math.log10(scale or abs(value) / 10 or 1))
    if decimals > 12 and abs(value) < 1e-9:
        text = f"{value:{sign}.3g}"
    else:
        text = f"{value:{sign}z,.{min(max(decimals, 0), 12)}f}"  # z: no -0.0
    if abs(value) < 10_000:
        text = text.replace(",", "")  # a year has no comma
    swapped = {44: ".", 46: ","} if card["decimal"] == "," else {}
    return text.translate(swapped)


def percent(card: dict, share: float) -> str:
    """Return a share, never as a certainty."""
    return f"{100 * min(max(share, 0.001), 0.999):.1f} %".replace(".", card["decimal"])


def points(card: dict, share: float) -> str:
    return f"{100 * share:+.1f} points".replace(".", card["decimal"])


def read_number(card: dict, text: str) -> float:
    """Return what a person typed. Raises ValueError where it is no number, or might be two: a
    comma is a decimal mark too, but 1,234 may be a thousand where the table writes 1.234."""
    digits = re.sub(r"\s", "", text)
    other = "," if card["decimal"] == "." else "."
    if re.fullmatch(rf"[-+]?[1-9]\d{{0,2}}{re.escape(other)}\d{{3}}", digits):
        raise ValueError
    value = float(digits.replace(",", "."))
    return int(value) if value.is_integer() else value


def say(card: dict, answer: dict) -> tuple[str, str]:
    """Return the prediction in words, and how sure it is."""
    value = answer["prediction"]
    if "probabilities" in answer:
        return value, f"{percent(card, answer['probabilities'][value])} probable"
    low, high = answer["interval"]
    ends = f"{write(card, low, high - low)} to {write(card, high, high - low)}"
    return write(card, value, high - low), f"likely {ends}"


def say_likely(card: dict, answer: dict) -> str:
    """Return what is likely, and of which rows that is true; "" where a label stands alone."""
    coverage = f"{100 * card['uncertainty']['coverage']:.0f} %"
    if "interval" in answer:
        ends = say(card, answer)[1].capitalize()
        return f"{ends}: such a range held the truth for {coverage} of the rows of this size."
    likely, others = answer["likely"][:BARS], len(answer["likely"]) - BARS
    if len(likely) < 2:
        return ""
    if others > 0:
        likely.append(f"{others} more")
    return (
        f"Not clear: it may be {' or '.join(likely)}. Of the rows of each class {coverage} had "
        "their own label among the labels named in this way."
    )


def is_no_better(card: dict) -> bool:
    """Return whether the model is no better than always the same answer."""
    loss = next(iter(card["metrics"]))
    worse = card["metrics"][loss] > card["baseline"][loss]
    return bool(card["notes"]) and (card["estimator"] == "dummy" or worse)


# the form: its fields are bound to the address, which holds what differs from the row that it
# starts from; so a link, a reload and the browser's Back bring all of it again


def start_names(card: dict) -> list[str]:
    """Return what the rows to start from are called."""
    names = []
    for number, example in enumerate(card["examples"], 1):
        names.append(plain(f"{number}: {spell(card, example['target'])}"))
    return names


def start_row(card: dict) -> dict[str, Any]:
    return card["examples"][start_names(card).index(state["row"])]["features"]


def field_value(card: dict, feature: dict, value: Any) -> Any:
    """Return what a feature's field holds for a value."""
    if value is not None and is_day(feature):
        return date.fromisoformat(value)
    text = spell(card, value)
    return text or (GAP if choices_of(feature) else "")


def fill(card: dict) -> None:
    """Let all fields hold what the row has, after another was chosen, or to go back to it."""
    start = start_row(card)
    for feature in card["features"]:
        state[f"_{feature['name']}"] = field_value(card, feature, start[feature["name"]])


def is_day(feature: dict) -> bool:
    """Return whether it is a date without a time of day, and never a gap: Streamlit's calendar
    can't be emptied."""
    days = feature["type"] == "date" and "T" not in feature["minimum"] + feature["maximum"]
    return days and not feature["nullable"]


def choices_of(feature: dict) -> list[str]:
    """Return what is to choose from; nothing where it is typed."""
    choices = feature.get("choices", [])
    if feature["type"] == "boolean":
        choices = ["false", "true"]
    elif feature.get("integer") and feature["maximum"] - feature["minimum"] < CODES:
        choices = [str(n) for n in range(feature["minimum"], feature["maximum"] + 1)]
    return [*choices, GAP] if choices and feature["nullable"] else choices


def draw_field(card: dict, feature: dict, start: Any) -> str:
    """Draw the field of one feature, which begins with the row's value; return what it holds."""
    label, choices = plain(feature["name"]), choices_of(feature)
    if "unit" in feature:
        label += f" ({plain(feature['unit'])})"
    if "minimum" in feature and not choices:
        low, high = spell(card, feature["minimum"]), spell(card, feature["maximum"])
        label += f" :small[{plain(f'{low} to {high}')}]"
    kept = {"key": f"_{feature['name']}", "bind": "query-params"}
    if choices:
        kept["accept_new_options"] = "open" in feature or feature["type"] == "number"
        choices = list(dict.fromkeys([*choices, start]))
        return st.selectbox(label, choices, choices.index(start), **kept)
    if is_day(feature):
        return str(st.date_input(label, start, date.min, date.max, format="YYYY-MM-DD", **kept))
    empty = "unknown" if feature["nullable"] else "needed"
    # a text: number inputs round what they show, and swallow a comma
    return st.text_input(label, start, placeholder=empty, **kept)


def read_row(card: dict, texts: dict[str, str]) -> dict[str, Any]:
    """Return the row as the API is sent it. Raises NoAnswer for what is no number."""
    row: dict[str, Any] = {}
    for feature in card["features"]:
        name = feature["name"]
        value: Any = (texts[name] or "").strip() or None
        if value == GAP:
            value = None
        elif feature["type"] == "boolean":
            value = value == "true"
        elif feature["type"] == "number" and value:
            try:
                value = read_number(card, value)
            except ValueError:
                such = f"such as {spell(card, 1234.5)}"
                raise NoAnswer(f"{name}: '{value}' is no number, {such}.") from None
        # what is missing is left out: the API says so
        if value is not None or feature["nullable"]:
            row[name] = value
    return row


# charts: a table with bars in it where a few things are compared, else Altair


def draw_bars(values: dict[str, float], spelled: Callable, about: str, end: float = 0.0) -> None:
    """Draw a table with a bar for each value, minus and plus in two colours on both sides of zero,
    the longest up to the end at least."""
    names = [plain(name) for name in values]
    frame = pd.DataFrame({about: values.values()}, index=names)
    is_dark = st.context.theme.type == "dark"
    colors = ["#8a3d12", "#14548c"] if is_dark else ["#f6b48f", "#a3cdf0"]  # 7 : 1 to the words
    ends = {"align": "zero", "vmin": min(0, *values.values()), "vmax": max(end, *values.values())}
    if ends["vmin"] == 0:
        ends["align"] = "left"
    st.table(frame.style.format(spelled).bar(color=colors, **ends), hide_header=True, alt=about)


def sum_others(shares: dict[str, float]) -> dict[str, float]:
    """Return the largest shares, and what the others add together."""
    names = list(shares)
    if len(names) > BARS:
        others = names[BARS - 1 :]
        shares[f"the other {len(others)}"] = sum(shares.pop(name) for name in others)
    return shares


def place_of(feature: dict, value: Any) -> float:
    """Return where a number or a date stands on an axis: a date at its milliseconds since 1970."""
    if feature["type"] == "date":
        return 1000 * pd.to_datetime(datetime.fromisoformat(value), utc=True).timestamp()
    return value


def values_to_try(feature: dict, here: Any) -> list:
    """Return the values to ask for: the frequent choices, or many in and around the range; and
    always the one that the form holds."""
    if "minimum" not in feature:
        often = dict(zip(feature.get("choices", [False, True]), feature["counts"]))
        frequent = sorted(often, key=often.get)[-WHAT_IF_CHOICES:]
        kept = [choice for choice in often if choice in frequent or choice == here]
        return kept if here in kept else [*kept, here]
    ends = [place_of(feature, feature["minimum"]), place_of(feature, feature["maximum"])]
    if here is not None:
        ends.append(place_of(feature, here))
    # also the value itself, as a float: an integer may be too large for numpy
    ends = np.array(ends, float)
    values = np.append(np.linspace(ends.min(), ends.max(), WHAT_IF_POINTS + 1), ends[2:])
    if feature["type"] == "date":
        is_time, day = "T" in feature["minimum"] + feature["maximum"], 86_400_000
        if is_time and np.ptp(ends) > WHAT_IF_POINTS * day:
            # at one time of day: several would be a zigzag
            values = ends[-1] + ((values - ends[-1]) / day).round() * day
        unit = "s" if is_time else "D"
        values = values.astype("datetime64[ms]").astype(f"datetime64[{unit}]").astype(str)
    elif feature["integer"]:
        values = values.round()
    return np.unique(values).tolist()


def draw_answers(card: dict, feature: dict, values: list, answer: dict, here: Any) -> None:
    """Draw the answers for these values of a feature: a curve, or a line for each choice."""
    lines = answer.get("probabilities", {card["target"]: answer["prediction"]})
    labels = sorted(lines, key=lambda label: -max(lines[label]))[:BARS]
    asked = [(at, label, lines[label][row]) for row, at in enumerate(values) for label in labels]
    frame = pd.DataFrame(asked, columns=["at", "label", "value"])
    title, form, ends = "probability", "%", [0, 1]
    if card["task"] == "regression":
        title, form = card["target"], "~r"
        ends = [*answer["prediction"], *np.ravel(answer["interval"])]
    axis = {"type": "quantitative", "title": title, "axis": alt.Axis(format=form)}
    axis["scale"] = alt.Scale(domain=[float(min(ends)), float(max(ends))])
    legend = alt.Legend(orient="bottom", title=None, columns=2, labelLimit=150)
    order = alt.Scale(domain=labels)
    color = alt.Color("label", type="nominal", scale=order, legend=legend)
    if len(labels) == 1:
        color = alt.value("#1f77b4")
    draw = draw_curve if "minimum" in feature else draw_choices
    draw(card, feature, frame, axis, color, here)


def draw_curve(card: dict, feature: dict, frame: Any, axis: dict, color: Any, here: Any) -> None:
    """Draw the answers along a number or a date, over a faint histogram of the table."""
    kind = {"type": "quantitative", "axis": alt.Axis(format="~r")}
    if feature["type"] == "date":
        kind = {"type": "temporal", "axis": alt.Axis(format="%Y-%m-%d")}
    frame["at"] = [place_of(feature, value) for value in frame["at"]]
    ends = place_of(feature, feature["minimum"]), place_of(feature, feature["maximum"])
    edges = np.linspace(*ends, len(feature["counts"]) + 1)
    seen = pd.DataFrame({"at": edges[:-1], "end": edges[1:], "rows": feature["counts"]})
    x = alt.X("at", title=feature["name"], scale=alt.Scale(zero=False, nice=False), **kind)
    bars = alt.Chart(seen).mark_rect(color="gray", opacity=0.2)
    bars = bars.encode(x, alt.X2("end"), alt.Y("rows", type="quantitative", axis=None))
    line = alt.Chart(frame).mark_line().encode(x, alt.Y("value", **axis), color)
    layers, words = [bars, line], "Gray: where the table has its rows."
    if here is not None:
        now = alt.Chart(pd.DataFrame({"at": [place_of(feature, here)]}))
        layers.append(now.mark_rule(strokeDash=[4, 4], color="gray").encode(x))
        words = f"Dashed: the value in the form. {words}"
    draw_chart(alt.layer(*layers).resolve_scale(y="independent"), feature)
    st.text(words)


def draw_choices(card: dict, feature: dict, frame: Any, axis: dict, color: Any, here: Any) -> None:
    """Draw the answers for each choice, which says in how many rows it is: stacked
    probabilities, or a dot on the axis of what is predicted."""
    counts = dict(zip(feature.get("choices", [False, True]), feature["counts"]))
    words = {}
    for value in frame["at"].unique():
        mark = "\u25b6 " if value == here else ""
        words[value] = f"{mark}{spell(card, value) or GAP} ({counts.get(value, 0):,} rows)"
    frame["at"] = frame["at"].map(words)
    y = alt.Y("at", type="nominal", sort=None, title=feature["name"], axis=alt.Axis(labelLimit=200))
    chart = alt.Chart(frame, height=alt.Step(28))
    chart = (
        chart.mark_circle(size=90, opacity=1) if card["task"] == "regression" else chart.mark_bar()
    )
    draw_chart(chart.encode(y, alt.X("value", **axis), color), feature)
    st.text("\u25b6 marks the choice in the form; in brackets, the rows of the table that have it.")


def draw_chart(chart: Any, feature: dict) -> None:
    # labels in a contrast of 7 : 1, where Streamlit's own have 3.7
    ink = "#c9cbd1" if st.context.theme.type == "dark" else "#45474f"
    words = {"labelColor": ink, "titleColor": ink}
    chart = chart.configure(axis=words, legend=words)
    st.altair_chart(chart, alt=f"How the answer changes with {feature['name']}")


# a file


@st.cache_resource
def one_file() -> threading.Lock:
    """Return what lets one visitor's file be predicted at a time: several would fill the memory."""
    return threading.Lock()


def template(card: dict) -> bytes:
    """Return a CSV file of the examples, as the table is written."""
    rows = pd.DataFrame([example["features"] for example in card["examples"]])
    comma = {"sep": ";", "decimal": ","} if card["decimal"] == "," else {}
    return rows.to_csv(index=False, **comma).encode("utf-8-sig")


def predict_file(file: Any, card: dict) -> dict | None:
    """Return what came of the last upload. Raises NoAnswer.

    Without an API the upload is kept, and with it what came of the one before.
    """
    file_id, problem, result = state.get("page:result", ("", "", None))
    if file is not None and file.file_id != file_id:
        problem, result = "", None
        with one_file(), st.spinner("Predicting", show_time=True):
            try:
                result = read_result(call("/predict/csv", file.getvalue()), card)
            except NoAnswer as error:
                problem = str(error)
        if problem == GONE:
            raise NoAnswer(GONE)
        # note: Streamlit would keep the upload until some session ends
        run = get_script_run_ctx()
        run.uploaded_file_mgr.remove_file(run.session_id, file.file_id)
        file.close()
        state["page:result"] = file.file_id, problem, result
    if problem:
        raise NoAnswer(problem)
    return result


def read_result(content: bytes, card: dict) -> dict:
    """Return what is shown of the API's CSV file, and all of it packed."""
    header_end = re.search(rb"warnings( \(model\))?(.)problem( \(model\))?\n", content)
    how = {"sep": header_end[2].decode(), "lineterminator": "\n", "keep_default_na": False}
    first = pd.read_csv(io.BytesIO(content), nrows=SHOWN_ROWS, dtype=str, **how)
    # what the API added, and the numbers in it
    added = list(first)[-5:]
    numbers = added[:3]
    if card["task"] == "classification":
        added = list(first)[-len(card["classes"]) - 4 :]
        numbers = added[1:-3]
    for name in numbers:
        first[name] = pd.to_numeric(first[name].str.replace(card["decimal"], "."))
    # of all rows only some columns: a large file would fill the memory
    needed = {added[0]: "prediction", added[-2]: "warnings", added[-1]: "problem"}
    if card["target"] in first:
        needed[card["target"]] = "truth"
    rows = pd.read_csv(io.BytesIO(content), usecols=list(needed), dtype=str, **how)
    rows = rows.rename(columns=needed)
    rows.index += 1
    if card["task"] == "regression":
        rows["prediction"] = pd.to_numeric(rows["prediction"].str.replace(card["decimal"], "."))
    problems = rows["problem"][rows["problem"] != ""]
    good = rows.drop(problems.index)
    result = {
        "rows": len(rows),
        "predictions": good["prediction"],
        "warned": int((good["warnings"] != "").sum()),
        "score": "",
        "first": first[[*added, *first.columns.drop(added)]],
        "problems": problems.head(SHOWN_ROWS).rename_axis("row").reset_index(),
        # gzip unpacks two to one: the mark without which Excel takes ü for Ã¼, and the file
        "packed": gzip.compress(codecs.BOM_UTF8) + gzip.compress(content, 1),
    }
    if "truth" in good:
        numbers = pd.read_csv(
            io.BytesIO(content), sep=how["sep"], usecols=numbers, decimal=card["decimal"]
        )
        result["score"] = score_file(card, good, numbers)
    return result


def score_file(card: dict, rows: pd.DataFrame, numbers: pd.DataFrame) -> str:
    """Return how good the answers for rows with a known truth are; "" where there is none."""
    truth, own = rows["truth"].str.strip(), card["metrics"]
    if card["task"] == "regression":
        truth = pd.to_numeric(truth.str.replace(card["decimal"], "."), errors="coerce").dropna()
        error = (rows["prediction"][truth.index] - truth).abs().mean()
        score = f"Mean error {write(card, error)}"
        own = f"{write(card, own['mean_absolute_error'])}"
    else:
        truth = truth[truth != ""]
        right = (rows["prediction"][truth.index] == truth).mean()
        known = truth[truth.isin(card["classes"])]
        places = pd.Index(card["classes"]).get_indexer(known)
        likely = numbers.to_numpy()[known.index - 1, places].clip(1e-15)
        loss = -np.log(likely).mean()
        score = f"{percent(card, right)} right, log loss {write(card, loss)},"
        own = f"{percent(card, own['accuracy'])}, log loss {write(card, own['log_loss'])}"
    if not len(truth):
        return ""
    return f"{score} in {len(truth):,} rows with a known {card['target']}. In training: {own}."


def draw_result(result: dict, card: dict) -> None:
    """Draw the summary, what can't be predicted and why, and the first rows."""
    predictions, rows = result["predictions"], result["rows"]
    good = len(predictions)
    st.header(f"{good:,} of {rows:,} rows predicted")
    if result["score"]:
        st.info(plain(result["score"]))
    if good < rows:
        words = f"{rows - good:,} can't be predicted, as listed here. The first is"
        row, problem = result["problems"].iloc[0]
        st.warning(plain(f"{words} row {row}: {problem}."))
        st.dataframe(result["problems"], hide_index=True)
    if result["warned"]:
        words = "have values that training had not seen: see the column warnings."
        st.warning(f"{result['warned']:,} of the predicted rows {words}")
    if good and card["task"] == "classification":
        counts = predictions.value_counts().head(BARS).to_dict()
        draw_bars(counts, lambda n: f"{n:,} ({percent(card, n / good)})", "Predictions", good)
    elif good:
        ends = predictions.mean(), predictions.min(), predictions.max()
        mean, low, high = (write(card, value, ends[2] - ends[1]) for value in ends)
        st.text(f"{card['target']}: {mean} on average, from {low} to {high}.")
    if rows > SHOWN_ROWS:
        st.text(f"Only the first {SHOWN_ROWS:,} rows are shown; the download has all.")
    st.dataframe(result["first"], hide_index=True, placeholder="")
    unpack = partial(gzip.decompress, result["packed"])
    st.download_button("Download the result", unpack, "predictions.csv", on_click="ignore")


# what the model is, and how a program asks it


def draw_scores(card: dict) -> None:
    dummy = "most frequent label" if card["task"] == "classification" else "mean"
    scores = {"model": card["metrics"], f"always the {dummy}": card["baseline"]}
    frame = pd.DataFrame(scores).map(partial(write, card))
    frame["what it is"] = frame.index.map(SCORES)
    st.table(frame.rename(lambda key: key.replace("_", " ")).fillna(""))


def draw_cutoffs(card: dict) -> None:
    """Draw what happens if the rarer of two classes is answered from another probability on."""
    if "cutoffs" not in card:
        return
    label = card["cutoffs"]["label"]
    st.header(f"When to say {plain(label)}")
    st.text(
        f"The model says {label} from a probability of 50 % on. Where a missed {label} is worse "
        f"than a false alarm, act from a lower one on; measured on rows that it had not seen:"
    )
    frame = pd.DataFrame(card["cutoffs"]["rows"], columns=["from", "of these are", "finds"])
    frame = frame.map(partial(percent, card), "ignore").fillna("nobody is")
    frame.columns = [
        "from",
        f"so many of these are {plain(label)}",
        f"of all {plain(label)} it finds",
    ]
    st.table(frame, hide_index=True)


def draw_programmers(card: dict, texts: dict[str, str]) -> None:
    st.header("For programmers")
    row = card["examples"][0]["features"]
    with suppress(NoAnswer):
        row = read_row(card, texts)
    url = api_url()
    if PUBLIC_API:
        url = f"{st.context.url.partition('?')[0].rstrip('/')}/api"
        st.markdown(f"The API's documentation: {url}/docs")
    else:
        st.text("The API answers on the machine or in the container where it runs.")
    body = shlex.quote(json.dumps(row, ensure_ascii=False))
    curl = f"curl {url}/predict -H 'Content-Type: application/json' -d {body}"
    st.code(curl, None, wrap_lines=True)
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    st.text(f"Trained with {versions}. SHA-256 of the file: {card['sha256']}")


# the server: it runs this file anew for each click of a visitor, and answers for the API if that
# is to be public; else there is nothing below /api

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

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pandas as pd
import streamlit as st
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
    for tab, draw in ((many, draw_many_rows), (about, draw_about)):
        if tab.open:
            with tab:
                draw(card)


def draw_form(card: dict) -> list[str]:
    """Draw the rows to start from and a field for each feature; return what the fields hold."""
    labels, ranked, texts = [], list(card["importance"]), {}
    for number, example in enumerate(card["examples"], 1):
        labels.append(plain(f"{number}: {spell(card, example['target'])}"))
    kept = {"default": 0, "required": True, "key": "row", "bind": "query-params"}
    kept |= {"options": range(len(labels)), "format_func": labels.__getitem__}
    st.pills(f"Start from a real row, by its {plain(card['target'])}", **kept)
    shown = folded = st.grid(3)
    if len(ranked) > UNFOLDED:
        folded = st.expander("What matters less").grid(3)
    starts = starts_of(card)
    for feature, (key, start) in zip(card["features"], starts.items()):
        grid = shown if feature["name"] in ranked[:UNFOLDED] else folded
        texts[key] = draw_field(grid, card, feature, key, start)
    st.button("Reset to this row", key="page:reset", on_click=state.update, args=[starts])
    if len(urlencode(list(texts.items() - starts.items()))) > MAX_LINK:
        st.text("So much has been changed that the address is too long for a link.")
    return list(texts.values())


def draw_answer(card: dict, row: dict) -> None:
    """Draw the prediction, how sure it is, and what else is likely."""
    answer = call("/predict", row)
    value, sure, explained = say(card, answer)
    with st.bottom:  # always in sight, on a phone too, and read out by a screen reader
        words = plain(". ".join([sure, *answer["warnings"][:1]]))
        kind = st.warning if answer["warnings"] else st.success
        kind(f"**{plain(card['target'])}: {plain(value)}**, {words}. [Why?](#why)")
    st.metric(plain(card["target"]), plain(value))
    if "classes" in card:
        draw_bars(card, pd.Series(answer["probabilities"]).nlargest(BARS), end=1)
    if explained:
        st.text(explained)
    for sentence in answer["warnings"]:
        st.warning(plain(f"{sentence}. How sure the model is there says nothing."))
    loss = next(iter(card["metrics"]))
    if card["notes"] and card["metrics"][loss] >= card["baseline"][loss]:  # no better than a dummy
        st.warning(plain(card["notes"][0]))


def draw_why(card: dict, row: dict) -> None:
    """Draw how much each value adds, from the average over the table to this answer."""
    st.header("Why this answer", anchor="why")
    with saying("why"):
        why, spelled = call("/explain", row), percent
        shares = pd.Series(why["shares"]).head(BARS)
        if "classes" not in card:
            spelled = partial(write, scale=abs(shares.iloc[0]))  # the largest
        start, end = spelled(card, why["average"]), spelled(card, why["value"])
        st.text(f"What adds most, from {start}, the average of rows of the table, to {end}:")
        shares.index = [f"{name} = {spell(card, row.get(name))}" for name in shares.index]
        draw_bars(card, shares, partial(spelled, sign="+"))
        st.text("These shares tell how the model decides; they are no causes.")


@st.fragment
def draw_what_if(card: dict, row: dict) -> None:
    """Draw how the answer changes with one feature, and where the table has its rows."""
    st.header("What if one value were different?")
    name = st.selectbox("Vary", list(card["importance"]), key="page:vary", persist_state="session")
    feature = next(feature for feature in card["features"] if feature["name"] == name)
    with saying("what if"):
        draw = draw_curve if "minimum" in feature else draw_choices
        draw(card, row, feature)


def draw_many_rows(card: dict) -> None:
    """Draw a template, where a file goes up, and what came of the last one."""
    words = "A CSV file with a column for each feature, written as in the table, up to 100,000 rows"
    st.text(f"{words}. With a column {card['target']} the answers are scored.")
    rows = pd.DataFrame(pd.DataFrame(card["examples"])["features"].tolist())
    marks = {"sep": ";", "decimal": ","} if card["decimal"] == "," else {}
    table = rows.to_csv(index=False, **marks).encode("utf-8-sig")
    st.download_button("Download a template", table, "template.csv", on_click="ignore")
    file = st.file_uploader("Your file", ["csv", "tsv", "txt"], key="page:file")
    with saying("file"):
        if file:
            with turn("file"), st.spinner("Predicting", show_time=True):
                state["page:result"] = predict_file(card, file)
        if "page:result" in state:
            draw_result(card, state["page:result"])


# the story ends here: below are the last tab, draw_about(), and the care that the others take

# asking the API
BASE_PATH = f"/{st.get_option('server.baseUrlPath').strip('/')}".rstrip("/")
API_PORT, API_URL = os.environ.get("API_PORT"), os.environ.get("API_URL")
if PUBLIC_API and not API_PORT and not API_URL:  # page and API are one process
    API_URL = f"http://127.0.0.1:{st.get_option('server.port')}{BASE_PATH}/api"
API_URL = (API_URL or f"http://127.0.0.1:{API_PORT or 8001}").rstrip("/")
TIMEOUT_SECONDS = 10  # until the next bytes come
# one visitor at a time: files would fill the memory, charts keep the others' answers waiting
turn = st.cache_resource(lambda what: threading.Lock(), show_spinner=False)


class NoAnswer(Exception):
    """There is no answer; the words, for people, say why."""


def call(path: str, body: dict | bytes | None = None) -> Any:
    """Send a row, columns or a CSV file; return the answer. Raises NoAnswer."""
    kind = "text/csv" if isinstance(body, bytes) else "application/json"
    if isinstance(body, dict):
        body = json.dumps(body, default=str).encode()
    opener = build_opener(ProxyHandler({}))  # a proxy is for the world, not for this machine
    try:
        request = Request(API_URL + path, body, {"Content-Type": kind})
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return response.read() if kind == "text/csv" else json.load(response)
    except (OSError, HTTPException, ValueError) as error:
        if not isinstance(error, HTTPError) or error.code != 422:
            raise NoAnswer("The model is not there or too busy. Please try again.") from None
        reason = json.load(error)["detail"][0]
        raise NoAnswer(": ".join(map(str, [*reason["loc"][1:], reason["msg"]]))) from None


@contextmanager
def saying(what: str, place: Any = None) -> Iterator[None]:
    """Say that there is no answer, and why, there or in a place."""
    try:
        yield
    except NoAnswer as problem:
        with place or st.container():
            st.error(plain(str(problem)))
            st.button("Try again", key=f"page:retry {what}")


def get_card() -> dict:
    """Return the model's card; without an API the one that was seen last, or stop."""
    with saying("card"):
        card = call("/model")
        if state.get("page:card", card)["sha256"] != card["sha256"]:
            state.clear()  # what was filled in and answered belongs to another model
            state["row"] = 0
            state.update(starts_of(card))
            st.toast("The model has changed: please check the form.", duration="infinite")
        state["page:card"] = card
    return state.get("page:card") or st.stop()


# words and numbers as people read and write them
GAP = "(unknown)"  # what stands for a gap in a field


def plain(text: str) -> str:
    """Return a text so that Markdown shows it as it is, and most names as they are."""
    # escaped or not, Streamlit makes icons of :name:, signs of ->, links of addresses, unless an
    # invisible word joiner parts them
    text = re.sub(r"(?<=[:@])(?=[^\s\d]|\d+:)|(?<=[<>~-])(?=[-=>])|(?<=ww)(?=w)", "\u2060", text)
    # inside of a line, and at its start, where 1. and - make lists
    signs = r"[\\`*[\]<>#$~|&]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])|^[-+=]|(?<=\d)[.)](?=\s|$)"
    return re.sub(signs, r"\\\g<0>", text, flags=re.MULTILINE)


def spell(card: dict, value: Any) -> str:
    """Return a value as a person types it."""
    if value is None or isinstance(value, str):
        return value or GAP
    return json.dumps(value).removesuffix(".0").replace(".", card["decimal"])


def write(card: dict, value: float, scale: float = 0.0, sign: str = "") -> str:
    """Return a number with three digits of the scale, of its interval say; or with four digits."""
    decimals = 2 - int(np.floor(np.log10(scale or abs(value) / 10 or 1)))
    text = f"{value:{sign}z,.{max(decimals, 0)}f}"  # z: no -0.0
    if abs(value) < 10_000:
        text = text.replace(",", "")  # a year has no comma
    return text.translate({44: ".", 46: ","}) if card["decimal"] == "," else text


def percent(card: dict, share: float, sign: str = "") -> str:
    """Return a share, never as a certainty; with a sign the points that are added to one."""
    if sign:
        return f"{write(card, 100 * share, 10, sign)} points"
    return f"{write(card, 100 * min(max(share, 0.001), 0.999), 10)} %"


def say(card: dict, answer: dict) -> tuple[str, str, str]:
    """Return the prediction in words, how sure it is, and what that means if it needs telling."""
    value, rows = answer["prediction"], f"{100 * card['uncertainty']['coverage']:.0f} % of the rows"
    if "interval" in answer:
        low, high = answer["interval"]
        sure = f"likely {write(card, low, high - low)} to {write(card, high, high - low)}"
        words = f"{sure.capitalize()}: in {rows} of this size the truth lay in such a range."
        return write(card, value, high - low), sure, words
    sure, words = f"{percent(card, answer['probabilities'][value])} probable", ""
    if len(answer["likely"]) > 1:
        words = f"Not clear, it may be {' or '.join(answer['likely'][:BARS])}: of each class, "
        words += f"{rows} had their own label among such labels."
    return value, sure, words


# the form: the address holds what differs from the row that it starts from, for links, reload, Back
CODES = 8  # whole numbers in so narrow a range are chosen from a list


def starts_of(card: dict) -> dict[str, str]:
    """Return what the fields begin with, by their names in the address: new ones for each row."""
    row = card["examples"][state["row"]]["features"]
    return {f"{state['row'] or ''}_{name}": spell(card, value) for name, value in row.items()}


def draw_field(grid: Any, card: dict, feature: dict, key: str, start: str) -> str:
    """Draw the field of one feature; return what it holds."""
    choices, label = feature.get("choices", []), feature["name"]
    if feature["type"] == "boolean":
        choices = ["false", "true"]
    elif feature.get("integer") and feature["maximum"] - feature["minimum"] < CODES:
        choices = list(map(str, range(feature["minimum"], feature["maximum"] + 1)))
    if "minimum" in feature and not choices:
        low, high = spell(card, feature["minimum"]), spell(card, feature["maximum"])
        label += f" ({low} to {high} {feature.get('unit', '')}".rstrip() + ")"
    kept = {"key": key, "bind": "query-params"}
    if not choices:
        # a text: number inputs round what they show, and swallow a comma
        empty = "unknown" if feature["nullable"] else "needed"
        return grid.cell().text_input(plain(label), start, placeholder=empty, **kept)
    if feature["nullable"]:
        choices = [*choices, GAP]
    choices = list(dict.fromkeys([*choices, start]))
    kept["accept_new_options"] = "open" in feature or feature["type"] == "number"
    is_long = len(max(choices, key=len)) > 22  # characters, where it would be cut
    cell = grid.cell(column_span="all" if is_long else 1)
    return cell.selectbox(plain(label), choices, choices.index(start), **kept)


def read_row(card: dict, texts: list[str]) -> dict[str, Any]:
    """Return the row, without its gaps. Raises NoAnswer for what is no number, or might be two: a
    comma is a decimal mark too, but 1,234 may be a thousand where the table writes 1.234."""
    row: dict[str, Any] = {}
    other = "," if card["decimal"] == "." else "."
    for feature, text in zip(card["features"], map(str.strip, texts)):
        if text in ("", GAP):
            continue  # where one is needed the API says so
        row[feature["name"]] = text == "true" if feature["type"] == "boolean" else text
        if feature["type"] == "number":
            is_number = re.fullmatch(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", text, re.IGNORECASE)
            if not is_number or re.fullmatch(rf"[-+]?[1-9]\d{{0,2}}\{other}\d{{3}}", text):
                such = f"such as {spell(card, 1234.5)}"
                raise NoAnswer(f"{feature['name']}: '{text}' is not clear as a number, {such}.")
            row[feature["name"]] = float(text.replace(",", "."))
    return row


# charts: a table with bars in it, which screen readers read too; a curve in Vega-Lite
WHAT_IF_POINTS, WHAT_IF_CHOICES = 151, 30


def draw_bars(card: dict, values: Any, spelled: Callable = percent, end: float = 0.0) -> None:
    """Draw a table with a bar in each cell, minus and plus in two colours on both sides of zero."""
    frame = pd.DataFrame(values).rename(index=plain)
    # half of a colour: 7 : 1 to the words, on white and on black
    bars = {"axis": None, "align": "mid", "color": ["#fa732380", "#3796f080"]}
    bars["vmin"], bars["vmax"] = min(0, frame.min(axis=None)), max(end, 1e-9, frame.max(axis=None))
    bars["props"] = f"width: {60 // len(frame.columns)}%;"
    with turn("chart"):
        styled = frame.style.format(partial(spelled, card)).bar(**bars)
        st.table(styled, hide_header=len(frame.columns) == 1)


def vary(card: dict, row: dict, name: str, values: list) -> tuple[pd.DataFrame, list]:
    """Return the answers with one value after the other, a column for each class; and intervals."""
    columns = {other: [value] * len(values) for other, value in row.items()} | {name: values}
    answer = call("/predict/batch", columns)
    lines = pd.DataFrame(answer.get("probabilities", {card["target"]: answer["prediction"]}))
    return lines[lines.max().nlargest(BARS).index], answer.get("interval", [0.0, 1.0])


def draw_choices(card: dict, row: dict, feature: dict) -> None:
    """Draw the answers for the frequent choices, and in how many rows of the table each is."""
    name, here, names = feature["name"], row.get(feature["name"]), []
    counts = dict(zip(feature.get("choices", [False, True]), feature["counts"]))
    frequent = pd.Series(counts).nlargest(WHAT_IF_CHOICES).sort_index()
    values = list(dict.fromkeys([*frequent.index.tolist(), here]))
    counts[None] = feature["missing"]
    for value in values:
        now = ", as in the form" if value == here else ""
        names.append(f"{spell(card, value)} ({counts.get(value, 0):,} rows{now})")
    lines = vary(card, row, name, values)[0].set_axis(names).rename(columns=plain)
    draw_bars(card, lines, percent if "classes" in card else write)


def draw_curve(card: dict, row: dict, feature: dict) -> None:
    """Draw the answers along a number or a date, over a faint histogram of the table."""
    name = feature["name"]
    ends = [feature["minimum"], feature["maximum"], row.get(name)]
    x = {"field": "at", "type": "temporal", "title": name, "scale": {"zero": False, "nice": False}}
    if feature["type"] == "date":
        ends = pd.to_datetime(ends, format="ISO8601", utc=True).tz_localize(None)
    else:
        ends = pd.Index(ends, dtype=float)
        x |= {"type": "quantitative", "axis": {"format": "~r"}}  # a year has no comma
    span = ends.max() - ends.min()
    values = pd.Index(ends.min() + span * np.linspace(0, 1, WHAT_IF_POINTS)[1:-1])
    if feature["type"] == "date":
        # over long whole days: several times of day would be a zigzag
        values = values.floor("D" if span > pd.Timedelta(days=WHAT_IF_POINTS) else "s")
    elif feature["integer"]:
        values = values.round()
    values = values.union(ends.dropna()).unique()
    lines, room = vary(card, row, name, values.tolist())
    # note: labels never become columns, they may be called "at" or "value"
    points = lines.set_axis(values).stack().rename_axis(["at", "label"]).reset_index(name="value")
    edges = ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, len(feature["counts"]) + 1)
    seen = pd.DataFrame({"at": edges[:-1], "end": edges[1:], "rows": feature["counts"]})
    y = {"field": "value", "type": "quantitative", "title": None}
    y["scale"] = {"domain": [np.min(room), np.max(room)]}  # less would exaggerate
    y["axis"] = {"format": "~%" if "classes" in card else "~r"}
    rows = {"field": "rows", "type": "quantitative", "axis": None}
    bars = {"mark": {"type": "rect", "color": "gray", "opacity": 0.2}, "data": {"name": "seen"}}
    bars["encoding"] = {"x2": {"field": "end"}, "y": rows}
    curve = {"mark": "line", "data": {"name": "points"}}
    curve["encoding"] = {"y": y, "color": {"field": "label", "sort": None, "title": None}}
    rule = {"mark": {"type": "rule", "color": "gray", "strokeDash": [4]}, "data": {"name": "here"}}
    chart = {"height": 300, "encoding": {"x": x}, "layer": [bars, curve, rule]}
    chart["resolve"] = {"scale": {"y": "independent"}}
    here = pd.DataFrame({"at": ends[2:].dropna()})
    chart["datasets"] = {"seen": seen, "points": points, "here": here}
    ink = {"labelColor": "#767676", "titleColor": "#767676"}  # 4.5 : 1 on white and on black
    chart["config"] = {"axis": ink, "legend": {"orient": "top", "columns": 2, **ink}}
    st.text("Dashed: the value in the form. Gray: where the table has its rows.")
    with turn("chart"):
        st.vega_lite_chart(chart, alt=f"How the answer changes with {name}")


# a file
SHOWN_ROWS = 1_000  # of a file on the screen; the download has all


def predict_file(card: dict, file: Any) -> dict:
    """Return what is shown of the API's answers, and all of them packed. Raises NoAnswer."""
    content = call("/predict/csv", file.getvalue())
    mark = re.search(rb"warnings( \(model\))?(.)problem( \(model\))?\n", content)[2]
    how = {"sep": mark.decode(), "lineterminator": "\n", "dtype": str, "keep_default_na": False}
    first = pd.read_csv(io.BytesIO(content), nrows=SHOWN_ROWS, **how)
    added = list(first.columns[-len(card.get("classes", "a")) - 4 :])
    numbers = added[1:-3] if "classes" in card else added[:3]
    first[numbers] = to_numbers(card, first[numbers])
    names = {added[0]: "prediction", added[-2]: "warnings", added[-1]: "problem"}
    if card["target"] in first:
        names[card["target"]] = "truth"
    # of all rows only some columns: a large file would fill the memory
    rows = pd.read_csv(io.BytesIO(content), usecols=list(names), **how).rename(columns=names)
    rows.index = pd.RangeIndex(1, len(rows) + 1, name="row")
    # note: Streamlit would keep the upload until some session ends; without an answer it stays
    run = get_script_run_ctx()
    run.uploaded_file_mgr.remove_file(run.session_id, file.file_id)
    file.close()
    packed = gzip.compress("\ufeff".encode() + content, 1)  # without the mark Excel takes ü for Ã¼
    first = first[[*added, *first.columns.drop(added)]]
    return {"rows": rows, "first": first, "packed": packed}


def to_numbers(card: dict, texts: pd.DataFrame) -> pd.DataFrame:
    """Return numbers as the file writes them; a gap is what is none."""
    texts = texts.replace(re.escape(card["decimal"]), ".", regex=True)
    return texts.apply(pd.to_numeric, errors="coerce")


def draw_result(card: dict, result: dict) -> None:
    """Draw the summary, what can't be predicted and why, the score, and the first rows."""
    rows, is_good = result["rows"], result["rows"]["problem"] == ""
    good, problems = rows[is_good], rows["problem"][~is_good]
    st.header(f"{len(good):,} of {len(rows):,} rows predicted")
    for row, problem in problems.head(1).items():
        st.warning(plain(f"{len(problems):,} can't be predicted; the first, row {row}: {problem}."))
        st.dataframe(problems.head(SHOWN_ROWS))
    if warned := (good["warnings"] != "").sum():
        st.warning(f"Rows with values that training had not seen, see warnings: {warned:,}.")
    if len(good) and "classes" in card:
        draw_bars(card, good["prediction"].value_counts(normalize=True).head(BARS), end=1)
    if "truth" in good:
        truth, spelled, key = good["truth"].str.strip(), percent, "accuracy"
        found = (good["prediction"] == truth)[truth.isin(card.get("classes", []))]
        if "classes" not in card:
            spelled, key = write, "mean_absolute_error"
            numbers = to_numbers(card, good[["prediction", "truth"]])
            found = numbers.diff(axis=1)["truth"].abs().dropna()
        if len(found):
            score, own = spelled(card, found.mean()), spelled(card, card["metrics"][key])
            words = f"{key.replace('_', ' ').capitalize()} {score} in {len(found):,} rows whose "
            words += f"{card['target']} the file tells. In training, for unseen rows: {own}."
            st.info(plain(words))
    st.text(f"The first {SHOWN_ROWS:,} rows; the download has all.")
    st.dataframe(result["first"], hide_index=True, placeholder="")
    unpack = partial(gzip.decompress, result["packed"])
    st.download_button("Download the result", unpack, "predictions.csv", on_click="ignore")


# what the model is, how good it is, and how a program asks it
SCORES = {
    "log_loss": "how far the probabilities are from the truth; lower is better",
    "accuracy": "the share of rows that are answered right; higher is better",
    "balanced_accuracy": "the same, where each class counts alike; higher is better",
    "roc_auc": "how well it tells the two classes apart, 0.5 by chance; higher is better",
    "root_mean_squared_error": "the usual error, where large ones count more; lower is better",
    "mean_absolute_error": "the mean error, in the unit of what is predicted; lower is better",
    "r2": "the share of the differences that it explains, 1 is all; higher is better",
}


def draw_about(card: dict) -> None:
    """Draw what the model is, how good it is, what it goes by, and how a program asks it."""
    words = "It predicts {target} by {estimator}, trained on {trained} with {rows:,} rows."
    st.text(words.format(**card))
    st.text(f"Scores of models like it, on rows that these had not seen ({card['measured']}):")
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
    st.header("What matters most")
    gains = pd.Series(card["importance"]).clip(0)
    draw_bars(card, (gains / (gains.sum() or 1)).head(BARS))
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


if __name__ == "__main__":
    main()
else:  # the server: it answers for the API too if that is to be public; else nothing is below /api
    from starlette import applications, middleware, requests, responses, routing
    from streamlit.runtime import get_instance

    MAX_HELD_MB = 150  # of all visitors' uploads: they fit into 1 GB beside the rest
    UPLOAD_SECONDS = 600  # for all of a file to come; a phone that is gone may not say so

    class LimitUploads:
        """Refuse an upload while others fill the memory: each is held until it is predicted."""

        def __init__(self, app: Any):
            self.app, self.coming = app, 0  # bytes

        async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
            if scope.get("method") != "PUT":
                return await self.app(scope, receive, send)
            length = int(dict(scope["headers"]).get(b"content-length", MAX_HELD_MB * 2**20))
            visitors = get_instance().uploaded_file_mgr.file_storage.values()
            held = sum(len(file.data) for files in visitors for file in files.values())
            if self.coming + held + length > MAX_HELD_MB * 2**20:
                return await responses.Response("Too many files", 503)(scope, receive, send)
            self.coming += length
            try:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    await self.app(scope, receive, send)
            except (requests.ClientDisconnect, TimeoutError):
                await responses.Response("The file did not come", 408)(scope, receive, send)
            finally:
                self.coming -= length

    api: Any = applications.Starlette()
    if PUBLIC_API:
        from main_api import app as api
    app = st.App(
        __file__,
        routes=[routing.Mount(f"{BASE_PATH}/api", api)],
        middleware=[middleware.Middleware(LimitUploads)],
        lifespan=lambda _: api.router.lifespan_context(api),
    )

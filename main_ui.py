"""The page: asks the API what the model is, draws a form from its card, and shows the answers.

streamlit run main_ui.py --server.port 7860        # while main_api.py runs
"""

import io
import json
import math
import os
import pprint
import re
import shlex
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import streamlit as st

API_URL = os.environ.get("API_URL", f"http://127.0.0.1:{os.environ.get('API_PORT', '8001')}")
TIMEOUT_SECONDS = 10
FORM_COLUMNS = 3
UNFOLDED = 21  # features in sight; of more, the less important ones are folded away
BARS = 10  # classes or features in a chart; nobody compares more
WHAT_IF_POINTS = 60
CHUNK_ROWS = 1_000  # of a file in one request, so that the bar moves
MAX_FILE_ROWS, MAX_FILE_MB = 100_000, 50
SHOWN_ROWS = 1_000  # of a file on the screen; the download has all
MISSING = ["", "?", "-", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null"]


def call(path: str, body: dict | None = None) -> tuple[int, dict]:
    """Return the API's status, 200 or 422, and its answer; on all else say so and stop.

    No cache: a call takes milliseconds, and the model may change.
    """
    data = None if body is None else json.dumps(body).encode()
    request = Request(API_URL + path, data, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        if error.code == 422:
            return error.code, json.load(error)
        problem = "is busy" if error.code == 503 else f"answered with error {error.code}"
    except TimeoutError:
        problem = f"took longer than {TIMEOUT_SECONDS} seconds"
    except (OSError, ValueError):
        problem = "is not there: it may still be starting"
    st.error(f"The model {problem}. Please try again in a moment.")
    st.button("Try again", key="page:retry")
    st.stop()


def plain(text: str) -> str:
    """Return a name from the table so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~$:<>&])", r"\\\1", text)


def percent(probability: float) -> str:
    """Return a probability as a person reads it, never as a certainty."""
    if probability > 0.999:
        return "over 99.9 %"
    return "under 0.1 %" if probability < 0.001 else f"{probability * 100:.1f} %"


def rounded(value: float, scale: float) -> str:
    """Return value with the decimals that show two digits of scale."""
    decimals = max(0, 1 - math.floor(math.log10(scale))) if scale > 0 else 2
    return f"{value:,.{min(decimals, 12)}f}"


def bars(values: dict[str, float], labels: dict[str, str], about: str, full: float) -> None:
    """Draw the largest values as horizontal bars up to full, each with its label."""
    rows = sorted(values.items(), key=lambda item: -item[1])[:BARS]
    data = pd.DataFrame({"name": f"{n}: {labels[n]}", "value": value} for n, value in rows)
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    x = {"field": "value", "type": "quantitative", "axis": None, "scale": {"domain": [0, full]}}
    spec = {
        "mark": "bar",
        "encoding": {"y": y | {"axis": {"labelLimit": 300, "labelFontSize": 14}}, "x": x},
        "height": {"step": 28},
    }
    st.vega_lite_chart(data, spec, alt=f"{about}: {', '.join(data['name'])}")


def draw_field(f: dict, examples: list[dict]) -> object:
    """Draw the input of one feature and return what it holds, None for unknown."""
    name, key, missing = plain(f["name"]), f"_{f['name']}", f["nullable"]
    if f["type"] == "category":
        index = None if missing else f["choices"].index(f["default"])
        return st.selectbox(
            name, f["choices"], index, key=key, placeholder="unknown", bind="query-params"
        )
    if f["type"] == "boolean" and missing:
        words = {True: "yes", False: "no"}.get
        return st.selectbox(
            name, [True, False], None, words, key=key, placeholder="unknown", bind="query-params"
        )
    if f["type"] == "boolean":
        return st.toggle(name, f["default"], key=key, bind="query-params")
    low, high = f["minimum"], f["maximum"]
    exponent = math.floor(math.log10((high - low) / 20)) if high > low else 0
    if f["integer"]:
        style = {"step": max(1, 10**exponent), "format": "%d"}
    else:
        seen = [low, high, *(example["features"][f["name"]] or 0 for example in examples)]
        digits = max(len(repr(float(value)).partition(".")[2]) for value in seen)
        decimals = min(digits, max(0, 2 - exponent), 12)
        style = {"step": float(10.0**exponent), "format": f"%.{decimals}f"}
    return st.number_input(
        name,
        value=None if missing else f["default"],
        key=key,
        placeholder="unknown",
        help=f"{low:.10g} to {high:.10g} in training",
        bind="query-params",
        **style,
    )


def read_file(content: bytes) -> pd.DataFrame:
    """Return a CSV file as texts, with the names and the order that it has."""
    for encoding in ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    separator = max(",;\t|", key=text.partition("\n")[0].count)
    return pd.read_csv(io.StringIO(text), sep=separator, dtype=str, na_filter=False)


def check_file(table: pd.DataFrame, features: list[dict]) -> tuple[pd.DataFrame, pd.Series]:
    """Return the values to send, None for unknown, and what is wrong with each row, or ""."""
    values, problems = {}, pd.Series("", table.index)
    for f in features:
        name = f["name"]
        texts = table[name].str.strip() if name in table else pd.Series("", table.index)
        unknown = texts.isin(MISSING)
        if f["type"] == "number":
            column, kind = pd.to_numeric(texts.mask(unknown), errors="coerce"), "no number"
            column = column.where(np.isfinite(column))
        elif f["type"] == "boolean":
            column, kind = (
                texts.str.lower().map({"true": True, "false": False}),
                "not true or false",
            )
        else:
            column, kind = texts.where(texts.isin(f["choices"])), "none of the choices"
        wrong = column.isna() & ~unknown
        problems = problems.mask(wrong, problems + f"{name} is '" + texts + f"', {kind}. ")
        if not f["nullable"]:
            problems = problems.mask(unknown, problems + f"{name} is missing. ")
        values[name] = column.astype(object).where(column.notna(), None)
    return pd.DataFrame(values), problems.str.strip()


def score_file(values: pd.DataFrame, problems: pd.Series) -> pd.DataFrame:
    """Return the answer's columns for the rows without a problem, asked for chunk by chunk; add
    to problems what the API refuses."""
    good, answers = problems.index[problems == ""], [pd.DataFrame()]
    bar = st.progress(0.0, "Predicting")
    for start in range(0, len(good), CHUNK_ROWS):
        rows = good[start : start + CHUNK_ROWS]
        while len(rows):
            status, answer = call("/predict/batch", values.loc[rows].to_dict("list"))
            if status == 200:
                columns = {"prediction": answer["prediction"]}
                for label, probabilities in answer.get("probabilities", {}).items():
                    columns[f"probability of {label}"] = probabilities
                if "interval" in answer:
                    columns["low"], columns["high"] = zip(*answer["interval"])
                else:
                    columns["likely"] = [" or ".join(labels) for labels in answer["likely"]]
                columns["warnings"] = ["; ".join(sentences) for sentences in answer["warnings"]]
                answers.append(pd.DataFrame(columns, index=rows))
                break
            # the API names up to 20 rows: note why, and ask for the others again
            named = {e["loc"][-1]: e["msg"] for e in answer["detail"] if type(e["loc"][-1]) is int}
            named = named or dict.fromkeys(range(len(rows)), answer["detail"][0]["msg"])
            problems[rows[list(named)]] = list(named.values())
            rows = rows.delete(list(named))
        done = min(start + CHUNK_ROWS, len(good))
        bar.progress(done / len(good), f"{done:,} of {len(good):,} rows")
    bar.empty()
    return pd.concat(answers)


st.set_page_config(layout="wide")
status, card = call("/model")
st.set_page_config(card["title"])
features, examples = card["features"], card["examples"]
target, is_classification = plain(card["target"]), card["task"] == "classification"

st.title(plain(card["title"]))
st.markdown(plain(card["description"]))
left, right = st.columns([3, 2], gap="large")

# the form: filled from the address, from an example, or by the person
state = st.session_state
state.setdefault("page:asked", bool(st.query_params))


def fill_example() -> None:
    state["page:example"] = (state.get("page:example", -1) + 1) % len(examples)
    for name, value in examples[state["page:example"]]["features"].items():
        state[f"_{name}"] = value
    state["page:asked"] = True


with left:
    st.button("Try an example", key="page:try", on_click=fill_example)
    with st.form("page:form"):
        fields = {f["name"]: f for f in features}
        names = list(fields) if len(fields) <= UNFOLDED else list(card["importance"])
        boxes = [st.container()]
        if names[UNFOLDED:]:
            boxes.append(st.expander(f"{len(names) - UNFOLDED} more, which matter less"))
        row = {}
        for box, part in zip(boxes, (names[:UNFOLDED], names[UNFOLDED:])):
            for start in range(0, len(part), FORM_COLUMNS):
                for column, name in zip(box.columns(FORM_COLUMNS), part[start:]):
                    with column:
                        row[name] = draw_field(fields[name], examples)
        if st.form_submit_button("Predict", type="primary", key="page:predict"):
            state["page:asked"] = True
    row = {name: row[name] for name in fields}

# the answer
with right:
    if not state["page:asked"]:
        st.info("Fill in what you know and press Predict, or try an example.")
        status = None
    else:
        status, answer = call("/predict", row)
    if status == 422:
        for entry in answer["detail"]:
            st.error(plain(f"{' '.join(map(str, entry['loc'][1:]))}: {entry['msg']}"))
    if status == 200 and is_classification:
        prediction, probabilities = answer["prediction"], answer["probabilities"]
        st.metric(target, prediction)
        st.markdown(f"with a probability of **{percent(probabilities[prediction])}**")
        labels = {label: percent(p) for label, p in probabilities.items()}
        bars(probabilities, labels, "probabilities", 1)
        if len(answer["likely"]) > 1:
            sure = f"{card['uncertainty']['coverage']:.0%}"
            st.markdown(
                f"Likely: **{plain(' or '.join(answer['likely']))}**. In {sure} of such cases one of these is right."
            )
    elif status == 200:
        low, high = answer["interval"]
        value, low, high = (rounded(v, high - low) for v in (answer["prediction"], low, high))
        st.metric(target, value)
        sure = f"{card['uncertainty']['coverage']:.0%}"
        st.markdown(f"between **{low}** and **{high}** in {sure} of cases")
    if status == 200:
        for sentence in answer["warnings"]:
            st.warning(plain(sentence))
        for example in examples:
            if example["features"] == row:
                truth = example["target"]
                truth = truth if is_classification else f"{truth:,.10g}"
                st.success(
                    plain(f"This is a real row of the table: its {card['target']} was {truth}.")
                )

what_if, many_rows, about, programmers = st.tabs(
    ["What if", "Many rows", "About the model", "For programmers"]
)


@st.fragment
def draw_what_if() -> None:
    name = st.selectbox(
        "What if this were different?", list(card["importance"]), key="page:what-if"
    )
    f, here = fields[name], row[name]
    if f["type"] == "number":
        ends = [v for v in (f["minimum"], f["maximum"], here) if v is not None]
        values = np.linspace(min(ends), max(ends), WHAT_IF_POINTS)
        values = np.unique(values.round() if f["integer"] else values).tolist()
        x = {"field": "x", "type": "quantitative", "title": name, "scale": {"zero": False}}
        mark = {"type": "line", "point": len(values) < 20}
    else:
        values = f.get("choices", [False, True])
        x = {
            "field": "x",
            "type": "nominal",
            "title": name,
            "sort": None,
            "axis": {"labelAngle": -45},
        }
        mark = {"type": "point", "filled": True, "size": 80}
    status, answer = call(
        "/predict/batch", {n: [v] * len(values) for n, v in row.items()} | {name: values}
    )
    if status == 422:
        return st.error(plain(answer["detail"][0]["msg"]))
    lines = {card["target"]: answer["prediction"]}
    if is_classification:
        largest = sorted(answer["probabilities"].items(), key=lambda item: -max(item[1]))
        lines = dict(largest[:BARS])
    data = pd.DataFrame(lines, index=pd.Index(values, name="x")).reset_index()
    data = data.melt("x", var_name="line", value_name="y")
    y = {"field": "y", "type": "quantitative", "title": card["target"], "scale": {"zero": False}}
    if is_classification:
        y |= {"title": "probability", "axis": {"format": "%"}, "scale": {"domain": [0, 1]}}
    color = {"field": "line", "type": "nominal", "title": None, "legend": {"orient": "top"}}
    layers = [{"mark": mark, "encoding": {"y": y, "color": color if is_classification else {}}}]
    if here is not None:
        rule = {"type": "rule", "strokeDash": [4, 4], "color": "gray"}
        layers.append({"mark": rule, "encoding": {"x": {"datum": here}}})
    spec = {"encoding": {"x": x}, "layer": layers, "height": 300}
    st.vega_lite_chart(data, spec, alt=f"How the prediction changes with {name}")
    at = "unknown" if here is None else here
    st.caption(plain(f"All else as in the form; the dashed line is at {name} = {at}."))


with what_if:
    if status == 200:
        draw_what_if()
    else:
        st.info("Predict first, then see here what would change the answer.")


@st.fragment
def draw_many_rows() -> None:
    st.markdown(
        f"A CSV file with a column for each feature, up to {MAX_FILE_ROWS:,} rows and "
        f"{MAX_FILE_MB} MB. Its other columns stay as they are."
    )
    template = pd.DataFrame([example["features"] for example in examples]).to_csv(index=False)
    st.download_button(
        "Download a template", template, "template.csv", on_click="ignore", key="page:template"
    )
    file = st.file_uploader("Your file", "csv", max_upload_size=MAX_FILE_MB, key="page:file")
    if file is None:
        return
    try:
        table = read_file(file.getvalue())
    except ValueError as error:  # pandas' ParserError is one
        st.error(plain(f"This is no table: {error}"))
        return
    absent = [f["name"] for f in features if f["name"] not in table and not f["nullable"]]
    if absent:
        st.error(plain(f"The file has no column {', '.join(absent)}. The template has them all."))
        return
    if not 0 < len(table) <= MAX_FILE_ROWS:
        st.error(f"The file has {len(table):,} rows; 1 to {MAX_FILE_ROWS:,} can be predicted.")
        return
    values, problems = check_file(table, features)
    wrong = problems[problems != ""]
    if len(wrong):
        st.warning(f"{len(wrong):,} of {len(table):,} rows can't be predicted:")
        shown = wrong[:SHOWN_ROWS].rename(lambda i: i + 1).rename_axis("row").rename("problem")
        st.dataframe(shown.reset_index(), hide_index=True)
    good = len(table) - len(wrong)
    if st.button(f"Predict {good:,} rows", key="page:score", type="primary", disabled=not good):
        answers = score_file(values, problems).reindex(table.index)
        answers["problem"] = problems
        while set(answers) & set(table):
            answers = answers.add_suffix(" (model)")
        state["page:result"] = file.file_id, pd.concat([table, answers], axis=1)
    scored, result = state.get("page:result", (None, None))
    if scored == file.file_id:
        st.dataframe(result[:SHOWN_ROWS], hide_index=True)
        text = result.to_csv(index=False)
        st.download_button(
            "Download the result", text, "predictions.csv", on_click="ignore", key="page:result-csv"
        )


with many_rows:
    draw_many_rows()

with about:
    st.markdown(
        f"It is a {card['estimator']} that predicts **{target}** from {len(features)} features, "
        f"trained on {card['rows']:,} rows."
    )
    score, base = card["metrics"], card["baseline"]
    if is_classification:
        st.markdown(
            f"On 100 rows it has not seen it is right in about **{100 * score['accuracy']:.0f}**; "
            f"always naming the most frequent label is right in {100 * base['accuracy']:.0f}."
        )
    else:
        error, guess = score["mean_absolute_error"], base["mean_absolute_error"]
        st.markdown(
            f"On rows it has not seen it is off by **{rounded(error, error)}** on average; always "
            f"naming the mean is off by {rounded(guess, error)}."
        )
    scores = pd.DataFrame({"model": score, "dummy": base}).map("{:.4g}".format)
    st.table(scores.rename(lambda key: key.replace("_", " ")))
    st.subheader("What matters most")
    importance = {name: max(0.0, value) for name, value in card["importance"].items()}
    total = sum(importance.values()) or 1
    shares = {name: f"{100 * value / total:.0f} %" for name, value in importance.items()}
    bars(importance, shares, "importance", max(importance.values()) or 1)
    st.subheader("What it was trained on")
    ranges = {
        f["name"]: f"{f['minimum']:,.10g} to {f['maximum']:,.10g}"
        if f["type"] == "number"
        else ", ".join(f.get("choices", ["true", "false"]))
        for f in features
    }
    st.dataframe(pd.DataFrame(ranges.items(), columns=["feature", "range"]), hide_index=True)
    for entry in card["dropped"]:
        what = entry.get("column") or f"{entry['rows']:,} rows"
        st.markdown(f"- left out: {plain(what)} ({plain(entry['reason'])})")
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    st.caption(f"Trained with {versions}. SHA-256 of the file: {card['sha256']}")

with programmers:
    body, url = json.dumps(row, ensure_ascii=False), f"{API_URL}/predict"
    st.markdown("The API answers on the machine or in the container where it runs.")
    st.code(
        f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        "bash",
        wrap_lines=True,
    )
    st.code(
        "import json\nfrom urllib.request import Request, urlopen\n\n"
        f"row = {pprint.pformat(row, sort_dicts=False)}\n"
        'headers = {"Content-Type": "application/json"}\n'
        f'request = Request("{url}", json.dumps(row).encode(), headers)\n'
        "print(json.load(urlopen(request)))",
        "python",
    )
    if status:
        st.code(json.dumps(answer, indent=2, ensure_ascii=False), "json")

"""Fit a scikit-learn model to a table, measure it, and save it with a card that describes it.

    python train.py                              # scikit-learn's wine data, a few seconds
    python train.py sales.csv --target price     # your table: a CSV file with a header row

For data from elsewhere replace load_table(), for another estimator replace build_model().
Left out: what dates, free text and rows that belong together (visits of one patient) could tell.
"""

import argparse
import csv
import difflib
import hashlib
import io
import math
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

# boosting's threads wait for each other at each step: on a shared machine, slower than one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")

import joblib
import numpy as np
import pandas as pd
from sklearn import metrics
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_wine
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

MODEL_PATH = Path(os.environ.get("MODEL_PATH", "model.joblib"))
MISSING = ["", "?", "-", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null"]
MIN_ROWS = 10  # fewer say nothing about a model
FOLDS = 5  # of the cross-validation; a class needs as many rows
MAX_CLASSES = 100
MAX_GUESSED_CLASSES = 10  # different whole numbers in the target; more are a quantity
MAX_CHOICES = 200  # texts in one column; more make a list that nobody scrolls
MAX_NUMBER = 1e30  # as in main_api.py
MAX_COMPARED_ROWS = 50_000  # to cross-validate; the model kept is then fitted to all rows
CALIBRATION_ROWS = 20_000  # kept out of a large table's fit; 0.2 % exact
IMPORTANCE_ROWS = 1_000  # of each fold, enough to rank the features
COVERAGE = 0.9  # the share of truths that intervals and sets of likely labels hold

SIGN = r"[-+]?[$€£¥₹]?[-+]? ?"
NUMBER = {  # decimal mark: a number with thousands separators, as people write it
    ".": rf"{SIGN}(\d{{1,3}}([,'\s]\d{{3}})+|\d+|(?=\.\d))(\.\d*)? ?[$€£¥₹%]?",
    ",": rf"{SIGN}(\d{{1,3}}([.'\s]\d{{3}})+|\d+|(?=,\d))(,\d*)? ?[$€£¥₹%]?",
}
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
DATE = rf"\d{{1,4}}([-/.])\d{{1,2}}\1\d{{1,4}}.*|\d{{1,2}}:\d\d.*|(?=.*\d).*(?i:{MONTHS}).*"
IDENTIFIER = r"(?i:(\b|_)(id|index|key)$)|[a-z]I[Dd]$"  # how a column of identifiers is called


def refuse(message: str) -> NoReturn:
    """Say in one line what is wrong and what to do, and end with exit code 2."""
    print(f"train.py: {message}", file=sys.stderr)
    sys.exit(2)


def load_table(path: str | None) -> pd.DataFrame:
    """Return the table: columns of any type, gaps as NaN or None. Replace it for other sources.

    `attrs` may hold name, title and description for people. Without a path it is scikit-learn's
    wine data, 178 rows of 13 measurements, with the names of the original publication.
    """
    if path is None:
        wine = load_wine(as_frame=True)
        table = wine.data.rename(columns=lambda name: name.replace("_", " "))
        table["wine"] = np.array(["Barolo", "Grignolino", "Barbera"])[wine.target]
        table.attrs = {
            "name": "wine",
            "title": "Barolo, Grignolino or Barbera?",
            "description": "Tells three wines of Piedmont apart by 13 measurements "
            "(M. Forina et al., PARVUS, 1988).",
        }
        return table
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        refuse(f"'{path}' can't be read ({error.strerror}): give the path of a CSV file")
    is_utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ["utf-16"] if is_utf16 else ["utf-8-sig", "cp1252", "latin-1"]:
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError:
            text = "\0"
    if "\0" in text:
        refuse(f"'{path}' is not a text file: export the table as CSV")
    if not text.strip():
        refuse(f"'{path}' is empty: give a table with a header row")
    try:
        # the separator that splits the header, and the first rows into as many fields
        head, best = text[:100_000].splitlines()[:200], (0.0, 1)
        for mark in ",;\t|":
            rows = [row for row in csv.reader(head, delimiter=mark) if row]
            fit = np.mean([len(row) == len(rows[0]) for row in rows]), len(rows[0])
            if len(rows[0]) > 1 and fit > best:
                best, separator, header = fit, mark, rows[0]
        if best == (0.0, 1):
            refuse(f"'{path}' has one column: a table needs a target and at least one feature")
        table = pd.read_csv(
            io.StringIO(text), sep=separator, header=None, dtype=str, na_filter=False
        )
    except (pd.errors.ParserError, csv.Error) as error:
        reason = str(error).replace("Error tokenizing data. C error: ", "").strip()
        refuse(f"'{path}' is not a table: {reason}. Correct that line")
    table = table[1:].reset_index(drop=True).set_axis(header, axis=1)
    table.attrs = {"name": Path(path).stem}
    return table


def name_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Keep every name as it is, but give an empty one its place and a repeated one a number."""
    names = [str(n) if str(n).strip() else f"column {i}" for i, n in enumerate(table.columns, 1)]
    for i, name in enumerate(names):
        repeat = 2
        while names[i] in names[:i]:
            names[i], repeat = f"{name} ({repeat})", repeat + 1
    return table.set_axis(names, axis=1)


def to_texts(column: pd.Series) -> pd.Series:
    """Return stripped texts, gaps as NaN; a column of numbers comes back as float64."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.astype(float)
    texts = column.astype("str").str.strip().where(column.notna())
    return texts.mask(texts.isin(MISSING))


def to_numbers(texts: pd.Series, mark: str) -> pd.Series:
    """Return float64, NaN for a gap and for what is no number with this decimal mark."""
    if pd.api.types.is_float_dtype(texts):
        return texts
    if texts.str.match(r"-?0\d").any():  # 007 is a code
        return pd.Series(np.nan, texts.index)
    numbers = pd.to_numeric(texts, errors="coerce").astype(float)
    if mark == "," or numbers.count() < texts.count():
        texts = texts.where(texts.str.fullmatch(NUMBER[mark], na=False))
        digits = texts.str.replace(rf"[^\d{mark}+-]", "", regex=True).str.replace(mark, ".")
        numbers = pd.to_numeric(digits, errors="coerce").astype(float)
    return numbers


def decimal_mark(table: pd.DataFrame) -> str:
    """Return the decimal mark with which more columns read as numbers: "." unless "," wins."""
    heads = [to_texts(table[name][:1000]) for name in table]
    readable = {m: sum(to_numbers(h, m).count() == h.count() > 0 for h in heads) for m in ".,"}
    return max(readable, key=readable.get)


def refuse_mixed(texts: pd.Series, numbers: pd.Series) -> None:
    """Refuse a column of numbers in which a text is none, or too large to compute with."""
    for row in texts.index[texts.notna() & ~(numbers.abs() <= MAX_NUMBER)][:1]:
        refuse(
            f"column '{texts.name}' holds numbers, but '{texts[row]}' in data row {row + 1}: "
            "correct such cells, empty them, or take the column out"
        )


def read_column(column: pd.Series, mark: str) -> tuple[str, pd.Series | str]:
    """Return ("number" or "boolean", float64) or ("category", categorical), gaps as NaN,
    or ("dropped", the reason)."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return "dropped", "dates"
    texts = to_texts(column)
    known = texts.dropna()
    levels, rows = known.nunique(), len(known)
    if levels == 0:
        return "dropped", "empty"
    if levels == 1 and rows == len(texts):
        return "dropped", f"always '{known.iloc[0]}'"
    numbers = to_numbers(texts, mark)
    if numbers.count() == rows:
        refuse_mixed(texts, numbers)
        if levels == len(texts) and (numbers % 1 == 0).all():
            named = re.search(IDENTIFIER, str(column.name))
            if named or numbers.max() - numbers.min() < rows:
                return "dropped", "an identifier: whole numbers, all different"
        return "number", numbers
    if known.str.lower().isin(["true", "false"]).all():
        return "boolean", known.str.lower().eq("true").astype(float).reindex(texts.index)
    dates = pd.to_datetime(known[known.str.fullmatch(DATE)][:1000], errors="coerce", format="mixed")
    if known.str.fullmatch(DATE).all() and dates.notna().all():
        return "dropped", "dates"
    offered = min(MAX_CHOICES, rows // 2)
    mostly_numbers = numbers.count() >= 0.9 * rows
    if levels <= (20 if mostly_numbers else offered):
        return "category", texts.astype(pd.CategoricalDtype(sorted(known.unique())))
    if mostly_numbers:
        refuse_mixed(texts, numbers)
    if known.str.split().str.len().mean() > 4:
        return "dropped", "free text"
    if levels == rows:
        return "dropped", "an identifier: every text is different"
    return "dropped", f"{levels:,} different texts, more than the {offered} a form can offer"


def read_features(table: pd.DataFrame, mark: str) -> tuple[pd.DataFrame, list[dict], list[dict]]:
    """Return the features' values, their part of the card, and the columns left out and why."""
    columns, features, dropped = {}, [], []
    for name in table:
        kind, values = read_column(table[name], mark)
        if kind == "dropped":
            dropped.append({"column": name, "reason": values})
            continue
        feature = {"name": name, "type": kind, "nullable": bool(values.isna().any())}
        if kind == "number":
            integer = bool((values.dropna() % 1 == 0).all() and values.abs().max() < 2**53)
            cast = int if integer else float
            feature["minimum"], feature["maximum"] = cast(values.min()), cast(values.max())
            feature["default"], feature["integer"] = cast(values.median()), integer
        elif kind == "category":
            feature["choices"] = list(values.cat.categories)
            feature["default"] = values.mode()[0]
        else:
            feature["default"] = bool(values.mode()[0])
        columns[name] = values
        features.append(feature)
    return pd.DataFrame(columns, index=table.index), features, dropped


def read_target(column: pd.Series, mark: str, task: str | None) -> tuple[str, pd.Series]:
    """Return the task, guessed where it is None, and the target: float64, or labels as texts."""
    texts = to_texts(column)
    numbers = to_numbers(texts, mark)
    if task is None:
        quantity = numbers.nunique() > MAX_GUESSED_CLASSES or (numbers.dropna() % 1 != 0).any()
        task = (
            "regression" if quantity and numbers.count() > texts.count() / 2 else "classification"
        )
    if task == "classification":
        spell = (lambda number: f"{number:.15g}") if texts.dtype == float else str
        return task, texts.map(spell, na_action="ignore")
    refuse_mixed(texts, numbers)
    return task, numbers


def build_model(task: str, X: pd.DataFrame) -> dict | BaseEstimator:
    """Return the estimators to compare, by name. Replace it to return others, or just one.

    X has the table's column names: float64 for numbers and booleans, categorical for texts.
    A classifier needs predict_proba.
    """
    categories = list(X.select_dtypes("category"))
    numbers = [name for name in X if name not in categories]
    steps = [StandardScaler()]
    if X[numbers].isna().any(axis=None):
        steps.insert(0, SimpleImputer(strategy="median", add_indicator=True))
    if categories:
        one_hot = OneHotEncoder(handle_unknown="ignore")
        steps = [make_column_transformer((make_pipeline(*steps), numbers), (one_hot, categories))]
    if task == "regression":
        boosting = HistGradientBoostingRegressor(categorical_features="from_dtype", random_state=0)
        return {"ridge regression": make_pipeline(*steps, Ridge()), "gradient boosting": boosting}
    boosting = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    linear = make_pipeline(*steps, LogisticRegression(max_iter=1000))
    return {"logistic regression": linear, "gradient boosting": boosting}


def answers_of(model, X: pd.DataFrame) -> np.ndarray:
    """Return a classifier's probabilities (rows, classes), a regressor's predictions (rows,)."""
    return model.predict_proba(X) if is_classifier(model) else model.predict(X)


def score(y: np.ndarray, answers: np.ndarray, classes: np.ndarray | None) -> dict[str, float]:
    """Return scores by scikit-learn's names; the first is the loss that candidates compete in."""
    if classes is None:
        return {
            "root_mean_squared_error": metrics.root_mean_squared_error(y, answers),
            "mean_absolute_error": metrics.mean_absolute_error(y, answers),
            "r2": metrics.r2_score(y, answers),
        }
    labels = classes[answers.argmax(axis=1)]
    return {
        "log_loss": metrics.log_loss(y, answers, labels=classes),
        "accuracy": metrics.accuracy_score(y, labels),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, labels),
    }


def cross_validate(model, X: pd.DataFrame, y: np.ndarray, folds: list) -> tuple[list, np.ndarray]:
    """Return a clone for each fold, fitted to the other folds, and its answers for that fold."""
    clones = [clone(model).fit(X.iloc[fit], y[fit]) for fit, _ in folds]
    answers = [answers_of(each, X.iloc[test]) for each, (_, test) in zip(clones, folds)]
    places = np.argsort(np.concatenate([test for _, test in folds]))
    return clones, np.concatenate(answers)[places]


def conformal_quantile(y: np.ndarray, answers: np.ndarray, classes: np.ndarray | None) -> float:
    """Return the error that COVERAGE of new rows stay within, from answers for unseen rows.

    The error is |y - prediction| or 1 - probability of y. Split conformal prediction, as in
    Angelopoulos and Bates, "A Gentle Introduction to Conformal Prediction", 2021.
    """
    if classes is None:
        errors = np.abs(y - answers)
    else:
        errors = 1 - answers[np.arange(len(y)), np.searchsorted(classes, y)]
    rank = min(len(errors), math.ceil((len(errors) + 1) * COVERAGE))
    return float(np.sort(errors)[rank - 1])


def measure_importance(clones: list, X, y, folds: list, classes) -> dict[str, float]:
    """Return how much shuffling each feature worsens the loss on unseen rows, largest first."""

    def gain(model, X, y):
        return -next(iter(score(y, answers_of(model, X), classes).values()))

    means = []
    for model, (_, test) in zip(clones, folds):
        rows = test[:IMPORTANCE_ROWS]
        result = permutation_importance(
            model, X.iloc[rows], y[rows], scoring=gain, n_repeats=1, random_state=0
        )
        means.append(result.importances_mean)
    mean = np.mean(means, axis=0)
    return {X.columns[i]: float(mean[i]) for i in np.argsort(-mean, kind="stable")}


def pick_examples(X: pd.DataFrame, y: pd.Series, features: list[dict]) -> list[dict]:
    """Return up to five real rows, of different classes or from low to high, as JSON has them."""
    groups = y if y.dtype != float else pd.qcut(y.rank(method="first"), 3, labels=False)
    examples = []
    for row in groups.drop_duplicates().index[:5]:
        values = {}
        for f in features:
            value = X.at[row, f["name"]]
            cast = {"category": str, "boolean": bool, "number": int if f.get("integer") else float}
            values[f["name"]] = None if pd.isna(value) else cast[f["type"]](value)
        examples.append({"features": values, "target": y[row]})
    return examples


def save(model, card: dict) -> str:
    """Write {"model", "card"} beside MODEL_PATH, then rename; return the file's SHA-256."""
    new = MODEL_PATH.with_name(f".{MODEL_PATH.name}.{os.getpid()}")
    try:
        joblib.dump({"model": model, "card": card}, new, compress=3)
        new.replace(MODEL_PATH)
    except OSError as error:
        refuse(f"'{MODEL_PATH}' can't be written ({error.strerror}): set MODEL_PATH")
    finally:
        new.unlink(missing_ok=True)
    return hashlib.sha256(MODEL_PATH.read_bytes()).hexdigest()


def compared_rows(y: pd.Series, task: str) -> int:
    """Return how many rows to compare on: fewer of many classes, each of which gets its trees."""
    if task == "regression":
        return MAX_COMPARED_ROWS
    return max(20_000, 2 * MAX_COMPARED_ROWS // max(2, y.nunique()))


def keep_rows(y: pd.Series, task: str) -> tuple[pd.Series, list[dict]]:
    """Return the target of the rows that something can be learnt from, and why others are out."""
    dropped = []
    if y.isna().any():
        dropped.append({"rows": int(y.isna().sum()), "reason": f"'{y.name}' is empty"})
        y = y.dropna()
    if task == "classification":
        least = max(FOLDS, 2 * FOLDS * len(y) // compared_rows(y, task))
        for label, count in y.value_counts().items():
            if count < least:
                reason = f"'{label}' has fewer than the {least} rows that {FOLDS} folds need"
                dropped.append({"rows": int(count), "reason": reason})
                y = y[y != label]
        if not 2 <= y.nunique() <= MAX_CLASSES:
            refuse(
                f"target '{y.name}' has {y.nunique()} classes with {least} rows or more: a "
                f"classification needs 2 to {MAX_CLASSES}; is --target or --task another?"
            )
    if len(y) < MIN_ROWS:
        refuse(f"{len(y)} usable rows: give {MIN_ROWS} or more where '{y.name}' is known")
    if y.nunique() == 1:
        refuse(f"target '{y.name}' is always {y.iloc[0]}: there is nothing to learn")
    return y, dropped


def print_columns(X: pd.DataFrame, features: list[dict], dropped: list[dict]) -> None:
    """Print what each column is, and what is left out."""
    names = [d.get("column") or f"{d['rows']:,} rows" for d in dropped]
    wide = max(map(len, [*X.columns, *names]), default=0)
    for f in features:
        what = f"{f['minimum']:g} to {f['maximum']:g}" if f["type"] == "number" else ""
        what = ", ".join(f.get("choices", [what]))
        gaps = f"   {X[f['name']].isna().mean():.0%} gaps" if f["nullable"] else ""
        kind = "whole number" if f.get("integer") else f["type"]
        print(f"  {f['name']:{wide}}  {kind:12}  {what[:60]}{gaps}")
    for name, d in zip(names, dropped):
        print(f"  {name:{wide}}  left out: {d['reason']}")


def compare(models: dict, X: pd.DataFrame, y: np.ndarray, classes, folds: list) -> dict[str, tuple]:
    """Return each model's scores, clones and answers for rows it has not seen; print the scores."""
    results = {}
    for name, model in models.items():
        if classes is not None and not hasattr(model, "predict_proba"):
            refuse(f"the {name} has no predict_proba: wrap it in CalibratedClassifierCV")
        started = time.perf_counter()
        clones, answers = cross_validate(model, X, y, folds)
        scores = score(y, answers, classes)
        results[name] = scores, clones, answers
        text = "   ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in scores.items())
        print(f"  {name:20} {text}   ({time.perf_counter() - started:.1f} s)", flush=True)
    return results


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", nargs="?", help="a CSV file; left out: the wine data")
    parser.add_argument("--target", help="the column to predict; left out: the last one")
    parser.add_argument("--task", choices=["classification", "regression"])
    parser.add_argument("--title", help="the page's heading")
    options = parser.parse_args()

    # read the table and set the target apart
    table = load_table(options.table)
    about = table.attrs
    table = name_columns(table).reset_index(drop=True)
    target = options.target or table.columns[-1]
    if target not in table:
        nearest = difflib.get_close_matches(target, table.columns, n=1, cutoff=0)
        refuse(f"no column '{target}': did you mean --target '{nearest[0]}'?")
    mark = decimal_mark(table)
    task, y = read_target(table.pop(target), mark, options.task)
    overrides = "" if options.task else " (--task overrides)"
    print(f"{len(y):,} rows, {table.shape[1] + 1} columns; {task} of '{target}'{overrides}")

    # decide what each row and column is
    y, dropped = keep_rows(y, task)
    X, features, columns = read_features(table.loc[y.index], mark)
    dropped += columns
    print_columns(X, features, dropped)
    if not features:
        refuse("no column is left to predict from: the lines above say why")

    # compare by cross-validation with the dummy, of a large table on a part
    classes = None if task == "regression" else np.unique(y.to_numpy(str))
    values = y.to_numpy(float if classes is None else str)
    rows, others, most = np.arange(len(y)), np.arange(0), compared_rows(y, task)
    if len(y) > most:
        groups = None if classes is None else values
        rows, others = train_test_split(rows, train_size=most, stratify=groups, random_state=0)
    some, known = X.iloc[rows], values[rows]
    print(f"\ncross-validated on {len(rows):,} rows, {FOLDS} folds")
    dummy, splitter = (
        (DummyRegressor(), KFold) if classes is None else (DummyClassifier(), StratifiedKFold)
    )
    folds = list(splitter(FOLDS, shuffle=True, random_state=0).split(some, known))
    built = build_model(task, X)
    built = built if isinstance(built, dict) else {type(built).__name__: built}
    results = compare({"dummy": dummy, **built}, some, known, classes, folds)
    losses = {name: next(iter(scores.values())) for name, (scores, _, _) in results.items()}
    best = min(built, key=losses.get)
    if losses[best] > 0.99 * losses["dummy"]:
        print(f"  note: hardly better than the dummy; these columns say little about '{target}'")

    # fit the best to all rows; a large table can spare some to measure the uncertainty on
    print(f"keeping the {best}: measuring what matters", flush=True)
    scores, clones, answers = results[best]
    importance = measure_importance(clones, some, known, folds, classes)
    spared = others[:CALIBRATION_ROWS] if len(others) >= CALIBRATION_ROWS else others[:0]
    rows = np.setdiff1d(np.arange(len(y)), spared)
    print(f"fitting it to {len(rows):,} rows", flush=True)
    model = clone(built[best]).fit(X.iloc[rows], values[rows])
    if len(spared):
        known, answers = values[spared], answers_of(model, X.iloc[spared])
    quantile = conformal_quantile(known, answers, classes)

    # describe and save
    packages = ("scikit-learn", "numpy", "pandas", "joblib")
    card = {
        "name": about.get("name", "table"),
        "title": options.title or about.get("title", f"Predict {target}"),
        "description": about.get("description", f"Predicts {target} from {X.shape[1]} columns."),
        "task": task,
        "target": target,
        **({} if classes is None else {"classes": classes.tolist()}),
        "features": features,
        "estimator": best,
        "metrics": scores,
        "baseline": results["dummy"][0],
        "importance": importance,
        "uncertainty": {"coverage": COVERAGE, "quantile": quantile},
        "examples": pick_examples(X, y, features),
        "rows": len(rows),
        "dropped": dropped,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }
    sha256 = save(model, card)
    size, seconds = MODEL_PATH.stat().st_size, time.perf_counter() - started
    print(f"saved {MODEL_PATH}: {size:,} bytes, sha256 {sha256}, {seconds:.1f} s in all")


if __name__ == "__main__":
    main()

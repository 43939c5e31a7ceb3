"""The text of `jepa evaluate` fits 80 columns, whatever the scores are."""

import copy
import io
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.report.text import (
    COLUMN_TITLES,
    ROW_TITLES,
    as_text,
    energy_trace_table,
    saccade_retrieval_table,
    score_table,
)
from jepa.report.verdict import verdict

PROTOCOL = {
    "±": "standard error for this number of test images; with 10% and 1% labels, standard deviation of five draws"
}
SCORES = {"knn": 100.0, "linear": 100.0, "linear_last4": 100.0, "linear_10pc": 100.0, "linear_1pc": 100.0}
WIDE = (
    SCORES | {f"{key}_error": 10.1 for key in SCORES} | {"rankme": 16384.0, "dimension": 123.4, "dimension_error": 10.2}
)
USUAL = dict.fromkeys(SCORES, 85.8) | {f"{key}_error": 0.3 for key in SCORES}
USUAL |= {"rankme": 1120.3, "dimension": 12.3, "dimension_error": 0.2}
ROWS = ("trained", "context", *ROW_TITLES)
RETRIEVAL: dict[str, Any] = {
    "fixations": 32,
    "images": 512,
    "lengths": [0.1, 0.2, 0.3, 0.4, 0.5],
    "errors": {name: [0.25, 1.0, 3.5, 12.25, 1e6] for name in ("prediction", "shuffled", "no change")},
    **{name: {"top1": 100.0, "mrr": 1.0} for name in ("same image", "shuffled", "across")},
    "movement_r2": {name: {key: {"mean": -0.5} for key in ("linear", "mlp")} for name in ("trained", "untrained")},
    "averaged_fixations": {name: {"1": 100.0, "16": 100.0, "16_error": 10.1} for name in ("trained", "untrained")},
}


def result(scores: dict[str, float] = USUAL, rows: tuple[str, ...] = ROWS, **more: Any) -> dict[str, Any]:
    """Return the contents of an evaluation.json."""
    return {
        **{row: dict(scores) for row in rows},
        "name": "demo",
        "encoders": ["target", "context"] if "context" in rows else ["encoder"],
        "step": 1_000_000,
        "steps": 1_000_000,
        "train_seconds": 123456.7,
        "evaluation_seconds": 1234.5,
        "data": {"source": "sample", "train": 10_000, "test": 10_000, "split": "train to test"},
        "protocol": PROTOCOL,
        **more,
    }


def is_narrow(text: str) -> bool:
    return all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("scores", [USUAL, WIDE])
@pytest.mark.parametrize("rows", [ROWS, ("trained", "untrained", "pixels")])
def test_the_output_fits_80_columns(scores, rows, encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    energy = {name: [1e6 / (step + 1) for step in range(13)] for name in ("total", "attention", "hopfield")}
    text = as_text(
        result(
            scores,
            rows,
            energy=energy | {"images": 500, "falling": 100.0},
            saccades=RETRIEVAL,
            left_out="the correlation dimension: " + "there are too few images; " * 5,
            notes=["the images of two classes " * 6],
            unreadable=["images/with a long name.png: it is truncated and cannot be decoded " * 2] * 3,
        ),
        "runs/demo",
    )
    assert is_narrow(text)
    assert encoding == "utf-8" or text.isascii()


def test_all_columns_are_shown_for_usual_scores():
    text = score_table(result(USUAL))
    header, *rows = text.split("\n\n")[0].splitlines()
    assert header.split() == ["kNN", "linear", "last", "4", "10%", "1%", "RankMe", "dim."]
    assert [row.split()[0] for row in rows] == [*ROWS[:4], "PCA", *ROWS[5:]]
    assert "Left out" not in text
    meanings = " ".join(text.split("\n\n")[1].split())
    for title in ("trained = trained (target encoder)", "pixels = raw pixels", "supervised = supervised (same arch"):
        assert title in meanings
    for title in ("last 4 = linear probe on the last", "10% = linear probe with 10%", "dim. = correlation dimension"):
        assert title in meanings


def test_columns_that_do_not_fit_are_named():
    text = score_table(result(WIDE))
    header = text.splitlines()[0]
    assert "kNN" in header
    assert "last 4" not in header
    assert "Left out to fit: last 4" in text
    assert "last 4 = linear probe" not in text


numbers = st.floats(0, 100) | st.sampled_from([0.0, 100.0, 1120.3, 16384.0])


@given(
    rows=st.lists(st.sampled_from(ROWS[1:]), unique=True),
    keys=st.lists(st.sampled_from(list(COLUMN_TITLES)), unique=True, min_size=1),
    values=st.lists(numbers, min_size=14, max_size=14),
    name=st.text("abcdefghij", min_size=1, max_size=30),
)
def test_any_scores_fit(rows, keys, values, name):
    scores = {key: values[i] for i, key in enumerate(keys)} | {f"{key}_error": values[-i] for i, key in enumerate(keys)}
    scores.pop("rankme_error", None)
    given_result = result(scores, ("trained", *rows)) | {name: scores, "encoders": ["target", name]}
    text = score_table(given_result)
    table = text.partition("\n\n")[0].splitlines()
    assert is_narrow(text)
    assert len({len(line) for line in table}) == 1
    assert len(table) == 1 + len({"trained", name, *rows} - {"context"}) + ("context" in rows and name == "context")


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=200))
def test_energies_are_one_row_per_step(energies):
    table = energy_trace_table(dict.fromkeys(("total", "attention", "hopfield"), energies)).splitlines()
    assert is_narrow("\n".join(table))
    assert len(table) == 1 + min(len(energies), 16)
    assert [int(line.split()[0]) for line in (table[1], table[-1])] == [0, len(energies) - 1]


@given(st.lists(st.floats(0, 1e30) | st.just(math.nan), min_size=5, max_size=5))
def test_saccade_errors_fit(errors):
    retrieval = copy.deepcopy(RETRIEVAL) | {"errors": dict.fromkeys(RETRIEVAL["errors"], errors)}
    assert is_narrow(saccade_retrieval_table(retrieval))


def test_paths_and_commands_are_not_broken():
    path = "/home/someone/a folder with a name of several words/and another one of them/runs/demo"
    text = as_text(result(name="saccade-demo"), path)
    assert f"{path}." in text.splitlines()
    assert text.endswith("\n    jepa train saccade-cifar10")


def test_the_verdict_stands_beside_the_reason_why_pixels_are_strong():
    scores = result()
    scores["pixels"] = {key: value + 5 for key, value in USUAL.items()}
    text = as_text(scores, "runs/demo")
    words = " ".join(text.split())
    assert "Raw pixels score higher than the trained encoder" in verdict(scores)
    assert f"{verdict(scores)} Raw pixels are a strong baseline" in words


def test_names_with_control_characters_do_not_break_the_lines():
    scores = result(notes=["a\nb\x1b[31m"])
    assert r"Note: a\nb\x1b[31m." in as_text(scores, "runs/demo")

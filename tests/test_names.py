"""Names of files and classes are printed, written and drawn without control characters, and otherwise literally."""

import io
import json
import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jepa.cli import main
from jepa.data import SplitIndex, open_source
from jepa.evaluate import evaluate_run
from jepa.evaluation_run import EvaluationRun
from jepa.files import printable
from jepa.report.compare import compare
from jepa.report.figures import draw, save
from jepa.report.html import write_report
from jepa.report.style import literal
from jepa.report.text import as_text
from jepa.train import train
from tests.conftest import tiny_config
from tests.zoo import photo

ESCAPES = "\x1b[31m\x07\n\r\u202e\u2066\x9b\udcff"
LITERAL = [r"$\frac{x}$", "100% <b>&amp;<i> {0}", "_private", r"a\b $1"]


def raw_characters(text: str) -> set[str]:
    """Return the characters that a terminal would interpret, other than newlines."""
    return {character for character in text if not character.isprintable() and character != "\n"}


def test_control_characters_are_escaped_and_others_kept():
    assert printable("a\x1b[31mb\n") == r"a\x1b[31mb\n"
    assert printable("\u202eevil\udc80") == r"\u202eevil\udc80"
    assert printable("a\nb\x07", keep="\n") == "a\nb\\x07"
    for text in ("ünïcode ✓", "日本\u3000語", "a\u00a0b", "👩\u200d👩\u200d👧", "می\u200cخواهم", "C:\\new", *LITERAL):
        assert printable(text) == text
    assert printable(ESCAPES).isprintable()


def test_names_of_an_index_are_printable(tmp_path):
    image = tmp_path / f"x{ESCAPES}.png"
    photo().save(image)
    index = SplitIndex.from_files([image, b"bytes"], [0, 1], [f"a{ESCAPES}", "b"])
    assert all(name.isprintable() for name in (*index.classes, index.files.name(0)))
    assert index.files.read(0) == image.read_bytes()
    folder = tmp_path / "folder"
    for name in (b"a\x1b[2J", b"b\xff\n"):
        (folder / os.fsdecode(name)).mkdir(parents=True)
        with (folder / os.fsdecode(name) / os.fsdecode(b"\x1b]0;x\x07\xfe.png")).open("wb") as file:
            photo().save(file, "PNG")
    index = open_source(str(folder)).open("train")
    assert sorted(index.classes) == [r"a\x1b[2J", r"b\udcff\n"]
    assert all(index.files.name(i).isprintable() for i in range(2))
    assert all(index.files.read(i) for i in range(2))


@pytest.fixture
def named(tmp_path):
    """A folder of six classes and a few broken files, all with names that are hard to print or draw."""
    folder = tmp_path / f"source{ESCAPES[:-1]}"
    for split, count in (("train", 10), ("test", 6)):
        for label, name in enumerate([*LITERAL, "a\x1b[31m\n", "b\u202e"]):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                photo(16, 16, 10 * label + i).save(folder / split / name / f"{i}\x1b[2J.png")
        (folder / split / "b\u202e" / "broken\x1b[2J\n.png").write_bytes(b"\x1b[2J no image")
    return folder


def test_names_are_printed_and_drawn_in_a_run(named, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("jepa.evaluation.projection.MAX_POINTS", 10)  # draws by PCA, which is fast
    monkeypatch.setattr("jepa.report.html.SECTIONS", {})
    with pytest.raises(SystemExit) as stop:
        main(["data", str(named), "--all", "--sheet", str(tmp_path / "sheet.png")])
    assert stop.value.code == 0
    shown = capfd.readouterr()
    assert r"a\x1b[31m\n" in shown.out
    run = train(tiny_config(str(named), steps=3), tmp_path / "run")
    opened = EvaluationRun.open(run.path)
    result = evaluate_run(opened)
    page = write_report(opened, result).read_text()
    files = [(run.path / name).read_text() for name in ("evaluation.json", "broken.txt", "metrics.jsonl")]
    for text in (shown.out, page, as_text(result, run.path).replace(str(named), ""), *files):
        assert not raw_characters(text)
    assert len(files[1].splitlines()) == 1
    assert json.loads(files[0])["unreadable"]
    for kind in ("png", "svg", "pdf"):
        draw("umap", opened).savefig(io.BytesIO(), format=kind)
    (legend,) = draw("umap", opened).legends
    assert [text.get_text() for text in legend.get_texts()][:2] == [r"\$\frac{x}\$", "100% <b>&amp;<i> {0}"]
    compare([run.path], tmp_path / "comparison.png")


@pytest.mark.parametrize("name", LITERAL)
def test_a_name_is_drawn_as_it_is(name):
    def drawn(text: str, parse_math: bool) -> np.ndarray:
        figure, buffer = Figure(figsize=(3, 1)), io.BytesIO()
        figure.text(0.1, 0.5, text, parse_math=parse_math)
        save(figure, buffer)
        return np.asarray(Image.open(buffer))

    assert np.array_equal(drawn(literal(name), True), drawn(name, False))

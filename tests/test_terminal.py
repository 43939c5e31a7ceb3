"""What the commands print into a terminal, into a pipe, and in a locale without UTF-8."""

import ast
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jepa.cli import main
from jepa.config import Config
from jepa.train import train
from tests.conftest import tiny_config, toy_images, write_parquet

PACKAGE = Path(__file__).resolve().parent.parent / "jepa"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder, with its source beside it."""
    root = tmp_path_factory.mktemp("terminal")
    for split, count, seed in (("train", 80, 0), ("test", 40, 1)):
        images, labels = toy_images(count, seed=seed)
        write_parquet(root / "toy" / f"{split}-00000-of-00001.parquet", images, labels)
    train(tiny_config(str(root / "toy"), steps=4, log_every=2, eval_every=2), root / "run")
    return root / "run"


def call(*arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def lines_of_steps(text: str) -> list[str]:
    return re.findall(r"^step \d[\d,]*/.*$", text, re.M)


def test_without_a_terminal_training_prints_one_line_per_record(tiny: Config, tmp_path, capsys):
    train(tiny, tmp_path / "run")
    err = capsys.readouterr().err
    lines = lines_of_steps(err)
    assert [line.split(":")[0] for line in lines] == [f"step {step}/6" for step in range(1, 7)]
    pattern = r"step \d/6: loss \d+\.\d{4}, \d+ img/s, feature std \d\.\d{4}(, \d+% of the time waiting for data)?"
    assert all(re.fullmatch(pattern + r", \d+ s left", line) for line in lines[:-1])
    assert re.fullmatch(pattern, lines[-1])
    assert not re.search(r"[\r\x1b]", err)


def test_in_a_terminal_training_shows_a_bar_instead(tiny: Config, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    train(tiny, tmp_path / "run")
    shown = sys.stderr.getvalue()
    assert "6/6" in shown
    assert "\r" in shown
    assert "img/s" in shown
    assert not lines_of_steps(shown)


@pytest.mark.parametrize("command", ["plot", "data", "recipes", "--help"])
def test_no_bars_and_no_escape_codes_in_a_pipe(command, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = {"plot": [trained, "curves"], "data": [trained.parent / "toy"]}
    assert call(command, *arguments.get(command, [])) == 0
    output = capsys.readouterr()
    assert output.out
    assert not re.search(r"[\r\x1b]|it/s|\d+%\|", output.out + output.err)


@pytest.mark.parametrize("file", [f for f in PACKAGE.rglob("*.py") if "tqdm(" in f.read_text(encoding="utf-8")])
def test_every_bar_disables_itself_without_a_terminal(file):
    """`disable=None` does, unlike tqdm's default."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tqdm":
            disable = [keyword.value for keyword in node.keywords if keyword.arg == "disable"]
            assert disable, f"{file.name}:{node.lineno}"
            assert ast.unparse(disable[0]) in ("None", "disable"), f"{file.name}:{node.lineno}"


# Encodings and pipes


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_is_printed_in_any_encoding(encoding, monkeypatch, tmp_path):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    for arguments in (["recipes"], ["train", "--help"], ["data", "--help"], ["--help"], ["train", "±–…×→é日\udcff"]):
        call(*arguments)
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert "usage: jepa" in out
    assert ("kNN 85.8 ± 0.3" if encoding != "ascii" else "kNN 85.8 +- 0.3") in out
    if encoding == "ascii":
        assert r"there is no recipe '+--...x->e\u65e5\udcff' (" in err
    assert err.startswith("jepa: ")


def test_what_an_encoding_lacks_is_readable():
    text = "85.8±0.3 – 12.3… 2×2 → α² “x” ─"
    assert text.encode("ascii", "jepa-readable").decode() == r'85.8+-0.3 - 12.3... 2x2 -> \u03b1^2 "x" -'


@pytest.mark.parametrize("command", ["recipes", "train --help"])
def test_a_closed_pipe_ends_quietly(command):
    pipe = f"{sys.executable} -m jepa {command}; echo $? >&2"
    result = subprocess.run(f"({pipe}) | true", shell=True, capture_output=True, text=True, check=False)
    assert result.stderr == "0\n"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")))
def test_text_files_have_an_encoding(file):
    """The default depends on the locale."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            mode = ast.literal_eval(node.args[0]) if node.args and isinstance(node.args[0], ast.Constant) else "r"
            is_text = node.func.attr in ("read_text", "write_text") and not re.search(
                "folder|output|self.write", ast.unparse(node.func)
            )
            if is_text or (node.func.attr == "open" and mode in ("a", "w")):
                assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{file.name}:{node.lineno}"

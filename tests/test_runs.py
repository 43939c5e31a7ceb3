import json
import re
import subprocess
import sys

import pytest
import torch

from jepa.config import Config, InputError
from jepa.runs import Run


def checkpointed(path) -> Run:
    run = Run.create(path, Config())
    run.save("last", {"x": torch.arange(1000.0)}, step=5, seconds=1.0)
    return run


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    run = checkpointed(tmp_path / "run")
    tensors, metadata = run.load()
    assert torch.equal(tensors["x"], torch.arange(1000.0))
    assert (metadata["step"], metadata["seconds"]) == (5, 1.0)
    assert Run.open(tmp_path / "run").config == Config()
    assert not list(run.path.rglob("*.tmp"))
    assert run.checkpoint().stat().st_mode & 0o777 == 0o644


def test_folders_that_are_not_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no run folder"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a run folder"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match=r"no checkpoint last.safetensors"):
        Run.create(tmp_path / "run", Config()).load()


def test_a_checkpoint_cut_in_half(tmp_path):
    run = checkpointed(tmp_path / "run")
    run.save("best", {"x": torch.zeros(1)}, step=3)
    content = run.checkpoint().read_bytes()
    for length in (0, 5, len(content) // 2):
        run.checkpoint().write_bytes(content[:length])
        with pytest.raises(InputError, match=r"last.safetensors is damaged: .*; use best.safetensors in the same"):
            run.load()


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    run = checkpointed(tmp_path / "run")
    save_file({"x": torch.zeros(1)}, run.checkpoint())
    with pytest.raises(InputError, match="is not an image-jepa checkpoint"):
        run.load()


def test_metrics_survive_a_line_cut_short(tmp_path):
    run = checkpointed(tmp_path / "run")
    for step in range(5):
        run.log({"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    run.forget_after(3)
    run.log({"step": 4})
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3, 4]


def test_a_full_disk_is_one_sentence_and_the_checkpoint_stays(tmp_path):
    """A limit on the size of files fails a write in the middle, as a full disk does."""
    run = checkpointed(tmp_path / "run")
    script = f"""
import resource, signal, torch
from jepa.config import InputError
from jepa.runs import Run
run = Run.open({str(run.path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    run.save("last", {{"x": torch.zeros(100_000)}}, step=6, seconds=2.0)
except InputError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"cannot be written: .*last\.safetensors is unchanged: free disk", result.stdout), result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert run.load()[1]["step"] == 5
    assert not list(run.path.rglob("*.tmp"))


def test_config_json_is_readable(tmp_path):
    run = checkpointed(tmp_path / "run")
    assert json.loads((run.path / "config.json").read_text())["objective"]["kind"] == "ijepa"

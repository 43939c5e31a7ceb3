"""The speedrun: what a training process gets and may read, what is recorded, and how entries are ranked."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from jepa.config import OBJECTIVES, RECIPES, InputError, SupervisedConfig, VICRegConfig, ViTConfig, recipe
from jepa.config import user_code as user_code_module
from jepa.config.serialization import to_dict
from jepa.data import open_dataset
from jepa.evaluation.features import Features
from jepa.evaluation.pixel_baselines import PatchDictionary
from jepa.train import train
from tests.conftest import override, tiny_config, toy_images, write_parquet

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import speedrun  # noqa: E402
import speedrun_launcher  # noqa: E402
import speedrun_records  # noqa: E402
import speedrun_scores  # noqa: E402
import speedrun_training  # noqa: E402
from speedrun_entries import build_parser, parse_entry  # noqa: E402

METHOD = """
from dataclasses import replace
from pathlib import Path
from jepa.config import RECIPES, DataConfig, MaskConfig, ViTConfig, recipe

def tiny():
    config = recipe("ijepa-cifar10")
    return replace(
        config, name="tiny", steps=3, batch_size=8, log_every=1, data=DataConfig(image_size=16),
        backbone=ViTConfig(size="32x4x2", patch=4, stem="conv"),
        objective=replace(config.objective, predictor="16x1x2", masks=MaskConfig()),
    )

RECIPES["tiny-speedrun"] = tiny
"""
LEAK = """
try:
    Path({path!r}).read_bytes()
except BaseException:
    pass
"""
FIELDS = {"seed", "process_seconds", "scaled_seconds", "over_budget_seconds", "matmul_gflops", "untrained", "log"} | {
    *("knn", "linear", "linear_2x2", "rankme", "train_seconds", "steps", "batch_size", "images_seen", "flops"),
    "parameters",
}


@pytest.fixture
def quick(monkeypatch):
    """Train with one thread, do not measure the machine, and forget the code that is loaded for scoring."""
    monkeypatch.setattr(speedrun_training, "THREADS", 1)
    monkeypatch.setattr(speedrun, "measure_rate", lambda device: 200.0)
    before = dict(RECIPES)
    yield
    for name in RECIPES.keys() - before.keys():
        del RECIPES[name]
    user_code_module._loaded.clear()


@pytest.fixture
def small_source(tmp_path) -> Path:
    """A parquet folder of 60 training and 30 test images, 16 pixels, two classes."""
    for split, count, seed in (("train", 60, 0), ("test", 30, 1)):
        write_parquet(tmp_path / "small" / f"{split}.parquet", *toy_images(count, seed=seed))
    return tmp_path / "small"


def entry(*arguments: str):
    """Parse the command line of an entry."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    return parse_entry(build_parser("").parse_args(arguments[:split]), arguments[split + 1 :])


# Images and processes


def test_the_images_of_an_entry_have_no_labels_and_no_test_split(small_source, tmp_path):
    path = tmp_path / "copy" / "train.parquet"
    assert speedrun_training.write_images(str(small_source), path, labels=False) == {"train": 60, "test": 30}
    assert list(path.parent.iterdir()) == [path]
    copy, original = pq.read_table(path), pq.read_table(small_source / "train.parquet")
    assert copy.column_names == ["image"]
    assert b"label" not in copy.schema.metadata[b"huggingface"]
    contents = [[row["bytes"] for row in table["image"].to_pylist()] for table in (copy, original)]
    assert sorted(contents[0]) == sorted(contents[1])
    assert contents[0] != contents[1]  # the order of a source may tell the classes
    assert all(row["path"] is None for row in copy["image"].to_pylist())


def test_a_reference_with_labels_gets_those_of_its_images(small_source, tmp_path):
    path = tmp_path / "copy" / "train.parquet"
    speedrun_training.write_images(str(small_source), path, labels=True)
    labels = {
        name: {row["image"]["bytes"]: row["label"] for row in pq.read_table(file).to_pylist()}
        for name, file in (("copy", path), ("original", small_source / "train.parquet"))
    }
    assert labels["copy"] == labels["original"]


def test_a_source_without_test_images_is_refused(small_source, tmp_path):
    (small_source / "test.parquet").unlink()
    with pytest.raises(InputError, match=r"must have the splits train and test, got .* with train"):
        speedrun_training.write_images(str(small_source), tmp_path / "train.parquet", labels=False)


@pytest.mark.usefixtures("quick")
def test_an_entry_is_trained_scored_and_recorded(small_source, tmp_path, capfd):
    method, path, keep = tmp_path / "method.py", tmp_path / "record.json", tmp_path / "kept"
    method.write_text(METHOD)
    flags = ["--minutes", "2", "--seeds", "0", "--data", str(small_source), "--record", str(path), "--keep", str(keep)]
    assert speedrun.run_command([str(method), *flags, "--", "--optim.lr", "2e-3"]) == 0
    record = json.loads(path.read_text())
    (result,) = record["results"]
    assert result.keys() == FIELDS
    assert result["untrained"].keys() == set(speedrun_scores.SCORES)
    assert (result["steps"], result["images_seen"], result["over_budget_seconds"]) == (3, 24, 0)
    assert result["process_seconds"] > result["train_seconds"] > 0
    assert result["scaled_seconds"] == pytest.approx(result["process_seconds"] * 200 / 250, abs=0.1)
    assert [step["step"] for step in result["log"]] == [1, 2, 3]
    assert all("loss" in step for step in result["log"])
    assert result["flops"] > 0
    assert str(tmp_path) not in path.read_text()  # no path of this machine
    assert record["command"] == (
        "python benchmarks/speedrun.py method.py --minutes 2 --track any --seeds 0 --data PATH -- --optim.lr 2e-3"
    )
    assert record["images"] == {"train": 60, "test": 30}
    assert record["code"]["file"] == "method.py"
    assert speedrun_records.unranked_reason(record) == "60 and 30 images are not those of CIFAR-10"
    assert "over budget" not in capfd.readouterr().out
    config = json.loads((keep / "seed-0" / "run" / "config.json").read_text())
    assert config["data"]["source"] == str(keep / "images" / "train.parquet")
    with pytest.raises(InputError, match="already exists; remove it"):
        entry(str(method), *flags)


@pytest.mark.usefixtures("quick")
def test_an_entry_that_opens_the_labeled_images_is_refused(small_source, tmp_path, monkeypatch, capsys):
    method, record = tmp_path / "leak.py", tmp_path / "record.json"
    method.write_text(METHOD + LEAK.format(path=str(small_source / "train.parquet")))
    arguments = [str(method), "--minutes", "2", "--seeds", "0", "--data", str(small_source), "--record", str(record)]
    monkeypatch.setattr(sys, "argv", ["speedrun.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        speedrun.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"its training opened {small_source}/train.parquet; labels, test images" in line
    assert not record.exists()


def test_a_run_is_checked_after_training(tiny, tmp_path):
    run, images = train(override(tiny, steps=2), tmp_path / "run"), Path(tiny.data.source)
    speedrun_training.check_run(run, images, labels=False, seed=0)
    with pytest.raises(InputError, match="must be trained on the unlabeled images"):
        speedrun_training.check_run(run, tmp_path / "other", labels=False, seed=0)
    with pytest.raises(InputError, match="got seed 0 and eval_every 0"):
        speedrun_training.check_run(run, images, labels=False, seed=1)
    run.write_json("config.json", to_dict(override(run.config, steps=9)))
    with pytest.raises(InputError, match="must end at step 9, got a checkpoint of step 2"):
        speedrun_training.check_run(run, images, labels=False, seed=0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_cpu_budgets_have_two_cores():
    before = os.sched_getaffinity(0)
    with speedrun_training.two_cores("cpu") as cores:
        assert cores == len(os.sched_getaffinity(0)) == min(2, len(before))
    assert os.sched_getaffinity(0) == before
    assert sorted(speedrun_training.distinct_cores([0, 1, 2, 3])) == [0, 1, 2, 3]


def run_with_guard(tmp_path: Path, code: str) -> tuple[int, str]:
    """Run code in a process with a guard; return the exit code and the sentence of the guard."""
    report = tmp_path / "report.txt"
    start = f"import sys; from speedrun_launcher import Guard; sys.addaudithook(Guard([], [], {str(report)!r}))\n"
    command = [sys.executable, "-c", start + code]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    status = subprocess.run(command, check=False, capture_output=True, env=environment).returncode
    return status, report.read_text() if report.is_file() else ""


def test_the_guard_cannot_be_caught(tmp_path):
    secret = tmp_path / "labels.txt"
    secret.write_text("1 2 3")
    (tmp_path / "link").symlink_to(secret)
    read = f"try: open({str(tmp_path / 'link')!r}).read()\nexcept BaseException: pass"
    status, sentence = run_with_guard(tmp_path, read)
    assert status == speedrun_launcher.VIOLATION_CODE
    assert f"opened {secret};" in sentence
    (tmp_path / "report.txt").unlink()
    own = f"""
import json, pathlib, tempfile
file = pathlib.Path({str(tmp_path / "own.txt")!r})
file.write_text("mine")
assert file.read_text() == "mine"
with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "a").write_text("b")
"""
    assert run_with_guard(tmp_path, own) == (0, "")
    connect = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), timeout=1)\nexcept OSError: pass"
    status, sentence = run_with_guard(tmp_path, connect)
    assert status == speedrun_launcher.VIOLATION_CODE
    assert "must be trained without a network" in sentence


def test_what_the_guard_allows(tmp_path):
    own, data = tmp_path / "own", tmp_path / "data"
    for folder in (own, data):
        folder.mkdir()
        (folder / "x").write_text("x")
    guard = speedrun_launcher.Guard([own], [data, Path(sys.prefix) / "pyvenv.cfg"], tmp_path / "report")
    for path in (own / "x", os.fsencode(own / "x"), tmp_path / "missing", data, torch.__file__, os.__file__, 3, "\0"):
        assert guard.violation("open", (path, "r", os.O_RDONLY)) is None, path
    assert guard.violation("open", (data / "x", None, os.O_WRONLY)) is None
    for path in (data / "x", own / ".." / "data" / "x", Path(sys.prefix) / "pyvenv.cfg"):
        assert "forbidden" in guard.violation("open", (path, "r", os.O_RDONLY)) or not path.exists()
    assert guard.violation("open", (data / "x", "r+", os.O_RDWR)) is not None
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as remote:
        assert guard.violation("socket.connect", (local, "path")) is None
        assert guard.violation("socket.connect", (remote, ("host", 80))) is not None
    assert guard.violation("subprocess.Popen", ("g++", ["g++", "-o", "x"], "/home/git", None)) is None
    for event, arguments in (
        ("subprocess.Popen", ("/bin/sh", ["/bin/sh", "-c", "cd x && /usr/bin/wget URL"], None, None)),
        ("os.system", (b"curl URL",)),
    ):
        assert "without a network" in guard.violation(event, arguments)


# Rules


@dataclasses.dataclass(frozen=True)
class ColorConfig(VICRegConfig):
    color_jitter: float = 0.4


def test_an_entry_that_breaks_a_rule_is_refused(monkeypatch):
    config = override(recipe("vicreg-cifar10"), data__source="images.parquet")
    check = speedrun_launcher.check_entry
    check(config, "images.parquet", "movements", labels=False)
    supervised = dataclasses.replace(config, objective=SupervisedConfig())
    check(supervised, "images.parquet", "movements", labels=True)
    with pytest.raises(InputError, match="'supervised' does; use another one, or add --labels"):
        check(supervised, "images.parquet", "movements", labels=False)
    with pytest.raises(InputError, match="'vicreg' does not; remove --labels"):
        check(config, "images.parquet", "movements", labels=True)
    with pytest.raises(InputError, match=r"got images\.parquet; remove --data"):
        check(config, "other.parquet", "movements", labels=False)
    colored = dataclasses.replace(config, objective=ColorConfig())
    check(colored, "images.parquet", "movements", labels=False)  # its author declares the track
    monkeypatch.setattr(ColorConfig, "__module__", "jepa.config.vicreg")
    with pytest.raises(InputError, match=r"objective\.color_jitter is 0\.4; switch it off, or use --track any"):
        check(colored, "images.parquet", "movements", labels=False)
    check(colored, "images.parquet", "any", labels=False)
    check(override(colored, objective__color_jitter=0.0), "images.parquet", "movements", labels=False)
    saccade = override(recipe("saccade-cifar10"), data__source="images.parquet", objective__color__gray=0.1)
    with pytest.raises(InputError, match=r"objective\.color\.gray is 0\.1; switch it off, or use --track any"):
        check(saccade, "images.parquet", "movements", labels=False)


@pytest.mark.parametrize("name", [name for name in RECIPES if "cifar10" in name])
def test_recipes_only_move_the_view(name):
    assert speedrun_launcher.color_settings(recipe(name)) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no entry is given"),
        (["ijepa-cifar"], "did you mean 'ijepa-cifar10'"),
        (["demo", "--minutes", "3"], r"--minutes must be 2, 10 or 30 \(two CPU cores\), or 5 or 20 \(one GPU\), got 3"),
        (["demo", "--minutes", "ten"], "invalid int value: 'ten'"),
        (["demo", "--track", "color"], "--track must be 'movements' or 'any', got 'color'"),
        (["demo", "--seeds", "1", "1"], "--seeds must differ"),
        (["demo", "--name", "a/b"], "--name must consist of letters"),
        (["missing.py"], r"the file missing\.py does not exist"),
        (["demo", "--", "--seed", "3"], "--seed is set by the speedrun"),
        (["demo", "--", "--eval_every=3"], "--eval-every is set by the speedrun"),
        (["k-means", "--", "--steps", "3"], "k-means has neither flags"),
        (["k-means", "--minutes", "5"], "k-means runs on the CPU"),
        (["demo", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speedrun.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        speedrun.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    with pytest.raises(InputError, match=message):
        raise InputError(line)


def test_the_track_and_the_command_of_an_entry(tmp_path):
    assert entry("vicreg-cifar10").track == "movements"
    file = ROOT / "examples" / "byol.py"
    method = entry(f"{file}:byol-demo", "--minutes", "30", "--", "--steps", "9")
    assert (method.name, method.track, method.device) == ("byol-demo", "any", "cpu")
    assert method.train_arguments == [f"{file}:byol-demo", "--steps", "9"]
    assert (
        "speedrun.py examples/byol.py:byol-demo --minutes 30 --track any --seeds 0 1 2 -- --steps 9" in method.command
    )
    (tmp_path / "part.py").touch()
    part = entry("demo", "--name", "mine", "--", "--code", str(tmp_path / "part.py"), "--backbone", "mixer")
    assert part.code == tmp_path / "part.py"
    assert part.command.endswith("--name mine -- --code part.py --backbone mixer")
    assert entry("k-means").record.name == "k-means-cpu-10.json"


# Scores


def planted(x: torch.Tensor, name: str) -> Features:
    return Features(x, None, torch.arange(len(x)), name)


def test_features_are_projected_on_the_axes_along_which_they_vary():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(400, 700, generator=generator)
    train, test = speedrun_scores.project(planted(wide, "train"), planted(wide[:9] + 1, "test"))
    assert train.x.shape == (400, 399)  # all that 400 images span
    assert torch.allclose(train.x.mean(0), torch.zeros(399), atol=1e-5)
    assert torch.allclose(test.x - train.x[:9], (test.x - train.x[:9])[:1], atol=1e-3)
    long = torch.randn(900, 600, generator=generator) * torch.linspace(2, 1, 600)
    train, _ = speedrun_scores.project(planted(long, "train"), planted(long, "test"))
    assert train.x.shape == (900, 512)
    assert bool((train.x.var(0).diff() <= 1e-4).all())
    constant = planted(torch.ones(5, 3), "constant")
    assert speedrun_scores.project(constant, constant)[0].x.shape == (5, 1)


def test_the_first_axes_of_wide_features_are_the_principal_ones(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(900, 900, generator=generator)
    x = (torch.randn(1200, 900, generator=generator) * torch.linspace(1, 0, 900)) @ mixing + 3
    exact, test = speedrun_scores.project(planted(x, "train"), planted(x[:50], "test"))
    monkeypatch.setattr(speedrun_scores, "MAX_EXACT_DIMS", 800)
    state = torch.get_rng_state()
    fast, fast_test = speedrun_scores.project(planted(x, "train"), planted(x[:50], "test"))
    assert torch.equal(torch.get_rng_state(), state)
    assert fast.x.shape == exact.x.shape == (1200, 512)
    assert torch.allclose(fast.x.var(0), exact.x.var(0), rtol=0.02)
    assert torch.allclose(fast_test.x[:, :100].abs(), test.x[:, :100].abs(), atol=0.05 * float(test.x.std()))


def test_flops_grow_with_steps_and_images(small_source):
    config = tiny_config(str(small_source), steps=2)
    config = override(config, data__mean=(0.5,) * 3, data__std=(0.2,) * 3, objective=SupervisedConfig(2))
    flops = speedrun_scores.training_flops(config)
    assert speedrun_scores.training_flops(override(config, steps=6)) == 3 * flops
    assert speedrun_scores.training_flops(override(config, batch_size=16)) == 2 * flops
    assert speedrun_scores.training_flops(override(config, accumulate=4)) == flops


def test_kmeans_of_patches_is_an_entry(small_source, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.evaluation.pixel_baselines.NUM_CENTROIDS", 20)
    images, saved = tmp_path / "images" / "train.parquet", tmp_path / "seed-0" / "run"
    speedrun_training.write_images(str(small_source), images, labels=False)
    saved.parent.mkdir()
    assert speedrun_launcher.fit_patches(str(images), 0, saved) == 0
    result = speedrun.patch_results(saved, str(small_source))
    assert result["linear_2x2"] > 80  # the classes differ in which half is bright
    assert (result["steps"], result["images_seen"], result["untrained"]) == (0, 60, None)
    assert result["parameters"] == 108 + 108**2 + 20 * 108
    dataset = open_dataset(tiny_config(str(images)).data)
    dictionaries = [PatchDictionary(dataset, torch.arange(60), seed).centroids for seed in (0, 0, 1)]
    assert torch.equal(dictionaries[0], dictionaries[1])
    assert not torch.equal(dictionaries[0], dictionaries[2])


def test_the_tail_of_a_log():
    log = speedrun_training.log_tail([{"step": step, "loss": step / 3} for step in range(1, 201)])
    assert [record["step"] for record in log[-5:]] == [196, 197, 198, 199, 200]
    assert log[0]["step"] == 1
    assert len(log) == 20
    assert log[-1]["loss"] == 66.667


# Records


def make_record(name: str, accuracies: list[float], excess: float = 0.0, **changes) -> dict:
    """Return a record with one result for each accuracy."""
    results = [
        {
            **dict.fromkeys(("linear", "knn"), accuracy - 5),
            **{"seed": seed, "linear_2x2": accuracy, "rankme": 50.0, "untrained": None, "log": []},
            **{"train_seconds": 100.0, "process_seconds": 110.0 + excess, "scaled_seconds": 121.0},
            **{"over_budget_seconds": excess, "steps": 300, "images_seen": 38_400, "flops": 2 * 10**15},
            "parameters": 885_504,
        }
        for seed, accuracy in enumerate(accuracies)
    ]
    record = {"name": name, "minutes": 2, "device": "cpu", "track": "movements", "labels": False, "date": "2026-01-01"}
    record |= {"images": {"train": 50_000, "test": 10_000}, "command": f"run {name}", "results": results}
    return record | changes


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two ranked records, one over the budget, one with labels, one with a single seed, and one of another track."""
    records = [
        make_record("worse", [60.0, 61.0, 62.0]),
        make_record("better", [64.0, 65.0, 69.0]),
        make_record("slow", [80.0, 80.0, 80.0], excess=3.25),
        make_record("labels", [90.0, 90.0, 90.0], labels=True),
        make_record("once", [70.0]),
        make_record("color", [75.0, 75.0, 75.0], track="any"),
    ]
    for record in records:
        speedrun_records.write_record(tmp_path / "records" / f"{record['name']}.json", record)
    return tmp_path / "records"


def test_entries_are_ranked_by_accuracy_within_the_budget(folder, tmp_path):
    page = tmp_path / "LEADERBOARD.md"
    page.write_text(f"before\n{speedrun_records.BEGIN}\nold\n{speedrun_records.END}\nafter\n")
    for _ in range(2):  # the same text again
        assert speedrun_records.update_leaderboard(page, folder) == 6
        text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if "](records/" in line]
    assert rows == [
        ["1", "[`better`](records/better.json)", "66.0 ± 2.6"],
        ["2", "[`worse`](records/worse.json)", "61.0 ± 1.0"],
        ["–", "[`labels`](records/labels.json) (with labels)", "90.0 ± 0.0"],
        ["–", "[`slow`](records/slow.json) (over budget by 3.2 s)", "80.0 ± 0.0"],
        ["–", "[`once`](records/once.json) (1 seed of 3)", "70.0"],
        ["1", "[`color`](records/color.json)", "75.0 ± 0.0"],
    ]
    assert text.index("color.json") > text.index("Track `any`")
    assert "The first row: `run better --record my-record.json`" in text
    page.write_text("no markers")
    with pytest.raises(InputError, match="must contain the lines"):
        speedrun_records.update_leaderboard(page, folder)


def test_damaged_records_are_named(folder):
    (folder / "bad.json").write_text('{"name": "bad"}')
    with pytest.raises(InputError, match=r"bad\.json is damaged"):
        speedrun_records.read_records(folder)
    speedrun_records.write_record(folder / "bad.json", make_record("bad", [1.0], minutes=10, device="cuda"))
    with pytest.raises(InputError, match=r"bad\.json must have one of the budgets"):
        speedrun_records.read_records(folder)


def test_the_curve_has_a_point_for_each_entry(folder, tmp_path):
    speedrun_records.draw_curve(folder, tmp_path / "figures" / "curve.png")
    assert (tmp_path / "figures" / "curve.png").stat().st_size > 10_000
    figure = speedrun_records.entry_figure(list(speedrun_records.read_records(folder).values()))
    for axes in figure.axes:
        assert len(axes.containers) == 6
    with pytest.raises(InputError, match="there are no records"):
        speedrun_records.draw_curve(tmp_path / "empty", tmp_path / "curve.png")


def test_the_command_of_a_row_repeats_it_in_any_clone(tmp_path, monkeypatch):
    """It neither needs a local copy of the images nor collides with the record that is in the repository."""
    for flags in ("", " -- --steps 360 --backbone.width 32"):
        record = {"command": f"python benchmarks/speedrun.py mine --minutes 2 --data PATH{flags}"}
        expected = f"python benchmarks/speedrun.py mine --minutes 2 --record my-record.json{flags}"
        assert speedrun_records.repeating_command(record) == expected
    monkeypatch.chdir(ROOT)
    for path, record in speedrun_records.read_records(speedrun.RECORDS).items():
        arguments = speedrun_records.repeating_command(record).split()[2:]
        parsed = entry(*(str(tmp_path / path.name) if text == "my-record.json" else text for text in arguments))
        assert (parsed.name, parsed.minutes, parsed.track) == (record["name"], record["minutes"], record["track"])


def test_more_entries_than_colors_are_told_apart_by_their_markers():
    records = [make_record(f"entry-{index}", [60.0 + index]) for index in range(15)]
    lines = [container.lines[0] for container in speedrun_records.entry_figure(records).axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(records)


def test_the_committed_tables_are_those_of_the_committed_records():
    tables = speedrun_records.tables(speedrun_records.read_records(speedrun.RECORDS), ROOT)
    assert f"{speedrun_records.BEGIN}\n\n{tables}\n\n{speedrun_records.END}" in speedrun.PAGE.read_text()


def test_the_supervised_example_uses_labels():
    before = dict(RECIPES)
    namespace: dict = {}
    exec((ROOT / "examples" / "supervised.py").read_text(), namespace)
    try:
        config = recipe("supervised-cifar10")
        assert OBJECTIVES.config_class("supervised", "").uses_labels
        assert config.objective == SupervisedConfig(10, config.objective.crop)
        assert config.backbone == recipe("vicreg-cifar10").backbone
    finally:
        for name in RECIPES.keys() - before.keys():
            del RECIPES[name]


def test_the_untrained_encoder_has_the_filters_of_the_trained_one(tiny, tmp_path):
    run = train(dataclasses.replace(tiny, backbone=ViTConfig("16x2x2", patch=4, stem="whitening")), tmp_path / "run")
    trained, untrained = speedrun_scores.load_encoders(run, torch.device("cpu"))
    assert torch.equal(trained.backbone.stem[0].filters, untrained.backbone.stem[0].filters)
    assert not torch.equal(trained.backbone.stem[1].weight, untrained.backbone.stem[1].weight)

"""`jepa compare`: aliases and their legend, the width of the text, and the file of the figure."""

import json

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jepa.cli import main
from jepa.config import InputError
from jepa.report.compare import compare, comparison_table, draw, free_path, gather
from jepa.report.style import STYLE
from jepa.runs import Run
from tests.conftest import override, tiny_config

SCORES = ("knn", "linear", "linear_last4", "linear_10pc", "linear_1pc", "rankme", "dimension")


def evaluated(path, config, value=50.0, **changes):
    """Write a run folder with scores, which took no training."""
    run = Run.create(path, config)
    row = dict.fromkeys(SCORES, value)
    data = {"source": "toy", "train": 80, "test": 40, "split": "train to test"}
    result = {"trained": row, "untrained": row, "data": data, "protocol": {}}
    result |= {"step": config.steps, "steps": config.steps, "train_seconds": 1.0}
    run.write_json("evaluation.json", result | changes)
    for step in (0, 5):
        run.log({"step": step, "knn": value + step, "rankme": value})
    return run.path


@pytest.fixture
def blank(monkeypatch):
    """Draw empty figures, which is fast."""
    monkeypatch.setattr("jepa.report.compare.draw", lambda groups: Figure())


@pytest.fixture
def twelve(tmp_path):
    """Return twelve experiments with three seeds each and long names that differ in the middle and in two settings."""
    paths = []
    for i in range(12):
        config = override(
            tiny_config("toy"), name=f"an-experiment-{i}-with-a-very-long-name-{'ab'[i % 2]}", steps=100 + i
        )
        for seed in range(3):
            seeded = override(config, seed=seed)
            paths.append(evaluated(tmp_path / "a-long-folder-for-runs" / f"{i}-{seed}", seeded, 40.0 + i + seed))
    return paths


def test_the_text_has_80_columns_and_explains_every_alias(twelve, tmp_path, blank):
    text = compare(twelve, tmp_path / "figure.png")
    table, explained = text.split("\n\nA  an-experiment-0-with-a-very-long-name-a")
    assert max(map(len, table.splitlines())) <= 80
    for path in twelve:
        assert str(path) in explained
    for alias in "BCDEFGHIJKL":
        assert f"\n{alias} " in table
        assert f"\n{alias}  an-experiment-" in explained
    assert "41.0±1.0" in table  # the mean and the standard deviation of 40, 41 and 42
    assert table.count("RankMe") == 1  # in a table below that of the accuracies


def test_the_last_and_the_best_checkpoint_do_not_share_a_row(tmp_path, blank):
    paths = [evaluated(tmp_path / str(seed), override(tiny_config("toy"), seed=seed)) for seed in (0, 1)]
    file = paths[1] / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": "best"}))
    assert [group.differing for group in gather(paths)] == [{"checkpoint": "last"}, {"checkpoint": "best"}]


def test_unfinished_seeds_do_not_share_a_row(tmp_path, blank):
    config = tiny_config("toy")
    paths = [evaluated(tmp_path / str(step), override(config, seed=step), step=step) for step in (2, config.steps)]
    assert [group.differing for group in gather(paths)] == [{"evaluated at step": 2}, {}]


def test_scores_of_an_earlier_checkpoint_are_refused(tmp_path, blank):
    """The run was trained further after its evaluation."""
    run = Run(evaluated(tmp_path / "a run", tiny_config("toy")))
    run.save("last", {"model.x": torch.zeros(1)}, step=run.config.steps, seconds=1.04)
    assert len(gather([run.path])) == 1
    run.save("last", {"model.x": torch.zeros(1)}, step=run.config.steps, seconds=2.0)
    with pytest.raises(InputError, match=r"but not of its checkpoint, .* run 'jepa evaluate '.*/a run'' again"):
        gather([run.path])


def test_integers_and_equal_decimals_are_the_same_setting(tmp_path, blank):
    """Configs written from Python and from the command line differ in this."""
    paths = [evaluated(tmp_path / str(seed), override(tiny_config("toy"), seed=seed)) for seed in (0, 1)]
    file = paths[1] / "config.json"
    values = json.loads(file.read_text())
    values["objective"]["ema_half_life"] = int(values["objective"]["ema_half_life"])
    file.write_text(json.dumps(values))
    assert len(gather(paths)) == 1


@pytest.mark.parametrize("changes", [{"train_seconds": "long"}, {"step": "late"}, {"steps": None}])
def test_damaged_steps_are_one_sentence(changes, tmp_path, blank):
    run = Run(evaluated(tmp_path / "run", tiny_config("toy"), **changes))
    run.save("last", {"model.x": torch.zeros(1)}, step=run.config.steps, seconds=1.0)
    if "steps" not in changes:
        with pytest.raises(InputError, match="run 'jepa evaluate "):
            gather([run.path])
    file = run.path / "evaluation.json"
    result = json.loads(file.read_text())
    del result["train_seconds"]
    file.write_text(json.dumps(result))
    with pytest.raises(InputError, match="is damaged; run 'jepa evaluate "):
        gather([run.path])


@pytest.mark.parametrize("trained", [None, [], {"knn": "high"}, {"linear": [1.0]}, "text"])
def test_damaged_scores_are_one_sentence(trained, tmp_path, blank):
    path = evaluated(tmp_path / "run", tiny_config("toy"), trained=trained)
    with pytest.raises(InputError, match="is damaged; run 'jepa evaluate "):
        gather([path])


def test_scores_of_different_images_are_not_compared_silently(tmp_path, blank):
    paths = [evaluated(tmp_path / "a", tiny_config("toy")), evaluated(tmp_path / "b", tiny_config("toy"))]
    assert "scored on different images" not in compare(paths, tmp_path / "figure.png")
    other = {"source": "others", "train": 80, "test": 40, "split": "train to test"}
    worded = {"source": "toy", "train": 80, "test": 40, "split": "train to test, in the words of an older version"}
    paths.append(evaluated(tmp_path / "old", tiny_config("toy"), data=worded))
    assert "scored on different images" not in compare(paths, tmp_path / "figure.png")
    paths.append(evaluated(tmp_path / "c", tiny_config("others"), data=other))
    assert "scored on different images, so their scores cannot be compared" in compare(paths, tmp_path / "figure.png")


def test_runs_that_differ_only_in_the_seed_share_a_row(tmp_path, blank):
    config = tiny_config("toy")
    changes = {"a": {"seed": 0}, "b": {"seed": 1}, "c": {"steps": 3}}
    paths = [
        evaluated(tmp_path / name, override(config, **changes[name]), value)
        for name, value in (("a", 50.0), ("b", 54.0), ("c", 60.0))
    ]
    groups = gather(paths)
    assert [(group.alias, group.name, group.differing) for group in groups] == [
        ("A", "tiny", {"steps": 6}),
        ("B", "tiny", {"steps": 3}),
    ]
    assert len(gather([paths[0], tmp_path / "b" / ".." / "a"])[0].runs) == 1  # a run counts once
    text = compare(paths, tmp_path / "figure.png")
    assert comparison_table(groups) in text
    assert f"{np.mean([50, 54]):.1f}±{np.std([50, 54], ddof=1):.1f}" in text


def test_settings_that_differ_are_listed_up_to_a_limit(tmp_path, blank):
    first = tiny_config("toy")
    second = override(first, steps=9, batch_size=4, log_every=2, optim__lr=0.5, optim__warmup=1, data__holdout=0.3)
    second = override(second, backbone__patch=8, objective__variance=0.25, objective__covariance=0.25)
    paths = [evaluated(tmp_path / "a", first), evaluated(tmp_path / "b", second)]
    text = " ".join(compare(paths, tmp_path / "figure.png").split())
    assert "B tiny: batch_size 4, log_every 2, steps 9, backbone.patch 8, data.holdout 0.3" in text
    assert "optim.lr 0.5, and 1 more" in text


def test_the_figure_has_room_for_long_names_and_many_colors(twelve):
    with matplotlib.rc_context(STYLE):
        figure = draw(gather(twelve))
    figure.draw_without_rendering()
    knn, linear, curves = figure.axes
    assert min(axes.get_window_extent().width for axes in (knn, linear)) > 0.25 * figure.bbox.width
    assert curves.get_window_extent().width > 0.6 * figure.bbox.width
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
    labels = [label.get_text() for label in knn.get_yticklabels()]
    assert len(set(labels)) == 12
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in curves.lines}) == 12


def test_an_existing_figure_is_replaced_only_if_it_was_named(tmp_path, blank, monkeypatch, capsys):
    run = evaluated(tmp_path / "run", tiny_config("toy"))
    monkeypatch.chdir(tmp_path)
    for arguments, expected in (
        ([], "figure: runs/compare.png\n"),
        ([], "figure: runs/compare-2.png\n"),
        (["--figure", "runs/compare.png"], "figure: runs/compare.png (replaced the existing file)\n"),
        (["--figure", "new.png"], "figure: new.png\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compare", str(run), *arguments])
        assert stop.value.code == 0
        assert capsys.readouterr().out.endswith(expected)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["compare-2.png", "compare.png"]
    assert free_path(tmp_path / "runs" / "compare.png").name == "compare-3.png"
    assert json.loads((run / "evaluation.json").read_text())["trained"]["knn"] == 50.0


def test_user_code_is_not_loaded(tmp_path, blank):
    run = evaluated(tmp_path / "run", tiny_config("toy"))
    settings = json.loads((run / "config.json").read_text())
    settings["objective"] = {"kind": "mine", "weight": 0.5}
    (run / "config.json").write_text(json.dumps(settings))
    (group,) = gather([run])
    assert group.settings["objective.kind"] == "mine"
    assert group.name in comparison_table([group])

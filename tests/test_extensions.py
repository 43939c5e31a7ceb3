"""Parts that are added as the documentation says: a config class, a module, one line in a table, a recipe."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import jepa
from jepa.cli import main
from jepa.config import BACKBONES, OBJECTIVES, RECIPES, SOURCES, Config, InputError, ObjectiveConfig, load_code
from jepa.config import user_code as user_code_module
from jepa.config.arguments import parse_train_arguments
from jepa.config.serialization import from_dict, to_dict
from jepa.data import Batch, open_dataset
from jepa.report.compare import compare
from jepa.rng import Rng
from jepa.runs import Run, fresh_objective
from tests.conftest import override, toy_images

ROOT = Path(__file__).resolve().parent.parent
EXTENSIONS = ROOT / "tests" / "extensions"
SMALL = ("--steps", "2", "--batch-size", "8", "--eval-every", "2", "--log-every", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """Restore the tables after a test, and forget the files that it ran."""
    for table in (OBJECTIVES, BACKBONES, SOURCES, RECIPES):
        before = dict(table)
        monkeypatch.setattr(table, "restored", before, raising=False)
    loaded, accepted = dict(user_code_module._loaded), set(user_code_module._accepted)
    yield
    for table in (OBJECTIVES, BACKBONES, SOURCES, RECIPES):
        for name in [name for name in table if name not in table.restored]:
            del table[name]
    user_code_module._loaded.clear()
    user_code_module._loaded.update(loaded)
    user_code_module._accepted.clear()
    user_code_module._accepted.update(accepted)


def call(*arguments: str | Path) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture
def archive(tmp_path) -> Path:
    """A zip archive of two classes."""
    from PIL import Image

    images, labels = toy_images(60, size=28)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / "image.png"
            Image.fromarray(image).save(path)
            file.write(path, f"{'ab'[label]}/{number:03}.png")
    return tmp_path / "images.zip"


@pytest.mark.parametrize(
    ("file", "kind", "flags"),
    [
        ("autoencoder", "objective", ["--backbone.size", "32x2x2", "--objective.noise", "0.2"]),
        ("mixer", "backbone", ["--data.canvas", "32", "--backbone.depth", "1"]),
        ("archive", "source", ["--backbone.size", "32x2x2", "--objective.predictor", "16x1x2"]),
    ],
)
def test_a_part_in_one_file_trains_and_is_evaluated(tmp_path, toy_source, archive, file, kind, flags, short_report):
    short_report("spectrum")
    code, run = EXTENSIONS / f"{file}.py", tmp_path / "run"
    source = ["--data", str(archive)] if kind == "source" else ["--data", toy_source, "--data.image-size", "16"]
    assert call("train", code, "--run", run, *SMALL, "--data.channels", "3", *source, *flags) == 0
    assert Run(run).load()[1]["step"] == 2
    assert (run / "code" / code.name).read_bytes() == code.read_bytes()
    assert call("evaluate", run, "--code", code) == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert 0 <= result["trained"]["knn"] <= 100
    config = Run(run).config
    assert from_dict(Config, to_dict(config)) == config
    assert flags[-1] in json.dumps(to_dict(config)) or kind == "source"


def test_an_archive_is_read_image_by_image(archive):
    load_code(EXTENSIONS / "archive.py")
    config = override(RECIPES["archive-demo"]().data, source=str(archive), image_size=28)
    dataset = open_dataset(config)
    images, labels = toy_images(60, size=28)
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == sorted(labels)
    expected = [image for _, image in sorted(enumerate(images), key=lambda pair: (labels[pair[0]], pair[0]))]
    assert torch.equal(dataset.read(torch.tensor([7])).pixels[0], torch.from_numpy(expected[7]).permute(2, 0, 1))


def test_a_part_of_the_package_is_one_line_in_its_table(tiny):
    """The line of a part in `jepa.config.tables` names the class, which is imported when it is first built."""
    load_code(EXTENSIONS / "mixer.py")
    (config_class,) = [part for part in BACKBONES if part.kind == "mixer"]
    BACKBONES[config_class] = f"{config_class.__module__}:Mixer"
    assert BACKBONES.implementation(config_class()).__name__ == "Mixer"
    message = str(_error(lambda: BACKBONES.config_class("mixr", "--backbone")))
    assert "vit, energy, convnet, timm-vit, plain-convnet, mixer" in message
    with pytest.raises(InputError, match="ijepa masks the input of its encoder, which a mixer does not support"):
        dataclasses.replace(tiny, backbone=config_class())


def _error(call) -> Exception:
    with pytest.raises(InputError) as caught:
        call()
    return caught.value


def test_a_table_refuses_what_is_not_a_part():
    @dataclasses.dataclass(frozen=True)
    class Second(ObjectiveConfig):
        kind: ClassVar[str] = "ijepa"

    @dataclasses.dataclass(frozen=True)
    class Nameless(ObjectiveConfig):
        pass

    with pytest.raises(InputError, match=r"'ijepa' of Second is taken by jepa\.config\.ijepa\.IJepaConfig"):
        OBJECTIVES[Second] = "nowhere:Nothing"
    with pytest.raises(InputError, match="Nameless has no kind"):
        OBJECTIVES[Nameless] = "nowhere:Nothing"
    with pytest.raises(InputError, match="is not a config class; derive a frozen dataclass from BackboneConfig"):
        BACKBONES[Nameless] = "nowhere:Nothing"
    with pytest.raises(InputError, match="the recipe name 'demo' is taken"):
        RECIPES["demo"] = lambda: Config()
    with pytest.raises(InputError, match="the recipe 'mine' must be a function that returns a Config, got Config"):
        RECIPES["mine"] = Config()
    with pytest.raises(InputError, match="Nameless is not registered; add a line to its table"):
        OBJECTIVES.implementation(Nameless())


def test_byol_is_a_file(tmp_path, toy_source, capsys, short_report):
    short_report("spectrum")
    run, code = tmp_path / "run", ROOT / "examples" / "byol.py"
    assert len(code.read_text().splitlines()) < 100
    flags = ("--data", toy_source, "--data.image-size", "16", "--data.channels", "3", "--backbone", "vit")
    size = ("--backbone.size", "32x2x2", "--backbone.patch", "4")
    assert call("train", code, "--run", run, *SMALL, *flags, *size) == 0
    assert call("train", f"{code}:byol-demo", "--run", run, "--resume", "--steps", "4") == 0
    assert Run(run).load()[1]["step"] == 4
    assert jepa.load(run, "online").embed(torch.rand(2, 3, 16, 16)).shape == (2, 32)
    assert call("evaluate", run, "--code", code) == 0
    output = capsys.readouterr().out
    assert all(title in output for title in ("trained (online encoder)", "trained (target encoder)", "untrained"))
    assert call("plot", run, "--code", code) == 0
    drawn = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"curves", "spectrum", "umap", "attention"} <= drawn


def test_two_crops_of_one_step_differ_and_its_loss_is_that_of_the_paper(tiny):
    load_code(ROOT / "examples" / "byol.py")
    (config_class,) = [part for part in OBJECTIVES if part.kind == "byol"]
    config = override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3, objective=config_class(hidden=8, projection=4))
    objective = fresh_objective(config)
    images, positions = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8)
    first, second = objective.sample(Batch(images, None, positions), Rng(0, 0, positions))
    assert all(not torch.equal(*pair) for pair in zip(first, second, strict=True))
    online = [objective.predictor(objective.project(objective.online, view)) for view in (first, second)]
    target = [objective.project(objective.target, view) for view in (second, first)]
    unit = [[x / x.norm(dim=1, keepdim=True) for x in side] for side in (online, target)]
    expected = torch.stack([(p - z).square().sum(1) for p, z in zip(*unit, strict=True)]).mean()
    assert torch.allclose(objective([first, second])["loss"], expected, atol=1e-5)


def test_code_is_run_only_when_it_is_given(tmp_path, toy_source, capsys, short_report):
    """A run of a user's file is opened with that file, and with a changed one only on request."""
    short_report("spectrum")
    code, run = tmp_path / "method.py", tmp_path / "run"
    shutil.copy(EXTENSIONS / "autoencoder.py", code)
    flags = ("--data", toy_source, "--data.image-size", "16", "--data.channels", "3", "--backbone.size", "32x2x2")
    assert call("train", code, "--run", run, *SMALL, *flags) == 0
    user_code_module._loaded.clear()
    for arguments in (["evaluate", run], ["plot", run], ["train", "--run", run, "--resume", "--steps", "4"]):
        capsys.readouterr()
        assert call(*arguments) == 2
        error = capsys.readouterr().err
        assert "was trained with the code of method.py" in error
        assert "--code FILE" in error
        assert error.count("\n") == 1
    with pytest.raises(InputError, match="--code FILE"):
        jepa.load(run)

    code.write_text(code.read_text().replace("Mean squared error", "Squared error"))
    assert call("evaluate", run, "--code", code) == 2
    assert "was trained with a different version of method.py" in capsys.readouterr().err
    assert call("train", "--run", run, "--resume", "--steps", "4", "--code", code) == 2
    assert call("evaluate", run, "--code", code, "--allow-changed-code") == 0
    assert user_code_module.loaded_code(Run(run).config.code).content == code.read_bytes()  # which --full trains with
    assert call("train", "--run", run, "--resume", "--steps", "4", "--code", code, "--allow-changed-code") == 0
    assert Run(run).load()[1]["step"] == 4
    copies = sorted(path.name for path in (run / "code").iterdir())
    assert len(copies) == 2
    assert (run / "code" / "method.py").read_bytes() == code.read_bytes()


@pytest.mark.parametrize("values", ["method.py", {"file": "../method.py", "sha256": "0"}, {"file": "method.py"}])
def test_a_damaged_record_of_the_code_is_one_sentence(values, tmp_path):
    with pytest.raises(InputError, match="must have a file name without a folder and its sha256"):
        user_code_module.check_code_loaded(values, tmp_path / "config.json")


def test_runs_of_a_file_are_compared_without_it(tmp_path, toy_source, short_report):
    short_report("spectrum")
    code, run = EXTENSIONS / "autoencoder.py", tmp_path / "run"
    flags = ("--data", toy_source, "--data.image-size", "16", "--data.channels", "3", "--backbone.size", "32x2x2")
    assert call("train", code, "--run", run, *SMALL, *flags) == 0
    assert call("evaluate", run, "--code", code) == 0
    user_code_module._loaded.clear()
    assert "autoencoder" in compare([run], tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("x = 1", [], "method.py defines no recipe"),
        ("import nothing_here", [], "method.py failed at line 1: ModuleNotFoundError"),
        ("def broken(:", [], "method.py failed: SyntaxError"),
        ("from jepa.config import *\nRECIPES['a'] = Config\nRECIPES['b'] = lambda: Config()", [], "defines several"),
        ("from jepa.config import *\nRECIPES['a'] = lambda: None", [], "must return a Config, got NoneType"),
        ("import sys; sys.exit()", [], "method.py failed at line 1: SystemExit"),
        (None, [], "the code"),
    ],
)
def test_a_file_that_is_not_a_method_is_one_sentence(tmp_path, content, arguments, message, capsys):
    if content is not None:
        (tmp_path / "method.py").write_text(content)
    assert call("train", tmp_path / "method.py", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_has_one_code_file(tmp_path, capsys):
    """A run records one file; a second one would be missing when the run is opened."""
    mixer, autoencoder = EXTENSIONS / "mixer.py", EXTENSIONS / "autoencoder.py"
    for arguments in ([autoencoder, "--code", mixer], ["demo", "--code", mixer, f"--code={autoencoder}"]):
        assert call("train", *arguments) == 2
        assert "more than one code file was given; put all components in one file" in capsys.readouterr().err
    (tmp_path / "method.txt").write_text("x = 1")
    assert call("train", tmp_path / "method.txt") == 2
    assert "is not a Python file; give the name of a recipe, or a file that ends in .py" in capsys.readouterr().err


def test_a_config_that_cannot_be_read_again_is_rejected_before_training(tmp_path, toy_source, capsys):
    code = tmp_path / "method.py"
    text = (EXTENSIONS / "autoencoder.py").read_text()
    extra = "    extra: dict[str, int] = field(default_factory=dict)"
    text = text.replace("noise: float = 0.1", f"noise: float = 0.1\n{extra}")
    code.write_text(text.replace("from dataclasses import dataclass", "from dataclasses import dataclass, field"))
    assert call("train", code, "--data", toy_source, "--data.channels", "3", "--run", tmp_path / "run") == 2
    assert "config.objective.extra" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_another_recipe_of_a_file_is_suggested(capsys):
    assert call("train", f"{EXTENSIONS / 'mixer.py'}:saccade-mixr") == 2
    assert "defines no recipe 'saccade-mixr'; did you mean 'saccade-mixer'?" in capsys.readouterr().err


def test_code_can_supply_a_backbone_to_a_recipe_of_the_package():
    code = str(EXTENSIONS / "mixer.py")
    given = parse_train_arguments(["saccade-demo", "--code", code, "--backbone", "mixer", "--backbone.dim", "16"], None)
    assert given.config.backbone.dim == 16
    assert given.config.code.file == "mixer.py"

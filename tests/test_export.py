"""Exported models compute what the run computes, in other libraries; what cannot be exported is one sentence."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import jepa
from jepa.backbones import Encoder
from jepa.checkpoints import to_tensors
from jepa.cli import main
from jepa.cli.interop import FormatName
from jepa.config import (
    Config,
    ConvNetConfig,
    DataConfig,
    EnergyConfig,
    FixationConfig,
    IJepaConfig,
    InputError,
    MaskConfig,
    PlainConvNetConfig,
    SaccadeConfig,
    VICRegConfig,
    ViTConfig,
)
from jepa.files import atomic_folder
from jepa.interop import Model, Movement, Pretrained, predict
from jepa.interop import export as interop_export
from jepa.interop.agreement import Difference, require_agreement
from jepa.interop.export import FORMATS, export
from jepa.report.markdown import scores_as_markdown
from jepa.runs import Run, fresh_objective
from jepa.torchvision_guard import guard

guard()
import timm  # noqa: E402  (imports torchvision)
import transformers  # noqa: E402

SECRET = "/home/somebody/birds"
MASKS = MaskConfig(min_context=2)
FIXATIONS = FixationConfig(rotation=15, zoom=1.4)
IJEPA, SACCADE = IJepaConfig(predictor="16x1x2", masks=MASKS), SaccadeConfig(hidden=16, fixations=FIXATIONS)
LINEAR = ViTConfig(size="32x1x2", patch=4, stem="linear")
EXPERIMENTS = {
    "vit, gray": (ViTConfig(size="32x1x2", patch=4, stem="whitening"), IJEPA, 1),
    "energy": (EnergyConfig(size="32x1x2", patch=4, stem="linear"), IJEPA, 3),
    "convnet": (ConvNetConfig(name="test_resnet", small_stem=True), SACCADE, 3),
    "plain-convnet": (PlainConvNetConfig(width=8, dim=32, stages=2), SACCADE, 1),
}


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not capture the traces of exporters, which takes longer than the export."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


def config_of(backbone=LINEAR, objective=IJEPA, channels=3, **data) -> Config:
    normalization = {"mean": (0.5, 0.4, 0.3)[:channels], "std": (0.3, 0.2, 0.25)[:channels]}
    settings = {"source": SECRET, "image_size": 16, "channels": channels} | normalization | data
    return Config(name="tiny", steps=10, data=DataConfig(**settings), backbone=backbone, objective=objective)


def trained(*args, **data) -> Pretrained:
    """Return a model whose weights are away from their initial values, and whose BatchNorms have statistics."""
    config = config_of(*args, **data)
    objective = fresh_objective(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in objective.state_dict().items():
            if tensor.is_floating_point() and not name.endswith((".mean", ".std", "frequencies")):
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator).abs())
    return Pretrained(config, objective, {"step": 7}, "the run runs/tiny")


def model_of(pretrained: Pretrained) -> Model:
    return Model(pretrained.objective.main_encoder, pretrained.config.data, pretrained.objective)


def images_for(encoder: Encoder, count: int = 3) -> torch.Tensor:
    return torch.rand(count, len(encoder.mean), *encoder.size, generator=torch.Generator().manual_seed(1))


def assert_close(name: str, ours: torch.Tensor, theirs, bar: float) -> None:
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    difference, scale = float((ours - theirs).abs().max()), float(ours.abs().max())
    print(f"{name}: {difference:.1e} of {scale:.3g}")
    assert difference <= bar * scale


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_onnx_agrees(tmp_path, name):
    pretrained = trained(*EXPERIMENTS[name])
    model = model_of(pretrained)
    model.embed(images_for(model.encoder))  # position embeddings are cached in inference mode
    predictor = name in ("vit, gray", "plain-convnet")  # each graph takes seconds
    exported = export(pretrained, "onnx", tmp_path / "out", predictor=predictor)
    names = {"model", "context", "predictor"} if predictor else {"model"}
    assert {file.name for file in exported.files} == {"README.md", "config.json"} | {f"{name}.onnx" for name in names}
    check_graphs(name, model, lambda file, inputs: run_onnx(tmp_path / "out" / f"{file}.onnx", inputs), predictor, 1e-4)


def test_torch_export_agrees(tmp_path):
    pretrained = trained(*EXPERIMENTS["energy"])
    export(pretrained, "torch-export", tmp_path / "out", predictor=True)
    model = model_of(pretrained)
    check_graphs("energy", model, lambda file, inputs: run_pt2(tmp_path / "out" / f"{file}.pt2", inputs), True, 1e-5)


def run_onnx(path: Path, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path).run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def run_pt2(path: Path, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    outputs = torch.export.load(path).module()(*inputs.values())
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def check_graphs(name: str, model: Model, run, predictor: bool, bar: float) -> None:
    """Compare all graphs with what a user of `jepa.load` computes, for three images and other numbers of tokens."""
    images = images_for(model.encoder)
    tokens, embedding = run("model", {"images": images})
    assert_close(f"{name}, tokens", model.tokens(images).x, tokens, bar)
    assert_close(f"{name}, embedding", model.embed(images), embedding, bar)
    if not predictor:
        return
    if isinstance(EXPERIMENTS[name][1], IJepaConfig):
        positions, targets = torch.tensor([[0, 5, 2], [15, 1, 3], [4, 9, 8]]), torch.tensor([[7], [6], [12]])
        ours = model.context_tokens(images, positions)
        (theirs,) = run("context", {"images": images, "context_positions": positions})
        predicted = predict(model, ours, positions=positions, targets=targets)
        inputs = {"context_tokens": ours, "context_positions": positions, "target_positions": targets}
    else:
        ours = model.context_tokens(images)
        _, theirs = run("context", {"images": images})
        predicted = predict(model, ours, movement=Movement((0.1, -0.05), 5.0, 1.1))
        inputs = {"features": ours, "movement": torch.tensor([[0.1, -0.05, 5.0, 1.1]]).expand(3, 4).contiguous()}
    assert_close(f"{name}, context", ours, theirs, bar)
    assert_close(f"{name}, predictor", predicted, run("predictor", inputs)[0], bar)


def test_graph_of_a_transformer_that_predicts_saccades_agrees(tmp_path):
    pretrained = trained(LINEAR, SaccadeConfig(predictor="16x1x2", fixations=FIXATIONS))
    export(pretrained, "torch-export", tmp_path / "out", predictor=True)
    model = model_of(pretrained)
    ours = model.context_tokens(images_for(model.encoder))
    movement = torch.tensor([[0.1, -0.05, 5.0, 1.1]]).repeat(3, 1)
    predicted = predict(model, ours, movement=Movement((0.1, -0.05), 5.0, 1.1))
    inputs = {"features": ours, "movement": movement}
    assert_close("saccade tokens", predicted, run_pt2(tmp_path / "out" / "predictor.pt2", inputs)[0], 1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_transformers_agrees_in_features_and_pixels(tmp_path, channels):
    pretrained = trained(LINEAR, IJEPA, channels)
    export(pretrained, "transformers", tmp_path / "out")
    model = model_of(pretrained)
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert type(loaded) is transformers.IJepaModel
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    images = (255 * images_for(model.encoder)).to(torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()) for image in images]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert_close("pixels", model.encoder.prepare(images), pixels, 1e-6)
    with torch.no_grad():
        tokens = loaded(pixels).last_hidden_state
    assert_close("transformers, tokens", model.tokens(images).x, tokens, 1e-5)
    assert_close("transformers, pooled", model.embed(pictures), tokens.mean(1), 1e-5)


@pytest.mark.parametrize("backbone", [LINEAR, ConvNetConfig(name="test_resnet")], ids=["vit", "convnet"])
def test_timm_agrees_and_reads_back(tmp_path, backbone):
    pretrained = trained(backbone, VICRegConfig(), image_size=32)
    export(pretrained, "timm", tmp_path / "out")
    model = model_of(pretrained)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = images_for(model.encoder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    picture = Image.fromarray((255 * images[0]).byte().permute(1, 2, 0).numpy())
    ours = model.encoder.prepare(torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None])[0]
    assert_close("pixels", ours, transform(picture), 1e-6)
    with torch.no_grad():
        features = loaded.forward_features((images - model.encoder.mean) / model.encoder.std)
        tokens = features.flatten(2).mT if features.ndim == 4 else features
        assert_close("timm, tokens", model.tokens(images).x, tokens, 1e-5)
        if backbone == LINEAR:
            pooled = loaded((images - model.encoder.mean) / model.encoder.std)
            assert_close("timm, pooled", model.embed(images), pooled, 1e-5)
    again = jepa.load(tmp_path / "out", device="cpu")
    assert_close("timm, read", model.tokens(images).x, again.tokens(images).x, 1e-5)


def test_safetensors_is_the_same_model(tmp_path):
    pretrained = trained()
    model, images = model_of(pretrained), images_for(pretrained.objective.main_encoder)
    export(pretrained, "safetensors", tmp_path / "encoder")
    export(pretrained, "safetensors", tmp_path / "all", predictor=True)
    encoder, whole = (jepa.load(tmp_path / name, device="cpu") for name in ("encoder", "all"))
    assert encoder.predictor is None
    assert encoder.canvas == model.canvas
    for read in (encoder, whole):
        assert torch.equal(read.tokens(images).x, model.tokens(images).x)
    ours = model.context_tokens(images, [0, 1, 2])
    assert torch.equal(whole.context_tokens(images, [0, 1, 2]), ours)
    predicted = [predict(each, ours, positions=[0, 1, 2], targets=[9]) for each in (model, whole)]
    assert torch.equal(*predicted)
    assert all(name.startswith("encoder.") for name in load_file(tmp_path / "encoder" / "model.safetensors"))


def test_the_code_of_a_model_card_computes_the_features_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrained = trained()
    model = model_of(pretrained)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (31, 32, 3), dtype=np.uint8)).crop((0, 0, 31, 31)).save("image.png")
    for name in FORMATS:
        folder = f'the "{name}" MODEL'  # characters and words that the code must keep
        export(pretrained, name, folder)
        code = re.search(r"```python\n(.+?)```", Path(folder, "README.md").read_text(), re.DOTALL)
        values: dict = {}
        with torch.no_grad():
            exec(code[1], values)
        assert_close(f"{name}, tokens", model.tokens("image.png").x, values["tokens"], 1e-2)  # of resized pixels
        if name != "timm":
            assert_close(f"{name}, embedding", model.embed("image.png"), torch.as_tensor(values["embedding"]), 1e-2)


@pytest.mark.parametrize(
    ("size", "canvas", "note"),
    [(16, None, "give the same pixels"), ((16, 32), None, "does not crop"), (16, 20, "not twice")],
)
def test_pixels_of_processors_are_measured_and_explained(tmp_path, size, canvas, note):
    exported = export(trained(LINEAR, VICRegConfig(), image_size=size, canvas=canvas), "transformers", tmp_path / "out")
    exact, double, large, other = [item.largest for item in exported.differences if item.of_pixels]
    assert note in (tmp_path / "out" / "README.md").read_text()
    if canvas is None:
        assert exact < 1e-4
        assert double < 1e-4
        assert 0 < large < 4
        assert other > 4
    else:
        assert exact > 1


def test_a_model_card_says_what_is_known(tmp_path):
    export(
        trained(),
        "torch-export",
        tmp_path / "birds",
        license='cc-by: 4.0 "x"',
        evaluation="| kNN |",
        command="jepa export x",
    )
    text = (tmp_path / "birds" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == 'cc-by: 4.0 "x"'
    assert front["library_name"] == "image-jepa"
    assert {"image-jepa", "ijepa", "vit"} <= set(front["tags"])
    for words in (
        "# birds",
        "I-JEPA",
        "`birds`",
        "7 of 10",
        "| kNN |",
        "jepa export x",
        "model: tokens",
        "aspect ratio 1:1",
    ):
        assert words in text
    for file in ("README.md", "config.json"):
        assert SECRET not in (tmp_path / "birds" / file).read_text()
    described = json.loads((tmp_path / "birds" / "config.json").read_text())
    assert described["graphs"]["model"]["outputs"]["tokens"]["shape"] == ["batch", 16, 32]
    assert described["config"]["data"]["source"] == "birds"


def test_a_model_card_without_license_and_evaluation_says_so(tmp_path):
    export(trained(), "safetensors", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "unknown"
    assert "Not evaluated." in text
    assert "was not given" in text


@pytest.mark.parametrize(
    ("pretrained", "format", "predictor", "message"),
    [
        ((LINEAR, VICRegConfig()), "onnx", True, "has no predictor in latent space"),
        (
            (LINEAR, IJEPA),
            "timm",
            True,
            "holds no predictor; leave out --predictor, or choose one of safetensors, onnx",
        ),
        ((EnergyConfig(size="32x2x2", patch=4), IJEPA), "transformers", False, "with --format safetensors, onnx"),
        ((LINEAR, IJEPA), "onxn", False, "there is no format 'onxn'; did you mean 'onnx'?"),
    ],
)
def test_what_a_format_cannot_hold_is_one_sentence(tmp_path, pretrained, format, predictor, message):
    with pytest.raises(InputError, match=re.escape(message)):
        export(trained(*pretrained), format, tmp_path / "a" / "out", predictor=predictor)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=re.escape("onnxruntime: pip install 'image-jepa[export]'")):
        export(trained(), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    for name in ("link", "."):
        with pytest.raises(InputError, match="already exists; choose a new folder with --out"):
            export(trained(), "safetensors", tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out cannot be written: .+; choose another folder"):
        export(trained(), "safetensors", tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        export(trained(), "safetensors", tmp_path / ("x" * 300) / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"link", "file"}


def test_a_different_result_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    write = FORMATS["safetensors"].write

    def differ(model, config, predictor, folder):
        write(model, config, predictor, folder)
        return [Difference("model: tokens", 1e-3, 2.0)]

    monkeypatch.setitem(interop_export.FORMATS, "safetensors", interop_export.Format(differ, bar=1e-5, usage=""))
    with pytest.raises(InputError, match=r"differs by 0\.001 in model: tokens, whose values are up to 2"):
        export(trained(), "safetensors", tmp_path / "a" / "b" / "out")
    assert list(tmp_path.iterdir()) == []


def test_differences_are_relative_and_never_nan():
    require_agreement([Difference("a", 1e-3, 200.0), Difference("pixels", 9.0, 255.0, True)], 1e-5)
    for bad in (Difference("a", 1e-3, 1.0), Difference("a", float("nan"), 1.0), Difference("a", 0.0, float("nan"))):
        with pytest.raises(InputError, match="nothing was written"):
            require_agreement([bad], 1e-5)


def test_an_interrupted_export_leaves_nothing(tmp_path):
    def interrupted(folder: Path) -> None:
        with atomic_folder(folder) as temporary:
            (temporary / "part").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.1234.tmp").mkdir()  # of a killed process
    (tmp_path / ".out.1234.tmp" / "part").write_text("half")
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "file").write_text("whole")
        (temporary / "file").chmod(0o600)
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / "out" / "file").stat().st_mode == plain.stat().st_mode


def test_damaged_folders_are_one_sentence(tmp_path):
    folder = tmp_path / "out"
    export(trained(), "safetensors", folder)
    weights, settings = folder / "model.safetensors", folder / "config.json"
    tensors, values = load_file(weights), json.loads(settings.read_text())
    name = "encoder.backbone.trunk.norm.weight"

    def expect(message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            jepa.load(folder)

    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    expect(f"model.safetensors lacks key {name}")
    save_file(tensors | {"extra": torch.zeros(1)}, weights)
    expect("model.safetensors has the unexpected key extra")
    save_file(tensors | {name: torch.zeros(3)}, weights)
    expect(f"{name} of shape [3], but this architecture needs [32]")
    save_file(tensors | {name: torch.full((32,), float("nan"))}, weights)
    expect(f"NaN or infinite values in {name}")
    weights.unlink()
    expect("model.safetensors")
    for change, message in (
        ({"version": 2}, "must have version 1"),
        ({"part": "half"}, "part encoder or objective"),
        ({"config": 3}, "must be a JSON object"),
        ({"format": "onnx"}, "which only other programs read; export the run with --format safetensors"),
    ):
        settings.write_text(json.dumps(values | change))
        expect(message)


def test_a_model_that_cannot_be_traced_is_one_sentence(tmp_path, monkeypatch, capfd):
    pretrained = trained()
    backbone = pretrained.objective.main_encoder.backbone
    pool = backbone.pool
    monkeypatch.setattr(backbone, "pool", lambda x: pool(x) if float(x.sum()) > -1e9 else x)
    with pytest.raises(InputError, match=r"the format torch-export cannot hold this model: .+ --format safetensors$"):
        export(pretrained, "torch-export", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    pretrained = trained()
    run = Run.create(tmp_path / "runs" / "tiny", pretrained.config)
    run.save("last", to_tensors(pretrained.objective), step=7, seconds=1.0, images="")
    return run


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, arguments)])
    return stop.value.code


def evaluation(step: int) -> dict:
    scores = {"knn": 61.25, "knn_error": 0.5, "linear": 70.0}
    data = {"source": SECRET, "train": 100, "test": 50, "split": "train to test"}
    rows = {"trained": scores, "untrained": scores, "encoders": ["target", "context"]}
    return rows | {"step": step, "data": data, "protocol": {"kNN": "k = 20"}}


def test_the_command_exports_a_run(tmp_path, run, capsys):
    run.write_json("evaluation.json", evaluation(7))
    out = tmp_path / "exports" / "tiny"
    assert command(run.path, "--format", "safetensors", "--out", out, "--predictor", "--license", "mit") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"exported the encoder 'target' of the run {run.path} to {out}:\n")
    assert "predictor: predicted_tokens  0.0e+00 of " in printed
    card = (out / "README.md").read_text()
    assert "jepa export tiny --format safetensors --out tiny --predictor --license mit" in card
    assert "| trained (target encoder) | 61.2±0.5 | 70.0 |" in card
    assert str(tmp_path) not in card
    assert SECRET not in card
    assert jepa.load(out, device="cpu").predictor is not None
    assert command(run.path, "--format", "safetensors", "--out", out) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_command_offers_every_format():
    assert get_args(FormatName) == tuple(FORMATS)


def test_the_command_says_what_is_missing(tmp_path, run, capsys):
    for arguments, message in (
        ((run.path, "--out", tmp_path / "out"), "--format is missing; give one of transformers, timm, safetensors"),
        ((run.path, "--format", "onnx"), "--out is missing; usage: jepa export RUN --format FORMAT --out PATH"),
        ((run.path, "--format", "tf", "--out", tmp_path / "out"), "--format must be"),
        ((tmp_path / "no", "--format", "onnx", "--out", tmp_path / "out"), "there is no run folder"),
    ):
        assert command(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_scores_of_another_step_are_not_those_of_the_model(tmp_path, run):
    run.write_json("evaluation.json", evaluation(5))
    assert command(run.path, "--format", "safetensors", "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Not evaluated at this step; the last evaluation of the run is that of step 5." in text
    assert "61.2" not in text


def test_scores_without_errors_are_a_table():
    text = scores_as_markdown(evaluation(7))
    assert "Step 7; `birds`: fitted on 100 images, scored on 50 (train to test)." in text
    assert "| scores in percent | kNN | linear |\n| --- | --- | --- |\n" in text

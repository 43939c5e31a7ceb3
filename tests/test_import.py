"""Weights of the official I-JEPA code, transformers and timm: features agree, and damage is one sentence."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jepa
from jepa.backbones import sincos_positions
from jepa.backbones.timm_vit import TimmViT
from jepa.backbones.vit import ViT
from jepa.cli import main
from jepa.config import InputError
from jepa.evaluate import evaluate
from jepa.interop.timm_format import to_timm
from jepa.interop.transformers_format import to_transformers
from jepa.runs import Run
from jepa.torchvision_guard import guard

guard()
import timm  # noqa: E402  (imports torchvision)
import transformers  # noqa: E402

TOLERANCE = 1e-5


def perturb(module: torch.nn.Module, seed: int = 0) -> None:
    """Move all weights away from their initial values, such as zero biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def ijepa_model(size: int = 96, patch: int = 16, **settings) -> transformers.IJepaModel:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96} | settings
    model = transformers.IJepaModel(transformers.IJepaConfig(image_size=size, patch_size=patch, **sizes)).eval()
    perturb(model)
    return model


def normalized(model: jepa.Model, images: torch.Tensor) -> torch.Tensor:
    return (images - model.encoder.mean) / model.encoder.std


def official_state(model: transformers.IJepaModel, sincos: bool = True) -> dict[str, torch.Tensor]:
    """Return the weights of an IJepaModel with the names of the official code."""
    state = model.state_dict()
    dim = model.config.hidden_size
    names = {"layernorm_before": "norm1", "layernorm_after": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    names["attention.o_proj"] = "attn.proj"
    if sincos:
        side = model.config.image_size // model.config.patch_size
        state["embeddings.position_embeddings"].copy_(sincos_positions(dim, (side, side), (side, side))[None])
    result = {
        "pos_embed": state["embeddings.position_embeddings"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for layer in range(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [state[f"layers.{layer}.attention.{letter}_proj.{kind}"] for letter in "qkv"]
            result[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
            for theirs, official in names.items():
                result[f"blocks.{layer}.{official}.{kind}"] = state[f"layers.{layer}.{theirs}.{kind}"]
    return {name: tensor.clone() for name, tensor in result.items()}


def official_predictor(dim: int, grid: tuple[int, int], width: int = 24, depth: int = 2) -> dict[str, torch.Tensor]:
    blocks = timm.models.vision_transformer.VisionTransformer(
        img_size=32, embed_dim=width, depth=depth, num_heads=3, class_token=False, global_pool="", num_classes=0
    )
    perturb(blocks, 1)
    state = {f"predictor_{name}": t for name, t in blocks.state_dict().items() if name.startswith(("blocks", "norm"))}
    for name, layer in (("embed", torch.nn.Linear(dim, width)), ("proj", torch.nn.Linear(width, dim))):
        state |= {f"predictor_{name}.{kind}": tensor for kind, tensor in layer.state_dict().items()}
    state["mask_token"] = torch.randn(1, 1, width)
    state["predictor_pos_embed"] = sincos_positions(width, grid, grid)[None]
    return state


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, transformers.IJepaModel]:
    """Write a checkpoint in the layout of the official code; return it with an IJepaModel of its target encoder."""
    path = tmp_path_factory.mktemp("official") / "IN1K.pth.tar"
    target, context = ijepa_model(layer_norm_eps=1e-6), ijepa_model(layer_norm_eps=1e-6)
    perturb(context, 2)
    values = {
        "target_encoder": {f"module.{name}": tensor for name, tensor in official_state(target).items()},
        "encoder": {f"module.{name}": tensor for name, tensor in official_state(context).items()},
        "predictor": {f"module.{name}": tensor for name, tensor in official_predictor(48, (6, 6)).items()},
        **{"opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 300, "loss": 0.1, "lr": 1e-3},
    }
    torch.save(values, path)
    return path, target


@pytest.mark.parametrize(("size", "patch"), [(224, 16), (224, 14), (96, 16), (98, 14)])
def test_transformers_both_ways(size, patch, tmp_path):
    theirs = ijepa_model(size, patch)
    theirs.save_pretrained(tmp_path / "folder")
    ours = jepa.load(tmp_path / "folder", device="cpu")
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(normalized(ours, images)).last_hidden_state
        back = to_transformers(ours.encoder)(normalized(ours, images)).last_hidden_state
    tokens, pooled = (ours.tokens(images).x - expected).abs().max(), (ours.embed(images) - expected.mean(1)).abs().max()
    print(f"transformers {size}/{patch}: tokens differ by {tokens:.1e}, pooled by {pooled:.1e}")
    assert expected.std() > 0.1
    assert max(tokens, pooled, (back - expected).abs().max()) < TOLERANCE


def test_a_trained_vit_in_transformers(tiny, tmp_path):
    from jepa.backbones import build_encoder
    from jepa.config import DataConfig, ViTConfig

    data = DataConfig(image_size=(32, 48), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
    encoder = build_encoder(ViTConfig(size="48x2x3", patch=8), data).eval()
    perturb(encoder.backbone)
    to_transformers(encoder).save_pretrained(tmp_path / "folder")
    again = jepa.load(tmp_path / "folder", device="cpu")
    assert isinstance(again.encoder.backbone, ViT)
    assert again.encoder.backbone.learned is None  # the positions are recognized as sines and cosines
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        expected = encoder.backbone(images).x
        assert (again.encoder.backbone(images).x - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 96),
        ("vit_small_patch14_reg4_dinov2", 56),  # registers, layer scale
        ("vit_medium_patch16_gap_240", 64),  # the norm follows the average
        ("vit_base_patch16_siglip_224", 64),  # attention pooling, no class token
        ("convnext_atto", None),
        ("resnet18", None),
    ],
)
def test_timm_both_ways(name, size, tmp_path):
    options = {} if size is None else {"img_size": size}
    theirs = timm.create_model(name, num_classes=7, **options).eval()
    perturb(theirs)
    timm.models.save_for_hf(theirs, tmp_path / "folder")
    ours = jepa.load(tmp_path / "folder", device="cpu")
    side = ours.encoder.size[0]
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        features = theirs.forward_features(normalized(ours, images))
        _, _, exported = to_timm(ours.encoder)
        again = exported.forward_features(normalized(ours, images))
    if features.ndim == 4:
        expected, again = features.flatten(2).mT, again.flatten(2).mT
        pooled = expected.mean(1)
    else:
        expected, again = features[:, theirs.num_prefix_tokens :], again[:, theirs.num_prefix_tokens :]
        pooled = theirs.fc_norm(expected.mean(1)).detach()
    difference = (ours.tokens(images).x - expected).abs().max(), (ours.embed(images) - pooled).abs().max()
    print(f"timm {name}: tokens differ by {difference[0]:.1e}, pooled by {difference[1]:.1e}")
    assert max(*difference, (again - expected).abs().max()) < TOLERANCE


def test_a_vit_of_ours_in_timm_and_back(tmp_path):
    ours = jepa.load(save_transformers(tmp_path / "a"), device="cpu")
    architecture, arguments, model = to_timm(ours.encoder)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        pooled = model(normalized(ours, images))
    assert (pooled - ours.embed(images)).abs().max() < TOLERANCE
    timm.models.save_for_hf(model, tmp_path / "b", model_args=arguments)
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (values["architecture"], values["model_args"]["depth"]) == (architecture, 2)
    again = jepa.load(tmp_path / "b", device="cpu")
    assert isinstance(again.encoder.backbone, ViT)
    mean, std = torch.tensor(again.data.mean), torch.tensor(again.data.std)
    same_input = normalized(ours, images) * std[:, None, None] + mean[:, None, None]
    with torch.no_grad():
        assert (again.encoder.backbone((same_input - again.encoder.mean) / again.encoder.std).x).isfinite().all()
        difference = again.encoder.backbone(normalized(ours, images)).x - ours.tokens(images).x
    assert difference.abs().max() < TOLERANCE


def save_transformers(folder: Path, **settings) -> Path:
    ijepa_model(layer_norm_eps=1e-6, **settings).save_pretrained(folder)
    return folder


def test_an_official_checkpoint_agrees_with_transformers(checkpoint):
    path, target = checkpoint
    ours = jepa.load(path, device="cpu", num_heads=3)
    images = torch.rand(3, 3, 96, 96)
    with torch.no_grad():
        expected = target(normalized(ours, images)).last_hidden_state
    difference = (ours.tokens(images).x - expected).abs().max()
    print(f"official checkpoint: tokens differ by {difference:.1e}")
    assert difference < TOLERANCE
    assert (ours.embed(images) - expected.mean(1)).abs().max() < TOLERANCE
    context = jepa.load(path, "context", device="cpu", num_heads=3)
    assert (context.embed(images) - expected.mean(1)).abs().max() > 0.1


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("part", ["target_encoder", "encoder", "bare"])
def test_prefixes_and_parts_of_official_checkpoints(prefix, part, tmp_path):
    target = ijepa_model(layer_norm_eps=1e-6)
    state = {prefix + name: tensor for name, tensor in official_state(target, sincos=part != "bare").items()}
    torch.save(state if part == "bare" else {part: state, "epoch": 1}, tmp_path / "x.pth.tar")
    ours = jepa.load(tmp_path / "x.pth.tar", device="cpu", num_heads=3)
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected = target(normalized(ours, images)).last_hidden_state
    assert (ours.tokens(images).x - expected).abs().max() < TOLERANCE
    assert ours.predictor is None
    with pytest.raises(InputError, match="has no predictor in latent space"):
        ours.context_tokens(images, [0, 1])


def test_the_official_predictor(checkpoint):
    """The predictor agrees with the equations of the official code, written out with timm's blocks."""
    path, _ = checkpoint
    ours = jepa.load(path, device="cpu", num_heads=3)
    images = torch.rand(2, 3, 96, 96)
    context, targets = [0, 1, 2, 7, 8, 20], [30, 31, 35]
    tokens = ours.context_tokens(images, context)
    predicted = jepa.predict(ours, tokens, positions=context, targets=targets)
    state = torch.load(path, weights_only=True)["predictor"]
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=32, embed_dim=24, depth=2, num_heads=3, class_token=False, global_pool="", num_classes=0
    ).eval()
    trunk.load_state_dict(
        {n.removeprefix("predictor_"): t for n, t in state.items() if "blocks" in n or "norm" in n}, False
    )
    positions = state["predictor_pos_embed"][0]
    with torch.no_grad():
        x = tokens @ state["predictor_embed.weight"].T + state["predictor_embed.bias"] + positions[context]
        queries = (state["mask_token"][0] + positions[targets]).expand(2, -1, -1)
        x = torch.cat([x, queries], 1)
        x = trunk.norm(trunk.blocks(x))[:, len(context) :]
        expected = x @ state["predictor_proj.weight"].T + state["predictor_proj.bias"]
    assert predicted.shape == (2, 3, 48)
    assert (predicted - expected).abs().max() < TOLERANCE


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


def test_an_imported_run_is_evaluated(checkpoint, capsys, tmp_path, toy_source):
    path, _ = checkpoint
    run = tmp_path / "runs" / "official"
    code, out, err = call(capsys, "import", path, "--out", run, "--num-heads", 3, "--data", toy_source)
    assert code == 0, err
    assert "imported vit for 96x96-pixel images, objective ijepa" in out
    assert Run.open(run).config.data.source == toy_source
    images = np.random.default_rng(0).integers(0, 256, (120, 80, 3), np.uint8)
    first, again = (jepa.load(x, device="cpu", num_heads=3).embed(images) for x in (path, run))
    assert torch.equal(first, again)
    result = evaluate(run)
    assert 0 <= result["trained"]["knn"] <= 100
    assert call(capsys, "import", path, "--out", run)[0] == 2  # it exists


def test_an_imported_encoder_alone_is_evaluated_and_not_trained(capsys, tmp_path, toy_source):
    run = tmp_path / "runs" / "imported"
    code, out, _ = call(capsys, "import", save_transformers(tmp_path / "hf"), "--out", run, "--data", toy_source)
    assert code == 0
    assert "objective imported" in out
    assert evaluate(run)["encoders"] == ["encoder"]
    code, _, err = call(capsys, "train", "--config", run / "config.json", "--run", tmp_path / "other")
    assert code == 2
    assert "has no objective of its own" in err
    assert not (tmp_path / "other").exists()


class Bomb:
    def __reduce__(self):
        return (Path("bomb-went-off").touch, ())


def damaged(tmp_path: Path, kind: str) -> Path:
    """Write a damaged checkpoint or folder of a kind."""
    file, state = tmp_path / "x.pth.tar", official_state(ijepa_model())
    values = {"target_encoder": state}
    if kind == "missing":
        del state["blocks.1.mlp.fc2.bias"]
    elif kind == "unexpected":
        state["blocks.1.ls1.gamma"] = torch.ones(3)
    elif kind == "shape":
        state["blocks.0.norm1.weight"] = torch.ones(47)
    elif kind == "nan":
        state["norm.bias"][3] = torch.nan
    elif kind == "class token":
        state["cls_token"] = torch.zeros(1, 1, 48)
    elif kind == "grid":
        state["pos_embed"] = torch.zeros(1, 37, 48)
    elif kind == "no tensors":
        values = {"target_encoder": {"a": 3}}
    elif kind == "other":
        values = {"state_dict": {"conv1.weight": torch.zeros(3)}}
    elif kind == "predictor only":
        values = {"predictor": official_predictor(48, (6, 6))}
    elif kind == "code":
        file.write_bytes(pickle.dumps({"target_encoder": Bomb()}))
        return file
    elif kind == "code in zip":
        torch.save({"target_encoder": Bomb()}, file)
        return file
    elif kind == "text":
        file.write_text("<html>404 Not Found</html>")
        return file
    elif kind == "empty":
        file.touch()
        return file
    elif kind == "truncated":
        torch.save(values, file)
        file.write_bytes(file.read_bytes()[:-3000])
        return file
    torch.save(values, file)
    return file


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "lacks key blocks.1.mlp.fc2.bias"),
        ("unexpected", "has the unexpected key blocks.1.ls1.gamma"),
        ("shape", r"has blocks.0.norm1.weight of shape \[47\], but this architecture needs \[48\]"),
        ("nan", "has NaN or infinite values in norm.bias"),
        ("class token", "has the unexpected key cls_token"),
        ("grid", "has 37 position embeddings, which are no square grid"),
        ("no tensors", "must contain tensors by name .* got int at 'a'"),
        ("other", "is not a checkpoint of the official I-JEPA code"),
        ("predictor only", "has a predictor but no encoder"),
        ("code", "not a file of tensors that torch.save or safetensors has written"),
        ("code in zip", "not only tensors, and code in files is never executed"),
        ("text", "not a file of tensors that torch.save or safetensors has written"),
        ("empty", "not a file of tensors that torch.save or safetensors has written"),
        ("truncated", "not a file of tensors that torch.save or safetensors has written"),
    ],
)
def test_damaged_checkpoints(kind, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence) as error:
        jepa.load(damaged(tmp_path, kind), num_heads=3)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "bomb-went-off").exists()


def test_the_number_of_heads_is_never_guessed(tmp_path):
    torch.save({"encoder": official_state(ijepa_model())}, tmp_path / "x.pth.tar")
    with pytest.raises(InputError, match="weights do not tell the number of heads"):
        jepa.load(tmp_path / "x.pth.tar")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "vit"}, "of the type 'vit', but only 'ijepa'"),
        ({"hidden_act": "relu"}, "must have hidden_act 'gelu'"),
        ({"num_hidden_layers": 3}, r"lacks keys encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"has the unexpected keys encoder\.layer\.1"),
        ({"hidden_size": 96}, r"of shape \[48.*\], but this architecture needs \[96"),
        ({"image_size": 100}, "image_size .* must be a multiple of 16, got 100"),
        ({"patch_size": [16, 8]}, "patch_size .* must be a positive integer"),
        ({"num_attention_heads": 0}, "num_attention_heads .* must be a positive integer"),
        ({"num_attention_heads": 5}, "not divisible by 5 heads"),
        ({"architectures": None, "model_type": None}, "of the type null"),
    ],
)
def test_folders_of_transformers_that_do_not_fit(change, sentence, tmp_path):
    folder = save_transformers(tmp_path / "hf")
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=sentence):
        jepa.load(folder)


def test_the_normalization_of_a_folder_of_transformers(tmp_path):
    folder = save_transformers(tmp_path / "hf")
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert jepa.load(folder).data.mean == pytest.approx((0.5, 0.4, 0.3))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.5]}))
    with pytest.raises(InputError, match=r"image_mean in .* must be 3 numbers"):
        jepa.load(folder)


def test_folders_of_no_known_layout(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    with pytest.raises(InputError, match="is neither a run folder nor a folder of transformers, timm"):
        jepa.load(tmp_path / "photos")
    (tmp_path / "photos" / "config.json").write_text('{"architecture": "vit_tinny_patch16_224"}')
    with pytest.raises(InputError, match="which timm does not have; did you mean 'vit_tiny_patch16_224'"):
        jepa.load(tmp_path / "photos")
    (tmp_path / "photos" / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(InputError, match=r"has no weights; it must contain model\.safetensors"):
        jepa.load(tmp_path / "photos")
    (tmp_path / "photos" / "config.json").write_text("[1")
    with pytest.raises(InputError, match="is not JSON"):
        jepa.load(tmp_path / "photos")
    with pytest.raises(InputError, match="there is no run folder"):
        jepa.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be downloaded"):
        jepa.load("hf:nobody/nothing")


def test_padding_does_not_change_the_tokens_of_a_timm_vit():
    from jepa.config import TimmViTConfig

    torch.manual_seed(0)
    model = TimmViT(TimmViTConfig(name="vit_tiny_patch16_224"), 3, (64, 64)).eval()
    images, keep = torch.randn(2, 3, 64, 64), torch.tensor([[0, 3, 7, 9], [1, 2, 5, 15]])
    kept = model(images, keep[:, :3]).x
    valid = torch.tensor([[True, True, True, False]]).expand(2, -1)
    assert (model(images, keep, valid).x[:, :3] - kept).abs().max() < TOLERANCE
    assert model.attention(images).sum(-1).allclose(torch.ones(()))
    assert model(torch.randn(1, 3, 32, 96)).grid == (2, 6)

import pytest
import torch

from jepa.backbones import build_encoder
from jepa.config import DataConfig, InputError, ViTConfig
from jepa.data import open_dataset
from jepa.evaluation import FeatureStore, extract, features

DATA = DataConfig(source="sample", image_size=28, channels=1, mean=(0.5,), std=(0.5,))


@pytest.fixture
def encoder():
    return build_encoder(ViTConfig(size="16x4x2", patch=7), DATA).eval()


@pytest.fixture
def images(tmp_path):
    return open_dataset(DATA, "test", tmp_path / "cache")


def same(one, other):
    return torch.equal(one.last4, other.last4) and torch.equal(one.x, other.x) and torch.equal(one.labels, other.labels)


def test_features_are_extracted_once_and_are_those_of_extract(encoder, images, tmp_path, monkeypatch):
    store, index = FeatureStore(tmp_path, "a stamp"), torch.arange(0, 900, 3)
    first = store.extract("target", encoder, images, index)
    assert same(first, extract(encoder, images, index))
    monkeypatch.setattr(features, "encode", None)  # would fail, were it called
    again = store.extract("target", encoder, images, index)
    assert same(first, again)
    assert torch.equal(again.rows, index)


@pytest.mark.parametrize("change", ["weights", "rows", "stamp", "name"])
def test_features_of_something_else_are_never_mixed_in(encoder, images, tmp_path, change):
    store, index, name = FeatureStore(tmp_path, "a stamp"), torch.arange(300), "target"
    store.extract(name, encoder, images, index)
    if change == "weights":
        with torch.no_grad():
            encoder.backbone.trunk.norm.weight.mul_(2)
    index = torch.arange(300, 600) if change == "rows" else index
    store = FeatureStore(tmp_path, "another") if change == "stamp" else store
    name = "context" if change == "name" else name
    assert same(store.extract(name, encoder, images, index), extract(encoder, images, index))
    kept = [*tmp_path.glob("target-*"), *tmp_path.glob("context-*")]
    assert len(kept) == (2 if change in ("rows", "name") else 1)


def test_an_extraction_that_is_interrupted_leaves_nothing(encoder, images, tmp_path, monkeypatch):
    store, index = FeatureStore(tmp_path / "features", "a stamp"), torch.arange(600)
    whole = features.encode

    def interrupted(*arguments):
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.extract("target", encoder, images, index)
    assert not list(store.folder.iterdir())
    killed = store.folder / f".{'target'}-0.999999999"
    killed.mkdir()
    monkeypatch.setattr(features, "encode", whole)
    assert same(store.extract("target", encoder, images, index), extract(encoder, images, index))


def test_features_that_are_no_numbers_are_refused(encoder, images, tmp_path):
    with torch.no_grad():
        encoder.backbone.trunk.norm.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="are no numbers"):
        FeatureStore(tmp_path, "").extract("target", encoder, images, torch.arange(10))
    assert not list(tmp_path.glob("target*"))

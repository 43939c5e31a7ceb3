import pytest
import torch

from jepa.backbones import build_encoder
from jepa.config import DataConfig, InputError, ViTConfig
from jepa.data import open_dataset
from jepa.evaluation import features
from jepa.evaluation.features import FeatureStore, extract

DATA = DataConfig(source="sample", image_size=28, channels=1, mean=(0.5,), std=(0.5,))


@pytest.fixture
def encoder():
    return build_encoder(ViTConfig(size="16x4x2", patch=7), DATA).eval()


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(DATA, "test", tmp_path / "cache")


def same(one, other):
    return torch.equal(one.last4, other.last4) and torch.equal(one.x, other.x) and torch.equal(one.labels, other.labels)


def test_features_are_extracted_once_and_are_those_of_extract(encoder, dataset, tmp_path, monkeypatch):
    store, indices = FeatureStore(tmp_path, "a stamp"), torch.arange(0, 900, 3)
    first = store.extract("target", encoder, dataset, indices)
    assert same(first, extract(encoder, dataset, indices))
    monkeypatch.setattr(features, "encode", None)  # fails if it is called
    again = store.extract("target", encoder, dataset, indices)
    assert same(first, again)
    assert torch.equal(again.indices, indices)


@pytest.mark.parametrize("change", ["weights", "indices", "stamp", "name"])
def test_features_are_extracted_again_after_a_change(encoder, dataset, tmp_path, change):
    store, indices, name = FeatureStore(tmp_path, "a stamp"), torch.arange(300), "target"
    store.extract(name, encoder, dataset, indices)
    if change == "weights":
        with torch.no_grad():
            encoder.backbone.trunk.norm.weight.mul_(2)
    indices = torch.arange(300, 600) if change == "indices" else indices
    store = FeatureStore(tmp_path, "another") if change == "stamp" else store
    name = "context" if change == "name" else name
    assert same(store.extract(name, encoder, dataset, indices), extract(encoder, dataset, indices))
    stored = [*tmp_path.glob("target-*"), *tmp_path.glob("context-*")]
    assert len(stored) == (2 if change in ("indices", "name") else 1)


def test_an_interrupted_extraction_leaves_no_files(encoder, dataset, tmp_path, monkeypatch):
    store, indices = FeatureStore(tmp_path / "features", "a stamp"), torch.arange(600)
    encode = features.encode

    def interrupted(*arguments, **options):
        yield next(encode(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.extract("target", encoder, dataset, indices)
    assert not list(store.folder.iterdir())
    (store.folder / ".target-0.999999999").mkdir()  # as left by a killed process
    monkeypatch.setattr(features, "encode", encode)
    assert same(store.extract("target", encoder, dataset, indices), extract(encoder, dataset, indices))


def test_features_that_are_not_finite_are_an_error(encoder, dataset, tmp_path):
    with torch.no_grad():
        encoder.backbone.trunk.norm.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="are NaN or infinite"):
        FeatureStore(tmp_path, "").extract("target", encoder, dataset, torch.arange(10))
    assert not list(tmp_path.glob("target*"))

"""An imported encoder, without the method that trained it."""

from __future__ import annotations

from jepa.backbones import Encoder, build_encoder
from jepa.config import Config
from jepa.data import Batch
from jepa.objectives.base import Objective
from jepa.rng import Rng

__all__ = ["Imported"]


class Imported(Objective):
    """Holds an encoder from another library. It cannot be trained as it is; see `ImportedConfig.check_training`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = build_encoder(config.backbone, config.data)

    def sample(self, batch: Batch, rng: Rng) -> None:
        """Return None: there is no input other than the images."""

    def describe(self) -> str:
        """Describe the encoder in one line."""
        return "an imported encoder"

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoder."""
        return {"encoder": self.encoder}

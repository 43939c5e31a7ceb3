"""An objective in one file: predict the pixels of an image from the average of its tokens."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, build_encoder
from jepa.config import OBJECTIVES, RECIPES, Config, CropConfig, ObjectiveConfig, recipe
from jepa.data import Batch
from jepa.objectives import Objective
from jepa.objectives.regularizers import feature_std
from jepa.rng import Rng
from jepa.transforms.crop import crop


@dataclass(frozen=True)
class AutoencoderConfig(ObjectiveConfig):
    """Mean squared error of pixels."""

    kind: ClassVar[str] = "autoencoder"

    noise: float = 0.1
    """Standard deviation of the noise that is added to the input."""


class Autoencoder(Objective):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.size = config.objective, config.data.size
        self.encoder = build_encoder(config.backbone, config.data)
        self.decoder = nn.Linear(self.encoder.backbone.dim, config.data.channels * self.size[0] * self.size[1])

    def sample(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        images = crop(batch.images, CropConfig(kind="full"), self.size, rng)
        return images, images + self.config.noise * (rng.uniform("noise", *images.shape[1:]) - 0.5)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, noisy = inputs
        pooled = self.encoder.backbone.pool(self.encoder(noisy).x)
        loss = F.mse_loss(self.decoder(pooled), images.flatten(1))
        return {"loss": loss, "feature_std": feature_std(pooled.detach())}

    def describe(self) -> str:
        return "noisy images"

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}


def autoencoder() -> Config:
    """The demo as an autoencoder."""
    return replace(recipe("demo"), name="autoencoder", objective=AutoencoderConfig())


OBJECTIVES[AutoencoderConfig] = Autoencoder
RECIPES["autoencoder"] = autoencoder

"""Recipes: named experiments.

A recipe is a function that returns a config. Its docstring states the command, the time and the measured result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jepa.config.auto import DataSummary, auto_config
from jepa.config.auto_saccade import CODED, auto_saccade_config
from jepa.config.backbones import ConvNetConfig, EnergyConfig, PlainConvNetConfig, ViTConfig
from jepa.config.base import Config, OptimConfig, defined_in
from jepa.config.data import DataConfig
from jepa.config.errors import InputError, suggest
from jepa.config.hints import shown
from jepa.config.ijepa import IJepaConfig
from jepa.config.lejepa import LeJepaConfig
from jepa.config.mae import MAEConfig
from jepa.config.saccade import SaccadeConfig
from jepa.config.supervised import SupervisedConfig
from jepa.config.transforms import CropConfig, FixationConfig, MaskConfig
from jepa.config.vicreg import VICRegConfig

__all__ = ["RECIPES", "Recipe", "RecipeTable", "documentation", "recipe"]

Recipe = Callable[[], Config]

SHORT = OptimConfig(lr=1e-3, lr_start=1e-5, warmup=50, weight_decay=0.05, weight_decay_end=0.05)
"""Optimizer settings of recipes that train for minutes on a CPU."""


def demo() -> Config:
    """I-JEPA on the built-in sample: 10,000 images of Fashion-MNIST.

    Command: jepa train demo
    Time: 3 minutes of training on two cores with bf16 instructions
    Result: kNN 85.8 ± 0.3, linear 86.8 ± 0.7 (untrained 72.0, 78.5; raw pixels 83.1, 84.6; three seeds)
    """
    return Config(
        name="demo",
        steps=800,
        batch_size=128,
        save_every=100,
        eval_every=400,
        data=DataConfig(source="sample", image_size=28, channels=1),
        backbone=ViTConfig(size="96x4x3", patch=4, stem="whitening"),
        objective=IJepaConfig(
            predictor="48x2x3",
            loss="smooth_l1",
            variance=0.01,
            covariance=0.005,
            patch_codes=0.1,
            ema_half_life=60,
            ema_half_life_end=60,
            crop=CropConfig(kind="full"),
            masks=MaskConfig(context_limit=0.25),
        ),
        optim=replace(SHORT, kind="muon", lr=8e-3),
    )


def ijepa_cifar10() -> Config:
    """I-JEPA on CIFAR-10 at 32 pixels, for CPUs.

    Command: jepa train ijepa-cifar10
    Time: 7 to 8 minutes of training on two cores with bf16 instructions
    Result: kNN 63.3 ± 0.2, linear 63.5 ± 0.2 (untrained 46.4, 52.4; three seeds)
    """
    return Config(
        name="ijepa-cifar10",
        steps=1250,
        batch_size=128,
        save_every=250,
        eval_every=625,
        data=DataConfig(source="cifar10", image_size=32),
        backbone=ViTConfig(size="128x4x4", patch=4, stem="whitening"),
        objective=IJepaConfig(
            predictor="64x2x4",
            loss="smooth_l1",
            variance=0.01,
            covariance=0.01,
            patch_codes=0.1,
            ema_half_life=60,
            ema_half_life_end=60,
            crop=CropConfig(kind="random", scale=(0.35, 1.0), flip=True),
            masks=MaskConfig(context_limit=0.35),
        ),
        optim=replace(SHORT, kind="muon", lr=8e-3),
    )


def ijepa_cifar10_gpu() -> Config:
    """I-JEPA on CIFAR-10 at 32 pixels with a larger ViT, for GPUs.

    Command: jepa train ijepa-cifar10-gpu
    Time: 2 minutes of training on an H100 shared by two to four trainings
    Result: kNN 66.9 ± 0.2, linear 67.9 ± 0.3 (untrained 46.7, 54.9; three seeds)
    """
    config = ijepa_cifar10()
    assert isinstance(config.objective, IJepaConfig)
    return replace(
        config,
        name="ijepa-cifar10-gpu",
        steps=1400,
        batch_size=512,
        save_every=280,
        eval_every=700,
        backbone=ViTConfig(size="192x8x3", patch=4, stem="whitening"),
        objective=replace(config.objective, predictor="96x2x3"),
    )


def energy_demo() -> Config:
    """I-JEPA with Energy Transformers on the built-in sample.

    Command: jepa train energy-demo
    Time: 3 to 4 minutes of training on two cores
    Result: kNN 82.3 ± 0.6, linear 83.9 ± 0.8 (untrained 68.0 ± 1.0, 78.6 ± 1.3; three seeds)
    """
    config = demo()
    assert isinstance(config.objective, IJepaConfig)
    return replace(
        config,
        name="energy-demo",
        steps=450,
        eval_every=225,
        backbone=EnergyConfig(size="128x6x4", patch=4, stem="whitening", alpha=0.3),
        objective=replace(config.objective, predictor="64x3x4"),
    )


def energy_cifar10() -> Config:
    """I-JEPA with Energy Transformers on CIFAR-10 at 32 pixels, in the same training time as ijepa-cifar10.

    Command: jepa train energy-cifar10
    Time: 7 to 8 minutes of training on two cores with bf16 instructions
    Result: kNN 58.9 ± 0.2, linear 61.3 ± 0.2 (untrained 43.5, 51.6; three seeds)
    """
    return replace(
        ijepa_cifar10(),
        name="energy-cifar10",
        backbone=EnergyConfig(size="128x4x4", patch=4, stem="whitening", alpha=0.3),
    )


def energy_cifar10_gpu() -> Config:
    """I-JEPA with wider Energy Transformers on CIFAR-10 at 32 pixels, for GPUs.

    Command: jepa train energy-cifar10-gpu
    Time: not run here
    Result: not measured; the settings are those of ijepa-cifar10-gpu
    """
    return replace(
        ijepa_cifar10_gpu(),
        name="energy-cifar10-gpu",
        backbone=EnergyConfig(size="256x6x8", patch=4, stem="whitening", alpha=0.3),
    )


def saccade_demo() -> Config:
    """Saccade JEPA on the built-in sample, with the ConvNet of saccade-cifar10 at half its width.

    Command: jepa train saccade-demo
    Time: 3 to 4 minutes of training on two cores with bf16 instructions
    Result: kNN 86.7 ± 0.6, linear 89.0 ± 0.6 (untrained 72.5, 81.4; raw pixels 83.1, 84.6; three seeds)
    """
    return replace(
        saccade_cifar10(),
        name="saccade-demo",
        steps=500,
        batch_size=128,
        save_every=100,
        eval_every=250,
        data=DataConfig(source="sample", image_size=32, channels=1),
        backbone=PlainConvNetConfig(width=32, dim=2048),
    )


def saccade_cifar10() -> Config:
    """Saccade JEPA on CIFAR-10 at 32 pixels, for CPUs, with a small ConvNet and with codes of patches.

    Command: jepa train saccade-cifar10
    Time: 6 to 8 minutes of training on two cores with bf16 instructions
    Result: kNN 69.9 ± 0.4, linear 73.8 ± 0.3 (untrained 46.3, 59.0; three seeds)
    """
    return Config(
        name="saccade-cifar10",
        steps=640,
        batch_size=256,
        save_every=128,
        eval_every=320,
        data=DataConfig(source="cifar10", image_size=32),
        backbone=PlainConvNetConfig(width=64, dim=2048),
        objective=CODED,
        optim=replace(SHORT, kind="muon", lr=4e-3),
    )


def saccade_cifar10_gpu() -> Config:
    """Saccade JEPA on CIFAR-10 at 32 pixels with a wider ConvNet, for GPUs.

    Command: jepa train saccade-cifar10-gpu
    Time: 2 minutes of training on an H100 shared by two to four trainings
    Result: kNN 73.0 ± 0.3, linear 74.6 ± 0.1 (untrained 46.1, 61.8; three seeds)

    With --objective.color.strength 0.4 --objective.color.gray 0.1: kNN 76.9 ± 0.2, linear 76.4 ± 0.4.
    """
    config = saccade_cifar10()
    return replace(
        config,
        name="saccade-cifar10-gpu",
        steps=2500,
        batch_size=512,
        save_every=500,
        eval_every=1250,
        backbone=PlainConvNetConfig(width=192),
        optim=replace(config.optim, lr=6e-3),
    )


def saccade_convnext_cifar10() -> Config:
    """Saccade JEPA on CIFAR-10 at 32 pixels with a ConvNeXt and without codes of patches, for CPUs.

    It scores lower than saccade-cifar10, but its predictor knows the effect of a movement (docs/saccade-jepa.md).

    Command: jepa train saccade-convnext-cifar10
    Time: 8 to 10 minutes on two cores
    Result: kNN 58.8 ± 0.1, linear 46.4 ± 0.1 (untrained 42.7, 39.1; three seeds)
    """
    return Config(
        name="saccade-convnext-cifar10",
        steps=2400,
        batch_size=128,
        save_every=300,
        eval_every=800,
        data=DataConfig(source="cifar10", image_size=32),
        backbone=ConvNetConfig(name="convnext_atto"),
        objective=SaccadeConfig(
            variance=0.2,
            covariance=0.008,
            inverse=0.15,
            ema_half_life=20,
            ema_half_life_end=100,
            fixations=FixationConfig(view_fraction=1, shift=0.25, rotation=15, zoom=1.4),
        ),
        optim=SHORT,
    )


def vicreg_cifar10() -> Config:
    """VICReg on the fixations of saccade-convnext-cifar10, as its baseline without a teacher or a predictor.

    The weight of the invariance term is a twelfth of the paper's, which works better here. The number of steps is three
    fifths of that of saccade-convnext-cifar10, because each step takes 1.3 to 1.5 times as long.

    Command: jepa train vicreg-cifar10
    Time: 7 to 8 minutes on two cores
    Result: kNN 55.8 ± 0.2, linear 47.1 ± 0.1 (saccade-convnext-cifar10 58.8, 46.4; untrained 42.7, 39.1; three seeds)
    """
    config = saccade_convnext_cifar10()
    assert isinstance(config.objective, SaccadeConfig)
    objective = VICRegConfig(invariance=2, fixations=config.objective.fixations)
    return replace(config, name="vicreg-cifar10", steps=1440, eval_every=480, objective=objective)


def lejepa_cifar10() -> Config:
    """LeJEPA on CIFAR-10 at 32 pixels with the ViT of ijepa-cifar10, for CPUs.

    Two global views of 32 pixels and six local views of 16 pixels of each image, without color augmentation.

    Command: jepa train lejepa-cifar10
    Time: 7 to 8 minutes of training on two cores with bf16 instructions
    Result: kNN 42.2, linear 56.7 (untrained 46.4, 52.4; one seed)
    """
    objective = LeJepaConfig(
        slices=256,
        hidden=512,
        projection=64,
        local_size=16,
        global_crop=CropConfig(scale=(0.3, 1.0), flip=True),
        local_crop=CropConfig(scale=(0.1, 0.3), flip=True),
    )
    return replace(
        ijepa_cifar10(),
        name="lejepa-cifar10",
        steps=570,
        save_every=95,
        eval_every=190,
        objective=objective,
        optim=SHORT,
    )


def lejepa_cifar10_gpu() -> Config:
    """LeJEPA on CIFAR-10 at 32 pixels with the ViT of ijepa-cifar10-gpu, for GPUs.

    Command: jepa train lejepa-cifar10-gpu
    Time: not run here
    Result: not measured; the losses and views are those of lejepa-cifar10
    """
    config, larger = lejepa_cifar10(), ijepa_cifar10_gpu()
    return replace(larger, name="lejepa-cifar10-gpu", objective=config.objective, optim=config.optim)


def mae_cifar10() -> Config:
    """Masked autoencoder on CIFAR-10 at 32 pixels with the ViT of ijepa-cifar10, for CPUs.

    The stem is patch-conv, because with conv, visible tokens would depend on most pixels of masked neighbors.

    Command: jepa train mae-cifar10
    Time: 10 to 11 minutes of training on two cores with bf16 instructions
    Result: kNN 43.1, linear 54.4 (untrained 34.2, 44.6; one seed)
    """
    return replace(
        ijepa_cifar10(),
        name="mae-cifar10",
        steps=3600,
        save_every=600,
        eval_every=1200,
        backbone=ViTConfig(size="128x4x4", patch=4, stem="patch-conv"),
        objective=MAEConfig(decoder="64x2x4", crop=CropConfig(scale=(0.35, 1.0), flip=True)),
        optim=SHORT,
    )


def saccade_folder() -> Config:
    """Saccade JEPA on any folder of images, with settings chosen from the images and the device.

    Command: jepa train saccade-folder --data PATH/TO/FOLDER
    Time: about 10 minutes of training on two cores, estimated from saccade-cifar10
    Result: depends on the images; 'jepa evaluate' compares it with the untrained encoder and raw pixels
    """
    return auto_saccade_config("PATH/TO/FOLDER", DataSummary(count=10_000, height=1200, width=1600))[0]


def ijepa_vitb16_in1k() -> Config:
    """I-JEPA ViT-B/16 on ImageNet-1k with the paper's settings.

    Command: torchrun --nproc-per-node 8 -- jepa/train.py ijepa-vitb16-in1k --data PATH/TO/imagenet-1k
    Time: not run here; 600 epochs
    Result: not run here; the paper reports 72.9 linear
    """
    return _imagenet("ijepa-vitb16-in1k", "base", patch=16, predictor="384x6x12", epochs=600)


def ijepa_vitl16_in1k() -> Config:
    """I-JEPA ViT-L/16 on ImageNet-1k with the paper's settings.

    Command: torchrun --nproc-per-node 8 -- jepa/train.py ijepa-vitl16-in1k --data PATH/TO/imagenet-1k
    Time: not run here; 600 epochs
    Result: not run here; the paper reports 77.5 linear
    """
    return _imagenet("ijepa-vitl16-in1k", "large", patch=16, predictor="384x12x16", epochs=600)


def ijepa_vith14_in1k() -> Config:
    """I-JEPA ViT-H/14 on ImageNet-1k with the paper's settings.

    Command: torchrun --nproc-per-node 16 -- jepa/train.py ijepa-vith14-in1k --data PATH/TO/imagenet-1k
    Time: not run here; 300 epochs, under 1,200 GPU hours in the paper
    Result: not run here; the paper reports 79.3 linear
    """
    return _imagenet("ijepa-vith14-in1k", "huge", patch=14, predictor="384x12x16", epochs=300)


def finetune() -> Config:
    """Fine-tune a trained encoder with labels: a linear probe first, then the whole network.

    Command: jepa train finetune --init RUN --data PATH/TO/FOLDER
    Time: 5 to 8 minutes on one core (AVX2) for the encoder of ijepa-cifar10, 9 to 12 for that of saccade-cifar10
    Result: 68.7 ± 0.2 with all labels from ijepa-cifar10 (400 steps; linear probe 63.5, from scratch 61.2)
    """
    return Config(
        name="finetune",
        steps=400,
        batch_size=64,
        save_every=100,
        eval_every=0,
        data=DataConfig(holdout=0.1),
        objective=SupervisedConfig(crop=CropConfig(scale=(0.5, 1.0), flip=True), head="probe"),
        optim=replace(SHORT, kind="muon", lr=4e-3, layer_decay=0.75, warmup=20),
    )


def _imagenet(name: str, size: str, patch: int, predictor: str, epochs: int) -> Config:
    """Return the settings of the paper's appendix A, even where its code differs (docs/implementation-notes.md)."""
    epoch = 1_281_167 // 2048
    return Config(
        name=name,
        steps=epochs * epoch,
        batch_size=2048,
        compile=True,
        eval_every=10 * epoch,
        save_every=epoch,
        data=DataConfig(
            source="imagenet-1k", image_size=224, canvas=384, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        backbone=ViTConfig(size=size, patch=patch),
        objective=IJepaConfig(
            predictor=predictor,
            crop=CropConfig(kind="random", scale=(0.3, 1.0)),
            # the share of tokens in Table 6; untruncated contexts would contain 0.43 of the tokens
            masks=MaskConfig(min_context=10, context_limit=0.25),
        ),
        optim=OptimConfig(warmup=15 * epoch),
    )


def ijepa_folder() -> Config:
    """I-JEPA on any folder of images, with settings chosen from the number and size of the images and from the device.

    Command: jepa train ijepa-folder --data PATH/TO/FOLDER
    Time: about 10 minutes of training on two cores
    Result: depends on the images; 'jepa evaluate' compares it with the untrained encoder and raw pixels
    """
    return auto_config("PATH/TO/FOLDER", DataSummary(count=10_000, height=1200, width=1600))[0]


class RecipeTable(dict[str, Recipe]):
    """The recipes by name."""

    def __setitem__(self, name: str, make: Recipe) -> None:
        """Add a recipe.

        Raises `InputError` if the name is taken by a different function, or if `make` is not a function.
        """
        if not callable(make):
            raise InputError(f"the recipe '{name}' must be a function that returns a Config, got {type(make).__name__}")
        other = self.get(name)
        if other is not None and defined_in(other) != defined_in(make):
            raise InputError(f"the recipe name '{name}' is taken; choose a different one")
        super().__setitem__(name, make)


RECIPES = RecipeTable(
    {
        "demo": demo,
        "ijepa-cifar10": ijepa_cifar10,
        "ijepa-cifar10-gpu": ijepa_cifar10_gpu,
        "energy-demo": energy_demo,
        "energy-cifar10": energy_cifar10,
        "energy-cifar10-gpu": energy_cifar10_gpu,
        "saccade-demo": saccade_demo,
        "saccade-cifar10": saccade_cifar10,
        "saccade-cifar10-gpu": saccade_cifar10_gpu,
        "saccade-convnext-cifar10": saccade_convnext_cifar10,
        "saccade-folder": saccade_folder,
        "vicreg-cifar10": vicreg_cifar10,
        "lejepa-cifar10": lejepa_cifar10,
        "lejepa-cifar10-gpu": lejepa_cifar10_gpu,
        "mae-cifar10": mae_cifar10,
        "ijepa-folder": ijepa_folder,
        "finetune": finetune,
        "ijepa-vitb16-in1k": ijepa_vitb16_in1k,
        "ijepa-vitl16-in1k": ijepa_vitl16_in1k,
        "ijepa-vith14-in1k": ijepa_vith14_in1k,
    }
)


def documentation(make: Recipe) -> dict[str, str]:
    """Parse the docstring of a recipe: its first line as `what`, then every `Key: value` line."""
    what, *rest = (make.__doc__ or "").strip().splitlines()
    lines = [line.strip().partition(": ") for line in rest if ": " in line]
    return {"what": what} | {key.lower(): value for key, _, value in lines}


def recipe(name: str) -> Config:
    """Return the config of a recipe.

    Raises `InputError` if there is no such recipe, or if it does not return a config.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {shown(name)}{suggest(name, RECIPES)} (recipes: {', '.join(RECIPES)})")
    config = RECIPES[name]()
    if not isinstance(config, Config):
        raise InputError(f"the recipe '{name}' must return a Config, got {type(config).__name__}")
    return config

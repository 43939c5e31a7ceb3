"""Command line of `jepa train`: parse the arguments into the config of an experiment.

The defaults come from a recipe, a config file, or the run to resume. Flags override them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from jepa.config.auto import DataSummary, auto_config
from jepa.config.auto_saccade import auto_saccade_config
from jepa.config.base import BACKBONES, OBJECTIVES, CodeConfig, Config, with_backbone
from jepa.config.command_line import (
    Given,
    Option,
    Taken,
    build,
    options_of,
    print_help,
    reject_flag,
    reject_word,
    split,
    take,
)
from jepa.config.data import DataConfig
from jepa.config.errors import InputError, suggest
from jepa.config.hints import shown
from jepa.config.recipes import RECIPES, recipe
from jepa.config.serialization import flat, read_config
from jepa.config.user_code import load_code, loaded_code

__all__ = [
    "ReadConfig",
    "Summarize",
    "TrainArguments",
    "expand_home",
    "parse_finetune_arguments",
    "parse_train_arguments",
]

AUTO_RECIPES = {"ijepa-folder": auto_config, "saccade-folder": auto_saccade_config}
"""Recipes whose settings are chosen from the images and the device."""
DEFAULT_RECIPE = "demo"
OF_INIT = ("--backbone", "--data.image-size", "--data.channels")  # flags of settings that --init determines
CODE_FILE = re.compile(r"(.+\.py)(?::(.*))?")  # FILE.py or FILE.py:RECIPE
Summarize = Callable[[str, str, Path], tuple[DataSummary, str]]
"""(source, device, runs folder) -> (summary, one-line description)."""
ReadConfig = Callable[[str], Config]
"""Returns the config of a trained model, given the value of --init."""


class Readers(NamedTuple):
    """What reads images and models, which takes torch."""

    summarize: Summarize | None
    read_init: ReadConfig | None


@dataclass(frozen=True)
class RunArguments:
    """Arguments that are parsed first, because they determine which other flags exist."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")] = DEFAULT_RECIPE
    """Name of a recipe ('jepa recipes' lists them), or a Python file with its own recipes, FILE.py[:RECIPE]. Must be
    the first argument."""
    config: Path | None = None
    """Read the settings from this JSON file, such as the config.json of a run, instead of a recipe."""
    run: Path | None = None
    """Run folder to train into; runs/NAME by default."""
    resume: bool = False
    """Continue the run in that folder from its last checkpoint."""
    backbone: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"Replace the backbone of the recipe: {', '.join(BACKBONES.kinds())}. Set its options with "
            "--backbone.SETTING."
        ),
    ] = None
    code: Path | None = None
    """Python file that defines components of the experiment. The file is executed."""
    allow_changed_code: bool = False
    """Resume with a code file that has changed since training."""


@dataclass(frozen=True)
class TrainArguments:
    """Train an experiment: a recipe with any of its settings changed."""

    run: Annotated[RunArguments, tyro.conf.arg(name="")] = field(default_factory=RunArguments)
    # no tyro subcommands: --backbone has already selected the config class
    config: Annotated[tyro.conf.AvoidSubcommands[Config], tyro.conf.arg(name="")] = field(default_factory=Config)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.run.run or Path("runs") / self.config.name


@dataclass(frozen=True)
class AutoArguments:
    """Settings that the automatic ones depend on."""

    data: DataConfig = field(default_factory=DataConfig)
    device: str = "auto"


def parse_train_arguments(
    arguments: Sequence[str], summarize: Summarize, read_init: ReadConfig | None = None
) -> TrainArguments:
    """Parse the arguments of `jepa train`.

    `summarize` inspects the images if settings are derived from them, and `read_init` reads the config of --init.

    Raises `InputError` for invalid arguments, and `SystemExit` after printing the help.
    """
    wants_help = bool({"-h", "--help"} & set(arguments))
    first, flags = list(arguments[:1]), list(arguments[1:])
    if not first or first[0].startswith("-"):
        first, flags = [], list(arguments)
    _check_recipe_first(first, flags)
    words, given = split(flags)
    _check_one_code_file(first, given)
    for item in given:
        if item.flag == "--backbone" and not item.words and not item.value:
            raise InputError(f"--backbone has no value; give one of {', '.join(BACKBONES.kinds())}")
    taken = take(options_of(RunArguments()), given)
    run = build(RunArguments(), taken.values | ({("recipe",): first[0]} if first else {}))
    if first and run.config is not None:
        raise InputError(f"give either the recipe '{first[0]}' or --config {run.config}, not both")
    readers = Readers(None, None) if wants_help else Readers(summarize, read_init)
    config, init = _default_config(run, taken.rest, readers)
    if run.backbone is not None:
        config = with_backbone(config, run.backbone)
    if wants_help:
        print_help(TrainArguments, "jepa train", default=TrainArguments(run, config))
    config = config if run.config is None else _of_other_images(config, taken.rest)
    config = _override(config, taken, words)
    if init is not None:
        _check_architecture(config, init)
    if not first and run.config is None and not run.resume and os.environ.get("RANK", "0") == "0":
        print(f"jepa: no recipe is given, so it is {DEFAULT_RECIPE} ('jepa recipes' lists all)", file=sys.stderr)
    return TrainArguments(run, config)


def parse_finetune_arguments(
    arguments: Sequence[str], summarize: Summarize, read_init: ReadConfig
) -> tuple[TrainArguments, list[str]]:
    """Parse the arguments of `jepa finetune RUN`, which are those of `jepa train finetune --init RUN`.

    --labels takes a fraction or a percentage. Images are those of the run unless --data names others; the run folder
    is runs/RUN-finetuned by default. Returns the parsed arguments, and those of `jepa train` that are equivalent.
    """
    if {"-h", "--help"} & set(arguments):
        print_help(TrainArguments, "jepa finetune RUN", default=TrainArguments(config=recipe("finetune")))
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "RUN is missing: the first argument of 'jepa finetune' is the run or the weights to start from"
        )
    path, *flags = arguments
    flags = list(_expand_labels(flags))
    _, given = split(flags)
    names = {item.flag for item in given}
    init = read_init(path)
    if not names & {"--data", "--data.source"}:
        if init.data.source == "unknown":
            raise InputError(f"{path} has no images of its own; give labeled ones with --data SOURCE")
        flags += ["--data", init.data.source]
    if not names & {"--data.canvas", "--canvas"}:
        flags += ["--data.canvas", *map(str, init.data.canvas_size)]
    if "--name" not in names:
        flags += ["--name", f"{init.name}-finetuned"]
    words = ["finetune", "--init", path, *flags]
    return parse_train_arguments(words, summarize, read_init), words


def _expand_labels(flags: Sequence[str]) -> Iterator[str]:
    """Replace --labels and its value, a fraction or a percentage, by the setting --objective.labels."""
    words = iter(flags)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--labels":
            yield word
            continue
        value = value if equals else next(words, "")
        percentage = re.fullmatch(r"([0-9.]+)\s*%", value.strip())
        try:
            yield from ("--objective.labels", str(float(percentage[1]) / 100 if percentage else float(value)))
        except ValueError:
            raise InputError(
                f"--labels must be a fraction such as 0.1, or a percentage such as 10%, got {shown(value)}"
            ) from None


def _of_init(config: Config, init: Config) -> Config:
    """Return a config with the architecture and the normalization of a trained model."""
    shape = {name: getattr(init.data, name) for name in ("image_size", "channels", "mean", "std")}
    return replace(config, backbone=init.backbone, data=replace(config.data, **shape))


def _check_architecture(config: Config, init: Config) -> None:
    """Raise `InputError` if flags have changed the architecture of the model that training starts from."""
    given = flat(init)
    for name, value in flat(config).items():
        if (name.startswith("backbone.") or name == "data.channels") and value != given.get(name):
            raise InputError(
                f"{name} is {shown(value)}, but the model {config.init} has {shown(given.get(name))}; leave out the "
                "flag, or train from scratch without --init"
            )


def _of_other_images(config: Config, given: Sequence[Given]) -> Config:
    """Return the config of a file without what was measured on its images if the flags name other ones."""
    source = take(_options(AutoArguments()), given).values.get(("data", "source"), config.data.source)
    if source == config.data.source:
        return config
    data = replace(config.data, mean=None, std=None)
    return replace(config, data=data, objective=config.objective.without_classes())


def _override(config: Config, taken: Taken, words: list[str]) -> Config:
    """Return a config with the settings that the remaining flags override.

    Raises `InputError` if they are invalid, or if words are left over.
    """
    options = _options(config)
    overrides = take(options, taken.rest)
    options |= options_of(RunArguments())
    for item in overrides.rest:
        _check_kind(item.flag, config)
        reject_flag(item.flag, options, "jepa train")
    for flag, word in [*(("", word) for word in words), *taken.stray, *overrides.stray]:
        reject_word(flag, word, options, "'jepa train --help' lists the options")
    changed: Config = build(config, overrides.values)
    return changed


def _check_kind(flag: str, config: Config) -> None:
    """Raise `InputError` if a flag is a setting of other backbones or objectives than those of the config."""
    group, _, name = flag.removeprefix("--").partition(".")
    table = {"backbone": BACKBONES, "objective": OBJECTIVES}.get(group)
    if table is None:
        return
    kinds = [kind for kind, part in table.kinds().items() if name.replace("-", "_") in {f.name for f in fields(part)}]
    if kinds:
        raise InputError(
            f"{flag} is a setting of {' and '.join(kinds)}, but the {group} is {getattr(config, group).kind}"
        )


def _options(settings: Any) -> dict[str, Option]:
    """Return the options of a config, with --data for its data source."""
    options = options_of(settings)
    return options | ({"--data": options["--data.source"]} if "--data.source" in options else {})


def _check_recipe_first(first: list[str], flags: list[str]) -> None:
    """Raise `InputError` if the name of a recipe comes after the flags."""
    for before, argument in zip(["", *flags], flags, strict=False):
        if not first and argument in RECIPES and (not before.startswith("--") or before == "--resume" or "=" in before):
            raise InputError(f"the recipe '{argument}' must come first: jepa train {argument} ...")


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Replace `~` by the home folder also in --flag=~/path and in arguments that no shell has seen."""
    home = str(Path.home())
    return [
        re.sub(r"^(--[\w.-]+=)?~(?=/|$)", lambda match: (match[1] or "") + home, argument) for argument in arguments
    ]


def _default_config(run: RunArguments, given: list[Given], readers: Readers) -> tuple[Config, Config | None]:
    """Return the config that the flags override, and that of the model that training starts from, if there is one.

    Without `readers`, automatic settings use placeholder data.
    """
    code: CodeConfig | None = load_code(run.code, run.allow_changed_code) if run.code is not None else None
    if run.config is not None:
        config = read_config(run.config)
    elif is_file := CODE_FILE.fullmatch(run.recipe):
        code = load_code(is_file[1], run.allow_changed_code)
        config = _recipe_of_code(code, is_file[2])
    elif run.recipe not in RECIPES and os.path.isfile(run.recipe):  # noqa: PTH113  (no error for a long name)
        raise InputError(f"{run.recipe} is not a Python file; give the name of a recipe, or a file that ends in .py")
    else:
        config = recipe(run.recipe)
    folder = run.run or Path("runs") / build(_Name(config.name), take(options_of(_Name()), given).values).name
    saved, init = folder / "config.json", None
    if run.resume and run.config is None and saved.is_file():
        config = read_config(saved)
    else:
        path = build(_Init(), take(options_of(_Init()), given).values).init
        init = readers.read_init(path) if readers.read_init and path is not None else None
        if run.recipe in AUTO_RECIPES and run.config is None and readers.summarize is not None:
            size = None if init is None else init.data.size
            config = _automatic(run.recipe, given, folder.parent, readers.summarize, size)
    if init is not None:
        config = _of_init(config, init)
    return (config if code is None else replace(config, code=code)), init


def _check_one_code_file(first: list[str], given: list[Given]) -> None:
    """Raise `InputError` if more than one code file is given; a run can record only one."""
    if [item.flag for item in given].count("--code") + sum(map(bool, map(CODE_FILE.fullmatch, first))) > 1:
        raise InputError("more than one code file was given; put all components in one file and pass it once")


@dataclass(frozen=True)
class _Name:
    name: str = ""


@dataclass(frozen=True)
class _Init:
    init: str | None = None


def _recipe_of_code(code: CodeConfig, name: str | None) -> Config:
    """Return the config of a recipe in a user file; the name may be omitted if there is only one."""
    own = loaded_code(code).recipes
    if not own:
        raise InputError(f'{code.file} defines no recipe; add one to the table: RECIPES["name"] = function')
    if not name and len(own) > 1:
        raise InputError(f"{code.file} defines several recipes; choose one: {code.file}:NAME with {', '.join(own)}")
    name = name or own[0]
    if name not in own:
        raise InputError(f"{code.file} defines no recipe '{name}'{suggest(name, own)} (it has {', '.join(own)})")
    return recipe(name)


def _automatic(
    name: str, flags: list[Given], runs: Path, summarize: Summarize, size_of_init: tuple[int, int] | None
) -> Config:
    """Choose the settings from the images and the device, and print them with the reasons.

    `size_of_init` is the image size of the model that training starts from, which also determines the backbone.
    """
    values = take(_options(AutoArguments()), flags).values
    if ("data", "source") not in values:
        raise InputError(f"{name} derives its settings from your images; pass them with --data PATH/TO/FOLDER")
    given = build(AutoArguments(), values)
    summary, text = summarize(given.data.source, given.device, runs)
    size = given.data.size if ("data", "image_size") in values else size_of_init
    config, settings = AUTO_RECIPES[name](given.data.source, summary, size)
    if os.environ.get("RANK", "0") == "0":
        print(f"{name}: {text}; automatic settings (override with flags):", file=sys.stderr)
        others = {item.flag for item in flags}
        if size_of_init is not None:
            others |= {setting.flag for setting in settings if setting.flag.startswith(OF_INIT)}
        for setting in (setting for setting in settings if setting.flag not in others):
            print(f"  {f'{setting.flag} {setting.value}':<26} {setting.reason}", file=sys.stderr)
    return config

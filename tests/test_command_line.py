"""Every error of a command line is one plain sentence, and every setting can be given."""

import dataclasses
import io
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.cli import COMMANDS, main
from jepa.config import BACKBONES, OBJECTIVES, Config, DataConfig, InputError, ViTConfig
from jepa.config.arguments import AUTO_RECIPES, RunArguments, parse_train_arguments
from jepa.config.command_line import build, options_of, split, take
from jepa.config.recipes import RECIPES
from jepa.config.serialization import flat, to_dict
from jepa.files import printable
from tests.conftest import override

FIXED_RECIPES = [name for name in RECIPES if name not in AUTO_RECIPES]
ODD = [
    "",
    " ",
    "\n",
    "--",
    "-",
    "-x",
    "--=",
    "=",
    "[bold]x[/bold]",
    "\x1b[31m",
    "é",
    "\ud800",
    "9" * 5000,
    "None",
    "--help=",
]
JARGON = re.compile(r"[╭│╰─\x1b`]|\[/?bold|<class|Traceback|invalid literal|\bint\b|\bstr\b|\bfloat\b|NoneType|tuple")


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


def is_sentence(text: str) -> bool:
    return printable(text) == text == text.strip() and not JARGON.search(text) and len(text) < 800


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train demo --stepz 3", "there is no option --stepz; did you mean --steps? ('jepa train --help' lists all)"),
        ("train --lr 3", "there is no option --lr; did you mean --optim.lr? ('jepa train --help' lists all)"),
        ("train --backbone.siz 3", "there is no option --backbone.siz; did you mean --backbone.size?"),
        ("train --backbone.alpha 3", "--backbone.alpha is a setting of energy, but the backbone is vit"),
        ("train --objective.fixations.shift 1", "there is no option --objective.fixations.shift"),
        ("train demo --steps banana", "--steps must be an integer, got 'banana'"),
        ("train demo --steps", "--steps has no value; give an integer"),
        ("train demo --steps=", "--steps must be an integer, got ''"),
        ("train --optim.lr nan", "--optim.lr must be a number, got 'nan'"),
        ("train --optim.kind adm", "--optim.kind must be one of adamw, muon, got 'adm'"),
        ("train --optim.betas 1", "--optim.betas must be 2 numbers, got '1'"),
        ("train --data.image-size 1 2 3", "unexpected argument '3' after --data.image-size"),
        ("train --data.image-size x", "--data.image-size must be an integer or 2 integers, got 'x'"),
        ("train --data.channels 2", "--data.channels must be one of 1, 3, got '2'"),
        ("train --compile 3", "--compile takes no value, got '3'; give --compile or --no-compile alone"),
        ("train --objective.masks.shared=1", "give --objective.masks.shared or --objective.masks.no-shared alone"),
        ("train --resume=no", "--resume takes no value, got 'no'"),
        ("train demo --steps 3 --steps=4", "--steps is given twice; give it once"),
        ("train --compile --no-compile", "--no-compile is given together with --compile; give one of them"),
        ("train --data a --data.source b", "--data.source is given together with --data; give one of them"),
        ("train demo extra", "unexpected argument 'extra' ('jepa train --help' lists the options)"),
        ("train --seed 1 steps 3", "unexpected argument 'steps' after --seed; did you mean --steps?"),
        ("train --backbone resnet", "for a ConvNet of timm, give --backbone convnet --backbone.name NAME"),
        ("train --backbone.size banana", "backbone.size must be one of tiny, small, base"),
        ("train --code a.py --code b.py", "more than one code file was given"),
        ("train saccade-folder", "saccade-folder derives its settings from your images; pass them with --data"),
        ("train --data ''", "--data must not be empty"),
        ("train --data=", "--data must not be empty"),
        ("trian", "there is no command 'trian'; did you mean 'train'?"),
        ("evaluate", "RUN is missing; usage: jepa evaluate RUN [--data SOURCE] [--full] [--json]"),
        ("evaluate ''", "RUN must not be empty; usage: jepa evaluate RUN"),
        ("evaluate a b", "unexpected argument 'b' (usage: jepa evaluate RUN"),
        ("evaluate --full a --json b", "--json takes no value, got 'b'; give --json or --no-json alone"),
        ("evaluate a --full yes", "--full takes no value, got 'yes'"),
        ("evaluate a --data", "--data has no value; give it after the flag"),
        ("evaluate a --jsn", "there is no option --jsn; did you mean --json? ('jepa evaluate --help' lists all)"),
        ("plot a b c d", "unexpected argument 'c' (usage: jepa plot RUN"),
        ("export a", "--format is missing; give one of transformers, timm, safetensors, onnx, torch-export"),
        ("export --format onnx", "RUN is missing; usage: jepa export RUN"),
        (
            "export a --format none --out b",
            "--format must be one of transformers, timm, safetensors, onnx, torch-export, got",
        ),
        ("plot a --patch 1", "--patch must be 2 integers or none, got '1'"),
        ("plot a --patch 1 b", "--patch must be 2 integers or none, got '1 b'"),
        ("plot a --patch", "--patch has no value; give 2 integers or none"),
        ("compare a b --figure", "--figure has no value; give it after the flag"),
        ("data", "SOURCE is missing; usage: jepa data SOURCE"),
        ("recipes all", "unexpected argument 'all' (usage: jepa recipes)"),
    ],
)
def test_a_typing_error_is_one_sentence(line, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = [word.strip("'") for word in line.split(" ")]
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("jepa: ")
    assert message in err
    assert err.endswith("\n")
    assert is_sentence(err[:-1])
    assert not list(tmp_path.iterdir())


WORDS = st.sampled_from(
    [
        *options_of(Config()),
        *ODD,
        "--data",
        "--backbone",
        "energy",
        "--no-compile",
        "3",
        "-1",
        "0.5",
        "x",
        "demo",
        "--resume",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS | st.text(max_size=5), max_size=5))
def test_any_arguments_are_parsed_or_rejected_in_a_sentence(words):
    if {"-h", "--help", "--code", "--config"} & set(words):
        return
    try:
        parse_train_arguments(words, summarize=None)
    except InputError as error:
        text = printable(str(error))  # as at the entry point
        assert 10 < len(text) < 800
        assert not re.search(r"<class|invalid literal|bold\]\[|NoneType", text)


@pytest.mark.parametrize("name", FIXED_RECIPES)
def test_every_setting_of_a_recipe_can_be_given_by_its_flag(name):
    config = RECIPES[name]()
    flags = []
    for setting, value in flat(config).items():
        group, _, last = setting.replace("_", "-").rpartition(".")
        if (last == "kind" and group in ("backbone", "objective")) or setting in (
            "code",
            "labels_seen",
            "objective.names",
        ):
            continue
        prefix = f"--{group}." if group else "--"
        if isinstance(value, bool):
            flags.append(f"{prefix}{last}" if value else f"{prefix}no-{last}")
        else:
            flags += [prefix + last, *map(str, value if isinstance(value, list) else [value])]
    other = dataclasses.replace(
        config, name="other", steps=1, seed=5, backbone=changed(config.backbone), objective=changed(config.objective)
    )
    options = options_of(other)
    words, given_flags = split(flags)
    taken = take(options, given_flags)
    assert (words, taken.rest, taken.stray) == ([], [], [])
    assert build(other, taken.values) == config
    assert parse_train_arguments([name, *flags], summarize=None).config == config


def changed(part):
    """Flip the switches of a config, which keeps it valid."""
    switches = {f.name for f in dataclasses.fields(part) if isinstance(getattr(part, f.name), bool)}
    return dataclasses.replace(part, **{name: not getattr(part, name) for name in switches})


def test_other_images_have_a_mean_of_their_own(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(override(RECIPES["demo"](), data__mean=(0.5,), data__std=(0.2,)))))
    for flags, mean, std in (
        ([], (0.5,), (0.2,)),
        (["--data", "sample"], (0.5,), (0.2,)),
        (["--data", "cifar10"], None, None),
        (["--data.source=cifar10", "--data.mean", "0.1"], (0.1,), None),
    ):
        config = parse_train_arguments(["--config", str(file), *flags], summarize=None).config.data
        assert (config.mean, config.std) == (mean, std)


@pytest.mark.parametrize("variable", ["", "1"])
def test_the_help_has_colors_unless_they_are_switched_off(variable, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", variable)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--steps" in terminal.getvalue()
    assert ("\x1b" in terminal.getvalue()) == (not variable)


def test_values_of_several_words():
    def parsed(*flags: str) -> Config:
        return parse_train_arguments(["demo", *flags], summarize=None).config

    assert parsed("--data.image-size", "28", "56").data.image_size == (28, 56)
    assert parsed("--data.image-size", "56").data.image_size == 56
    assert parsed("--data.image-size=56", "--data.canvas", "None").data.canvas is None
    assert parsed("--data.mean", "0.5", "--data.std", "0.5").data.mean == (0.5,)
    assert parsed("--optim.clip", "none").optim.clip is None
    assert parsed("--optim.lr", "1e-4").optim.lr == 1e-4
    assert parsed("--batch_size", "64").batch_size == 64
    assert parsed("--data", "photos").data.source == "photos"
    with pytest.raises(InputError, match=r"must be finite and at least 0, got -1\.0"):
        parsed("--optim.lr", "-1")


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_the_help_is_plain_and_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    for words in ([command, "--help"], [command, "-h"]) if command else (["--help"], ["-h"], ["help"], []):
        code, out, err = call(capsys, *words)
        assert (code, err) == (0, "")
        assert "usage: jepa" in out
        assert "\x1b" not in out
        assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("backbone", BACKBONES.kinds())
def test_the_help_lists_the_options_that_are_accepted(backbone, capsys):
    recipe = "saccade-demo"
    _, out, _ = call(capsys, "train", recipe, "--backbone", backbone, "--help")
    listed = set(re.findall(r"^\W+(--[\w.-]+)", out, re.M))
    config = parse_train_arguments([recipe, "--backbone", backbone], summarize=None).config
    accepted = {name for name in options_of(config) | options_of(RunArguments()) if name.startswith("--")}
    assert accepted <= listed


def test_flags_of_user_configs_follow_from_their_types():
    config = Config(backbone=ViTConfig(patch=8), data=DataConfig(image_size=(32, 64)), objective=OBJECTIVES.default())
    assert {"--backbone.patch", "--data.image-size", "--objective.crop.flip"} <= options_of(config).keys()
    assert "--code" not in options_of(config)

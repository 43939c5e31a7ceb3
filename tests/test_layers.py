"""Imports follow the layers of the architecture: a module imports from layers before its own, never from later ones."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "jepa"
LAYERS = [
    ["config", "torchvision_guard", "allocator"],
    ["config_json"],
    ["rng", "distributed", "optim", "plan"],
    ["data", "views", "masking"],
    ["saccades"],
    ["backbones"],
    ["objectives"],
    ["evaluation"],
    ["runs", "recipes"],
    ["subject"],
    ["monitor", "evaluate", "describe"],
    ["train"],
    ["baselines", "figures"],
    ["report", "compare", "explorer", "export"],
    ["cli"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FRONT_DOOR = {"__init__.py", "__main__.py"}


def imports(file: Path) -> set[str]:
    """Rooms of the package that a file imports anywhere, except where it runs as a script."""
    tree = ast.parse(file.read_text())
    tree.body = [node for node in tree.body if "__name__" not in ast.dump(node)]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jepa":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jepa.")}
    return found - {"__version__"}


def test_every_import_goes_down():
    files = [file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or file.name not in FRONT_DOOR]
    assert len(files) > 15
    for file in files:
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in imports(file):
            assert other == room or LEVEL[other] < LEVEL[room], f"{room} must not import {other} ({file.name})"


def test_config_and_the_command_line_do_not_import_torch():
    names = ("plan.py", "recipes.py", "cli.py", "__init__.py")
    for file in (*(PACKAGE / name for name in names), *(PACKAGE / "config").glob("*.py")):
        tree = ast.parse(file.read_text())
        top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        top |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert not {module for module in top if module and module.startswith(("torch", "timm", "jepa.runs"))}

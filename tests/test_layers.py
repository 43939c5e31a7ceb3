"""Imports follow the layers of the architecture: a module imports from rooms below its own, never from above.

A room is a package or a module directly in `jepa/`. Every import counts: at the top of a file, in a function, for type
checking only, or where a file runs as a script.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "jepa"
LAYERS = (  # from the top, which may import everything below, to the bottom, which imports nothing
    *("cli", "classify", "embeddings", "report", "evaluate", "evaluation_run", "train", "initialization", "logger"),
    *("interop", "runs", "checkpoints", "evaluation"),
    *("objectives", "data", "backbones", "transforms", "optim", "distributed", "config", "rng", "files"),
    *("terminal", "threads"),
    *("torchvision_guard", "version"),
)
FRONT_DOOR = {"__init__", "__main__"}  # `import jepa` and `python -m jepa` may open any room
FILES = sorted(PACKAGE.rglob("*.py"))
AUTOGRAD_CALLS = ("save_for_backward", "native_layer_norm_backward", "LeanStep.apply")  # take positional tensors only


def module_name(file: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(("jepa", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(file) for file in FILES}


def imported_modules(text: str) -> set[str]:
    """Return the modules of the package that a source text imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {member if member in MODULES else str(node.module) for member in members}
    return {name for name in names if name.split(".")[0] == "jepa"}


def room_of(module: str) -> str:
    """Return the room of a module; `jepa` itself is the front door."""
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_imports_go_down(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in FRONT_DOOR:
        return
    assert room in LAYERS, f"{room} has no place in the layers"
    for module in imported_modules(file.read_text()):
        other = room_of(module)
        allowed = other == room or (other in LAYERS and LAYERS.index(other) > LAYERS.index(room))
        assert allowed, f"{room} must not import {module}"


def test_every_layer_is_a_room():
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES} - FRONT_DOOR
    assert rooms == set(LAYERS)


def test_no_circle_of_modules():
    graph = {module_name(file): imported_modules(file.read_text()) - {module_name(file)} for file in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_imports_are_seen_wherever_they_are():
    text = (
        "import jepa.cli\n"
        "if __name__ == '__main__':\n    from jepa.train import main\n"
        "def f():\n    from jepa import distributed\n"
        "try:\n    from jepa.data.sources import base\nexcept ImportError:\n    import os\n"
    )
    assert imported_modules(text) == {"jepa.cli", "jepa.train", "jepa.distributed", "jepa.data.sources.base"}


def test_calls_have_at_most_five_positional_arguments():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or len(node.args) <= 5:
                continue
            name = ast.unparse(node.func)
            assert name.endswith(AUTOGRAD_CALLS), f"{file.name}:{node.lineno} {name}"


def test_config_and_the_command_line_do_not_import_torch():
    for file in (PACKAGE / "__init__.py", *(PACKAGE / "cli").glob("*.py"), *(PACKAGE / "config").glob("*.py")):
        tree = ast.parse(file.read_text())
        top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        top |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
        heavy = {name for name in top if name.split(".")[0] in ("torch", "timm", "pyarrow")}
        assert not heavy, f"{file.name} imports {heavy}"
        others = {room_of(module) for module in top if module.startswith("jepa")}
        assert others <= {"cli", "config", "files", "terminal", "threads", "version"}, f"{file.name} imports {others}"

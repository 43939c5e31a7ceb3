import subprocess
import sys

import torch

from jepa.torchvision_guard import guard, installed_version, is_mismatched


def test_when_the_guard_is_needed():
    assert is_mismatched(None, "0.28.0+cu130")
    assert not is_mismatched("13.0", "0.28.0+cu130")
    assert not is_mismatched(None, "0.28.0+cpu")
    assert not is_mismatched(None, "0.28.0")
    assert not is_mismatched(None, None)


def test_the_guard_stands_exactly_where_it_is_needed():
    assert guard() == is_mismatched(torch.version.cuda, installed_version())
    assert guard() == guard()  # asking twice declares nothing twice


def test_torchvision_imports_behind_the_guard():
    code = "from jepa.torchvision_guard import guard; guard(); import torchvision, timm; print(torchvision.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == installed_version()


def test_without_the_guard_a_mismatched_torchvision_does_not_import():
    result = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    failed = "torchvision::nms does not exist" in result.stderr
    assert failed == is_mismatched(torch.version.cuda, installed_version())

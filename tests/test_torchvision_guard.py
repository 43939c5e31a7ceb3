"""The guard for a torchvision whose wheel does not match that of torch."""

import subprocess
import sys

import torch

from jepa.torchvision_guard import guard, installed_version, is_mismatched


def test_only_torchvision_for_cuda_with_torch_for_cpu_is_mismatched():
    assert is_mismatched(None, "0.28.0+cu130")
    assert not is_mismatched("13.0", "0.28.0+cu130")
    assert not is_mismatched(None, "0.28.0+cpu")
    assert not is_mismatched(None, "0.28.0")
    assert not is_mismatched(None, None)


def test_the_guard_is_active_exactly_if_the_wheels_are_mismatched():
    assert guard() == is_mismatched(torch.version.cuda, installed_version())
    assert guard() == guard()  # the second call does not declare the operators again


def test_torchvision_can_be_imported_after_the_guard():
    code = "from jepa.torchvision_guard import guard; guard(); import torchvision, timm; print(torchvision.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == installed_version()


def test_mismatched_torchvision_cannot_be_imported_without_the_guard():
    result = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    failed = "torchvision::nms does not exist" in result.stderr
    assert failed == is_mismatched(torch.version.cuda, installed_version())

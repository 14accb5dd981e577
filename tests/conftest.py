"""Fixtures that several rooms share."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.manual_seed(0)


@pytest.fixture
def reference() -> Path:
    """Recorded outputs of the authors' own code."""
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip("the recorded outputs of the authors' code are not beside this checkout (../shared/reference)")
    return folder


@pytest.fixture
def cifar10() -> Path:
    folder = SHARED / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip("CIFAR-10 is not beside this checkout (../shared/data/cifar10)")
    return folder

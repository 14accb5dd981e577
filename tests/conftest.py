"""Fixtures that several rooms share."""

import sys
import zipfile
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


@pytest.fixture
def fashion_mnist() -> Path:
    folder = SHARED / "data" / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip("Fashion-MNIST is not beside this checkout (../shared/data/fashion-mnist)")
    return folder


@pytest.fixture
def resnet56() -> Path:
    file = SHARED / "data" / "cifar10-classifier" / "resnet56-4bfd9763.th"
    if not file.is_file():
        pytest.skip("the classifier of CIFAR-10 is not beside this checkout (../shared/data/cifar10-classifier)")
    return file


@pytest.fixture
def taef2() -> Path:
    folder = SHARED / "data" / "tiny-autoencoder-taef2"
    if not folder.is_dir():
        pytest.skip("the weights of TAEF2 are not beside this checkout (../shared/data/tiny-autoencoder-taef2)")
    return folder


@pytest.fixture(scope="session")
def hands(tmp_path_factory) -> Path:
    """A folder of 1,000 photos of hands, unpacked."""
    file = SHARED / "data" / "sign-digits100" / "sign-digits100.zip"
    if not file.is_file():
        pytest.skip("the photos of hands are not beside this checkout (../shared/data/sign-digits100)")
    folder = tmp_path_factory.mktemp("hands")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    return folder / "sign-digits100"

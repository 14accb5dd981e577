"""Noise in the page's JavaScript is torch's, and the walk between two noises keeps their length."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

ASSETS = Path(__file__).parents[2] / "src" / "meanflow" / "page" / "assets"
SEEDS = (0, 1, 12345, 2**31 + 7, 2**32 - 1)
SIZES = (1, 2, 3, 15, 16, 17, 64, 100, 3072)  # both of torch's ways, whole and broken rows of 16


def javascript(code: str):
    """What a module that may import the page's noise.js prints as JSON."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, so the page's JavaScript cannot be run alone")
    source = f'import {{ noise, slerp }} from "{(ASSETS / "noise.js").as_uri()}";\n{code}'
    done = subprocess.run([node, "--input-type=module"], input=source, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_noise_of_a_seed_is_torchs():
    code = (
        f"const out = {{}}; for (const s of {list(SEEDS)}) for (const n of {list(SIZES)}) "
        "out[`${s},${n}`] = Array.from(noise(s, n)); console.log(JSON.stringify(out));"
    )
    found = javascript(code)
    assert len(found) == len(SEEDS) * len(SIZES)
    for key, values in found.items():
        seed, size = map(int, key.split(","))
        wanted = torch.randn(size, generator=torch.Generator().manual_seed(seed)).numpy()
        # torch takes logarithm, sine and cosine from a vector library, right to a few units in the last place
        assert np.abs(np.array(values) - wanted).max() < 4e-6, key
        other = torch.randn(size, generator=torch.Generator().manual_seed(seed ^ 1)).numpy()
        assert np.abs(np.array(values) - other).max() > 1e-2


def test_the_walk_keeps_the_length_and_ends_at_the_corners():
    code = (
        "const a = noise(3, 512), b = noise(4, 512).map((v) => 2 * v), walk = [0, 0.25, 0.5, 1].map((s) => "
        "Array.from(slerp(a, b, s))); console.log(JSON.stringify([Array.from(a), Array.from(b), ...walk]));"
    )
    a, b, *walk = (np.array(row) for row in javascript(code))
    assert np.allclose(walk[0], a, atol=1e-6) and np.allclose(walk[-1], b, atol=1e-6)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    half = (np.sin(angle / 2) / np.sin(angle)) * (a + b)
    assert np.allclose(walk[2], half, atol=1e-5)
    straight = np.linalg.norm((a + b) / 2)
    assert np.linalg.norm(walk[2]) > 1.2 * straight  # a straight walk passes through noise that is too short

"""Judging by protocols: the figures of the digits, results that carry their conditions, several processes."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from meanflow.data import digits
from meanflow.evaluation import PROTOCOLS, Gaussian, Judge, Protocol, Result, frechet_distance, protocol, protocol_for
from meanflow.evaluation.guards import Refused
from meanflow.evaluation.judge import draw, labels_for
from meanflow.evaluation.result import short
from meanflow.nets import DiT

# One sample in a thousand leaves the range of the digits; a random network is all that a law needs.
SMALL = {"samples": 150, "batch": 50}


def small_net(seed=0):
    torch.manual_seed(seed)
    net = DiT((1, 8, 8), patch=4, width=32, depth=1, heads=4, classes=10)
    torch.nn.init.normal_(net.final.weight, std=0.02)
    return net


@pytest.fixture(scope="module")
def judge():
    return Judge("digits")


@pytest.fixture(scope="module")
def result(judge):
    return judge.row(small_net(), steps=2, weights="EMA 0.999", images=32_000, **SMALL)


def test_digits_are_judged_as_their_published_figures_say(judge, result):
    """64 pixels as they are, 359 held-out images, floor of the training images, median distances."""
    train, held = (digits(split).batch(range(len(digits(split))))[0].flatten(1) for split in ("train", "held_out"))
    assert judge.floor["frechet"] == pytest.approx(frechet_distance(Gaussian.of(train), Gaussian.of(held)), rel=1e-6)
    assert judge.floor["frechet"] == pytest.approx(0.4389, abs=1e-4)
    assert judge.floor["nearest"] == pytest.approx(float(torch.cdist(held, train).min(1).values.median()))
    assert judge.floor["nearest"] == pytest.approx(2.065, abs=1e-3)
    assert judge.protocol.error == pytest.approx(0.0056, abs=1e-3)
    x, labels = draw(small_net(), 150, 2, classes=10, first_seed=1_000_000, batch=50)
    flat = x.flatten(1)
    assert result.metrics["frechet"] == pytest.approx(frechet_distance(Gaussian.of(flat), Gaussian.of(held)), rel=1e-6)
    assert result.metrics["nearest"] == pytest.approx(float(torch.cdist(flat, train).min(1).values.median()), rel=1e-6)
    assert result.metrics["agreement"] == float((judge.material.classify(flat) == labels).double().mean())
    assert set(result.metrics) == set(PROTOCOLS["digits"].metrics) == set(result.floor)


def test_a_result_is_never_a_bare_number(result):
    text = str(result)
    for said in (
        "FD-pixels-150",
        "protocol digits v1",
        "EMA 0.999",
        "2 calls",
        "no guidance",
        "labels balanced",
        "floor",
    ):
        assert said in text, text
    assert result.title() == "FD-pixels-150" and result.title("kid") == "KD-pixels-150"
    inception = replace(result, protocol=PROTOCOLS["cifar10-train"], samples=10_000)
    assert inception.title() == "FID-10k" and inception.title("kid") == "KID-10k"
    assert [short(n) for n in (50_000, 2000, 359, 1500)] == ["50k", "2k", "359", "1500"]


def test_a_result_travels_through_json(result):
    back = Result.from_json(result.to_json())
    assert back == result and back.protocol.reference.count == 359 and len(back.protocol.reference.statistics) == 64
    with pytest.raises(ValueError, match="keeps no samples"):
        back.interval("frechet")
    with pytest.raises(ValueError, match="no result of this version"):
        Result.from_record({"protocol": result.protocol.record(), "metric": 1})
    with pytest.raises(ValueError, match="no record of a protocol"):
        Protocol.from_record({"name": "digits"})


def test_intervals_hold_the_value_and_narrow_with_the_root_of_the_number(judge, result):
    low, high = result.interval("agreement")
    p = result.metrics["agreement"]
    assert low <= p <= high
    assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 150), rel=0.3)
    more = judge.row(small_net(), steps=2, samples=600).interval("frechet")
    fewer = result.interval("frechet")
    assert 1.3 < (fewer[1] - fewer[0]) / (more[1] - more[0]) < 3
    assert result.interval("kid", level=0.5, resamples=10) != result.interval("kid", level=0.9, resamples=10)
    with pytest.raises(ValueError, match="no metric 'fid'"):
        result.interval("fid")


def test_samples_do_not_depend_on_the_batch():
    net = small_net()
    whole, labels = draw(net, 30, 1, classes=10, batch=30)
    parts, _ = draw(net, 30, 1, classes=10, batch=7)
    assert torch.allclose(whole, parts, atol=1e-5) and labels.tolist() == [i % 10 for i in range(30)]


def test_label_protocols():
    assert labels_for("balanced", 12, 5, 0).bincount().tolist() == [3, 3, 2, 2, 2]
    random = labels_for("random", 5000, 5, 7)
    assert torch.equal(random, labels_for("random", 5000, 5, 7)) and not torch.equal(
        random, labels_for("random", 5000, 5, 8)
    )
    assert 900 < int(random.bincount().min()) < 1000 < int(random.bincount().max()) < 1100
    assert labels_for("balanced", 10, None, 0) is None


def test_a_network_without_classes_is_judged_without_labels(judge):
    torch.manual_seed(0)
    net = DiT((1, 8, 8), patch=4, width=32, depth=1, heads=4)
    torch.nn.init.normal_(net.final.weight, std=0.02)
    r = judge.row(net, **SMALL)
    assert r.protocol.labels == "none" and r.left_out == {"agreement": "the samples have no labels"}
    assert "agreement" not in r.metrics and "labels none" in str(r)


def test_times_and_guidance_are_on_record(judge):
    r = judge.row(small_net(), times=[1.0, 0.3, 0.0], guidance=1.5, **SMALL)
    assert r.steps == 2 and r.times == (1.0, 0.3, 0.0) and "guidance 1.5 at sampling" in str(r)
    assert r.metrics != judge.row(small_net(), steps=2, **SMALL).metrics


def test_protocols_are_found_by_name_and_by_data():
    assert protocol("digits").samples == 2000
    with pytest.raises(ValueError, match="did you mean cifar10-train"):
        protocol("cifar10-trian")
    assert protocol_for("digits:train").name == "digits"
    assert protocol_for({"source": "data/fashion-mnist", "shape": [1, 28, 28]}).name == "fashion-mnist"
    assert protocol_for("data/cifar10").name == "cifar10-train"
    assert protocol_for({"source": "faces", "shape": [3, 64, 64]}).name == "own-images"
    assert protocol_for({"source": "digits.npz", "shape": [3, 64, 64]}).name == "own-images"
    assert protocol_for({"source": "ring", "shape": [2]}).name == "vectors"
    with pytest.raises(ValueError, match="no protocol belongs to data from faces"):
        protocol_for("faces")
    for p in PROTOCOLS.values():
        assert Protocol.from_record(p.record()) == p


class Gloo:
    def __init__(self):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, value):
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def _work(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    judge = Judge("digits")
    r = judge.row(small_net(), world=Gloo(), **SMALL)
    (folder / f"{rank}.json").write_text(replace(r, seconds=0.0).to_json())
    try:
        judge.row(small_net(), world=Gloo(), decode=lambda x: x[:, :, :4] if rank else x, **SMALL)
    except Refused as refused:
        (folder / f"{rank}.txt").write_text(str(refused))
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds_to_the_last_bit(judge, tmp_path):
    """Three batches: one process has two of them, the other one."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_work, (port, tmp_path), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = replace(judge.row(small_net(), **SMALL), seconds=0.0)
    torch.set_num_threads(threads)
    assert [Result.from_json((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [alone, alone]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and "refused by the guard 'shape'" in said[0]

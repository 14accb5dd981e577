"""Law 5: agreement with the authors' JAX code on recorded draws, through the public classes."""

import json

import numpy as np
import pytest
import torch

from meanflow import AdaptiveWeight, Guidance, MeanFlow, sample
from meanflow.convert import dit_arguments, dit_state
from meanflow.nets import DiT
from oracles import relative

CASES = ["no_guidance", "guided_kappa", "guided_omega"]


class Case:
    """One recorded case: network, objective and arrays in our layout."""

    def __init__(self, folder):
        self.settings = json.loads((folder / "case.json").read_text())
        self.arrays = dict(np.load(folder / "case.npz"))
        self.gradients = dit_state(dict(np.load(folder / "grads.npz")))
        parameters = dict(np.load(folder / "params.npz"))
        shape = self.settings["net"]
        self.net = DiT(**dit_arguments(parameters, heads=shape["num_heads"], size=shape["input_size"]))
        self.net.load_state_dict(dit_state(parameters))
        self.labels = self.tensor("y").long()

    def tensor(self, name):
        """An array, images from NHWC to NCHW."""
        value = torch.from_numpy(np.asarray(self.arrays[name]))
        return value.permute(0, 3, 1, 2).contiguous() if value.ndim == 4 else value

    def objective(self, mode="exact"):
        m = self.settings["method"]
        guidance = None
        if m["guidance_eq"]:
            guidance = Guidance.from_paper(m["omega"], m["kappa"], interval=(m["t_start"], m["t_end"]))
        weighting = AdaptiveWeight(p=m["norm_p"], c=m["norm_eps"])
        return MeanFlow(self.net, guidance=guidance, weighting=weighting, derivative=mode)

    def loss(self, mode="exact", **changes):
        dropped = torch.arange(len(self.labels)) < int(self.arrays["num_drop"])
        given = {"noise": self.tensor("e"), "t": self.tensor("t"), "r": self.tensor("r"), "dropped": dropped}
        return self.objective(mode).loss(self.tensor("x"), self.labels, **{**given, **changes})


@pytest.fixture(params=CASES)
def case(request, reference):
    return Case(reference / request.param)


def test_field_and_samples(case):
    z = case.tensor("z")
    u = case.net(z, t=case.tensor("t"), r=case.tensor("r"), cond=case.labels)
    assert relative(u, case.tensor("u")) < 1e-5
    for name, times in (("1", [1, 0]), ("2", [1, 0.5, 0]), ("4", [1, 0.8, 0.55, 0.2, 0])):
        x = sample(case.net, z, case.labels, times=times)
        assert relative(x, case.tensor(f"sample_{name}")) < 1e-5


@pytest.mark.parametrize("mode", ["exact", "no_grad", "finite_difference"])
def test_loss_and_all_gradients(case, mode):
    out = case.loss(mode)
    assert relative(out.loss, case.tensor("loss")) < 1e-5
    assert relative(out.rows["v_error"], case.tensor("v_loss")) < 1e-5
    out.loss.backward()
    names = dict(case.net.named_parameters())
    assert names.keys() == case.gradients.keys()
    for name, parameter in names.items():
        assert relative(parameter.grad, case.gradients[name]) < 1e-4, name


def test_a_dropped_row_that_keeps_its_label_is_noticed(case):
    if int(case.arrays["num_drop"]) == 0:
        pytest.skip("this case dropped no labels")
    rows = slice(0, int(case.arrays["num_drop"]))
    out = case.loss(dropped=torch.zeros(len(case.labels), dtype=torch.bool))
    assert relative(out.rows["v_error"][rows], case.tensor("v_loss")[rows]) > 1e-4


def test_averaging_over_dimensions_instead_of_summing_is_noticed(case):
    """The mistake of several ports: with p = 1 it multiplies c by the number of dimensions."""
    weighting = case.objective().weighting
    squared = case.loss().rows["squared_error"]
    averaged = squared / case.tensor("x")[0].numel()
    wrong = (weighting(averaged) * averaged).mean()
    assert relative(wrong, case.tensor("loss")) > 1e-4

"""MeanFlow: the mean velocity learned from its own derivative along the flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.conditions import Cond, Null, null_like, take, without_noise
from ..core.derivative import MODES, Mode, call, evaluating, mean_velocity_target, predict
from ..core.guidance import Guidance
from ..core.masks import mask_of, masked, sizes
from ..core.path import check_samples, conditional_velocity, interpolate, like
from ..core.source import Source
from ..core.times import Pairs, Times
from ..core.weighting import AdaptiveWeight, squared_norm
from .base import Objective, Output, Precision, Step, check_batch, check_precision, mean, plain


class MeanFlow(Objective):
    """E w ||u(z_t, r, t) - sg(v - (t - r) du/dt)||^2 with adaptive weight w.

    times: sampler of (t, r). guidance: trained into the field; None trains without it and without dropped
    labels. weighting: AdaptiveWeight(p, c). derivative: "exact", "no_grad" or "finite_difference".
    tangent: of (r, t) in the derivative, (0, 1) is right; the others of table 1b are for teaching.
    null: what "no condition" is; None takes the network's own `null`. precision: "fp32", or "bf16" for the
    network under autocast, everything else in float32. derivative_precision: the same for the pass that gives
    du/dt, as the precision by default. source: where the other end of the path comes from, called as
    source(x, cond, generator); None is N(0, I). Data in pairs (x, e) have e in the condition's entry "noise" instead.
    Where the condition has a "mask", what does not exist enters neither network, derivative nor loss.
    Source: arXiv:2505.13447, eq. 6-11 and 17-22.
    """

    field = "average"

    def __init__(
        self,
        net: nn.Module,
        *,
        times: Times | None = None,
        guidance: Guidance | None = None,
        weighting: AdaptiveWeight | None = None,
        derivative: Mode = "exact",
        tangent: tuple[float, float] = (0.0, 1.0),
        null: Null = None,
        precision: Precision = "fp32",
        derivative_precision: Precision | None = None,
        source: Source | None = None,
    ) -> None:
        super().__init__(net, null, precision, source)
        check_precision(derivative_precision or precision)
        if derivative not in MODES:
            raise ValueError(f"derivative must be one of {', '.join(MODES)}, got {derivative!r}")
        self.times = times or Times()
        self.guidance = guidance
        self.weighting = weighting or AdaptiveWeight()
        self.derivative: Mode = derivative
        self.tangent = tangent
        self.derivative_precision: Precision = derivative_precision or precision
        if derivative == "finite_difference" and self.derivative_precision == "bf16":
            raise ValueError(
                "finite differences in bf16 have errors of 25 % and more whatever the step; pass "
                'derivative_precision="fp32"'
            )

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments besides the network, JSON-able."""
        return {
            "times": plain(self.times),
            "guidance": plain(self.guidance),
            "weighting": plain(self.weighting),
            "derivative": self.derivative,
            "tangent": list(self.tangent),
            "null": plain(self.null),
            "precision": self.precision,
            "derivative_precision": self.derivative_precision,
            "source": plain(self.source),
        }

    def forward(self, x: Tensor, cond: Cond = None, *, generator: torch.Generator | None = None) -> Output:
        """Draw times, noise and dropped rows for data x [B, *shape] and return the loss."""
        check_samples(x)
        t, r, equal = self.times.draw(len(x), generator, x.device)
        noise, cond = self.noise(x, cond, generator)
        dropped: Tensor | None = None
        leading: int | None = 0
        if self.guidance is not None and cond is not None:
            dropped, leading = self.guidance.draw_dropped(len(x), generator, x.device)
        pairs = Pairs(t.to(x.dtype), r.to(x.dtype), equal)
        if self._compiled is not None:
            pairs, leading = pairs._replace(equal=equal or 0), self._static(leading, len(x))
        elif equal is None:
            return self._loss_in_order(x, cond, noise, pairs, dropped)
        return self._run(x, cond, noise, pairs, dropped, leading)

    def loss(
        self,
        x: Tensor,
        cond: Cond = None,
        *,
        noise: Tensor,
        t: Tensor,
        r: Tensor,
        dropped: Tensor | None = None,
    ) -> Output:
        """The loss for given noise [B, *shape], times t, r [B] and dropped rows [B]; deterministic.

        Raises ValueError for times out of order or range and for shapes that do not fit.
        """
        check_batch(x, noise, t, r)
        return self._loss_in_order(x, without_noise(cond)[0], noise, Pairs(t, r, None), dropped)

    def _static(self, leading: int | None, n: int) -> int:
        """A number of leading dropped rows that takes two values only: compiled graphs are for fixed shapes."""
        share = self.guidance.drop if self.guidance is not None else 0.0
        usual = max(int(n * share - (n * share * (1 - share)) ** 0.5), 0)
        return usual if leading is not None and leading >= usual else 0

    def _loss(
        self, x: Tensor, cond: Cond, noise: Tensor, times: Pairs, dropped: Tensor | None, leading: int | None
    ) -> Step:
        """The loss of a batch whose first rows have r = t.

        leading: how many first rows are known to have lost their condition; None when the mask has to be asked.
        """
        t, r, equal = times
        assert equal is not None
        mask = mask_of(cond, x)
        x, noise = masked(x, mask), masked(noise, mask)
        z, v = interpolate(x, noise, t), conditional_velocity(x, noise)
        early, late = slice(None, equal), slice(equal, None)
        u_null = self._null_field(z, t, cond, _kept(dropped, leading))
        # It is the tangent of z as well, so it must be zero where z has nothing, whatever guidance added there.
        v_late = masked(self._guided(late, z, v, t, cond, dropped, leading, u_null), _rows(mask, late))
        u, dudt = predict(
            self.called(),
            z,
            v_late,
            t=t,
            r=r,
            cond=self.drop(cond, dropped),
            equal=equal,
            mode=self.derivative,
            tangent=self.tangent,
            derivative_net=self.called(self.derivative_precision),
        )
        v_early = self._guided(early, z, v, t, cond, dropped, leading, u_null, u[early].detach())
        target = torch.cat([v_early, mean_velocity_target(v_late, dudt, t[late], r[late])])
        squared = squared_norm(masked(u - target, mask))
        weight = self.weighting(squared)
        v_error = squared_norm(masked(u.detach() - v, mask))
        parts = _parts(squared, v_error, weight, u, dudt, equal, mask)
        rows = {"squared_error": squared.detach(), "v_error": v_error}
        return Step(Output((weight * squared).mean(), parts, rows), u.detach(), dudt)

    def _loss_in_order(self, x: Tensor, cond: Cond, noise: Tensor, times: Pairs, dropped: Tensor | None) -> Output:
        """Bring the rows with r = t to the front, and the results per row back."""
        late = times.r < times.t
        order = torch.argsort(late.to(torch.uint8), stable=True)
        pairs = Pairs(times.t[order], times.r[order], int((~late).sum()))
        drop = None if dropped is None else dropped[order]
        out = self._loss(x[order], take(cond, order), noise[order], pairs, drop, None).output
        back = torch.argsort(order)
        return out._replace(rows={name: row[back] for name, row in out.rows.items()})

    def _null_field(self, z: Tensor, t: Tensor, cond: Cond, rows: slice | Tensor) -> Tensor | None:
        """u(z, t, t, null) in the given rows where guidance needs it."""
        g = self.guidance
        if g is None or not g.acts:
            return None
        if cond is None:
            raise ValueError(f"guidance ({g}) needs conditions, got cond=None; pass labels or guidance=None")
        if not g.needs_null:
            return None
        return self._field(z, t, null_like(cond, self.null), rows)

    def _guided(
        self,
        rows: slice,
        z: Tensor,
        v: Tensor,
        t: Tensor,
        cond: Cond,
        dropped: Tensor | None,
        leading: int | None,
        u_null: Tensor | None,
        prediction: Tensor | None = None,
    ) -> Tensor:
        """Guided velocity of some rows where the condition is kept, v where it was dropped.

        prediction: what the network predicted there. On rows with r = t that is u(z, t, t, c), unless dropout
        was active: guidance is evaluated without.
        """
        g, v, t = self.guidance, v[rows], t[rows]
        if g is None or not g.acts:
            return v
        dropped = None if dropped is None else dropped[rows]
        u_cond = prediction
        if g.needs_cond and (prediction is None or _drops_out(self.net)):
            after = None if leading is None else max(leading - (rows.start or 0), 0)
            u_cond = self._field(z[rows], t, take(cond, rows), _kept(dropped, after))
        guided = g.velocity(v, t, u_cond if g.needs_cond else None, None if u_null is None else u_null[rows])
        return guided if dropped is None else torch.where(like(dropped, v), v, guided)

    def _field(self, z: Tensor, t: Tensor, cond: Cond, rows: slice | Tensor) -> Tensor:
        """u(z, t, t, cond) without dropout and graph in some rows, zero in the others."""
        with torch.no_grad(), evaluating(self.net):
            z_rows, t_rows = z[rows], t[rows]
            if len(z_rows) == 0:
                return torch.zeros_like(z)
            u = call(self.called(), z_rows, t_rows, t_rows, take(cond, rows))
            if isinstance(rows, slice):
                return torch.cat([torch.zeros_like(z[: rows.start]), u])
            return torch.zeros_like(z).index_copy(0, rows, u)


def _kept(dropped: Tensor | None, leading: int | None) -> slice | Tensor:
    """The rows that keep their condition: a slice where it is known without asking the device, else indices."""
    if dropped is None:
        return slice(0, None)
    return (~dropped).nonzero().flatten() if leading is None else slice(leading, None)


def _drops_out(net: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in net.modules())


def _rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    return None if mask is None else mask[rows]


def _parts(
    squared: Tensor, v_error: Tensor, weight: Tensor, u: Tensor, dudt: Tensor, equal: int, mask: Tensor | None
) -> dict[str, Tensor]:
    """Raw means per dimension: mse_v on the r = t rows, mse_u on the r < t rows, and how large du/dt is."""
    early, late = slice(None, equal), slice(equal, None)
    parts = {"weight": mean(weight)}
    if equal > 0:
        parts["mse_v"] = mean(v_error[early] / sizes(u[early], _rows(mask, early)))
    if equal < len(u):
        here = _rows(mask, late)
        parts["mse_u"] = mean(squared[late] / sizes(u[late], here))
        parts["dudt_ratio"] = masked(dudt, here).norm() / masked(u[late].detach(), here).norm().clamp_min(1e-12)
    return parts

"""Plain flow matching, the baseline: the instantaneous velocity, sampled with Euler steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.conditions import Cond, Null, without_noise
from ..core.derivative import call
from ..core.guidance import draw_dropped
from ..core.masks import mask_of, masked, sizes
from ..core.path import check_samples, conditional_velocity, interpolate
from ..core.source import Source
from ..core.times import LogitNormal, TimeDistribution
from ..core.weighting import AdaptiveWeight, squared_norm
from .base import Objective, Output, Precision, Step, check_batch, mean, plain


class FlowMatching(Objective):
    """E w ||u(z_t, t, t) - (e - x)||^2 with weight w.

    time: distribution of t. weighting: AdaptiveWeight, p = 0 by default (plain squared error, summed over
    dimensions). drop: share of rows that lose their condition, so that guidance can be used at sampling.
    null: what "no condition" is; None takes the network's own `null`. precision: "fp32", or "bf16" for the
    network under autocast. source: where the other end of the path comes from, as in MeanFlow.
    """

    field = "instantaneous"

    def __init__(
        self,
        net: nn.Module,
        *,
        time: TimeDistribution | None = None,
        weighting: AdaptiveWeight | None = None,
        drop: float = 0.0,
        drop_rows: Literal["first", "coin"] = "coin",
        null: Null = None,
        precision: Precision = "fp32",
        source: Source | None = None,
    ) -> None:
        super().__init__(net, null, precision, source)
        self.time = time or LogitNormal()
        self.weighting = weighting or AdaptiveWeight(p=0.0)
        self.drop_share, self.drop_rows = drop, drop_rows

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments besides the network, JSON-able."""
        return {
            "time": plain(self.time),
            "weighting": plain(self.weighting),
            "drop": self.drop_share,
            "drop_rows": self.drop_rows,
            "null": plain(self.null),
            "precision": self.precision,
            "source": plain(self.source),
        }

    def forward(self, x: Tensor, cond: Cond = None, *, generator: torch.Generator | None = None) -> Output:
        """Draw times and noise for data x [B, *shape] and return the loss."""
        check_samples(x)
        t = self.time.draw(len(x), generator, x.device).to(x.dtype)
        noise, cond = self.noise(x, cond, generator)
        dropped = None
        if cond is not None and self.drop_share > 0:
            dropped, _ = draw_dropped(len(x), self.drop_share, self.drop_rows, generator, x.device)
        return self._run(x, cond, noise, t, dropped)

    def loss(self, x: Tensor, cond: Cond = None, *, noise: Tensor, t: Tensor, dropped: Tensor | None = None) -> Output:
        """The loss for given noise [B, *shape], times t [B] and dropped rows [B]; deterministic."""
        check_batch(x, noise, t, t)
        return self._run(x, without_noise(cond)[0], noise, t, dropped)

    def _loss(self, x: Tensor, cond: Cond, noise: Tensor, t: Tensor, dropped: Tensor | None) -> Step:
        mask = mask_of(cond, x)
        x, noise = masked(x, mask), masked(noise, mask)
        z, v = interpolate(x, noise, t), conditional_velocity(x, noise)
        u = call(self.called(), z, t, t, self.drop(cond, dropped))
        squared = squared_norm(masked(u - v, mask))
        weight = self.weighting(squared)
        parts = {"mse_v": mean(squared / sizes(v, mask)), "weight": mean(weight)}
        return Step(Output((weight * squared).mean(), parts, {"v_error": squared.detach()}), u.detach(), None)

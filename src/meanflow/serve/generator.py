"""What the service asks for samples: a loaded run with its classes and its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.conditions import LABEL, class_number
from ..core.sampling import noise_for, sample
from ..evaluation.pictures import drawable
from ..training import load
from ..training.published import find
from ..training.run import class_names, read_config


class Generator:
    """Samples of one run from seeds: sample i depends on its seed, label and times alone.

    A seed without a label gets the class at place `seed modulo the number of classes`, as `meanflow sample` does.
    Raises ValueError for a run whose condition is not a class.
    """

    def __init__(
        self,
        run: Path,
        *,
        ema: float | str | None = None,
        raw: bool = False,
        vae: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.net: nn.Module = load(run, ema=ema, raw=raw, device=self.device)
        self.shape: tuple[int, ...] = tuple(self.net.shape)  # type: ignore[arg-type]
        null, asked = self.net.null, set(self.net.conditions) - {LABEL}  # type: ignore[arg-type]
        if asked or (null is not None and not isinstance(null, int)):
            raise ValueError(f"{run} takes a condition that is no class; the service knows classes and none so far")
        noise_for(self.net, [0])  # refuses a source that only the user has
        self.classes: int | None = null
        self.class_names = class_names(read_config(find(run))) or tuple(map(str, range(null or 0)))
        contract: Any = self.net.latents
        self._vae = contract.load_vae(vae, device=self.device) if contract is not None else None
        self._contract = contract
        self.name = run.resolve().name

    @property
    def pictures(self) -> bool:
        """Whether samples can be drawn, after decoding where the run is one of latents."""
        return self._contract is not None or drawable(self.shape)

    def guides(self) -> str | None:
        """Why guidance at sampling time is impossible for this run, or None where it is possible."""
        trained: Any = self.net.guidance
        if self.classes is None:
            return "this run was trained without classes, so there is nothing to guide"
        if trained is not None and trained.scale != 1:
            return f"this run was trained with guidance inside ({trained}); guiding again would guide twice"
        if self.net.dropped == 0:
            return "this run never saw a dropped label, which guidance at sampling time needs"
        return None

    def label_of(self, label: int | str) -> int:
        """Number of a class given by number or name; raises ValueError with what there is."""
        if self.classes is None:
            raise ValueError("this run was trained without classes; leave labels out")
        return class_number(label, self.classes, self.class_names)

    def draw(
        self, seeds: Sequence[int], labels: Sequence[int] | None, times: Sequence[float], guidance: float | None
    ) -> Tensor:
        """Samples [B, *shape] on the CPU; of a run of latents the decoded images."""
        cond = None if labels is None else torch.tensor(labels, device=self.device)
        noise = noise_for(self.net, seeds, self.device, cond)
        x = sample(self.net, noise, cond, times=times, guidance=guidance)
        return (x if self._contract is None else self._contract.decode(x, self._vae)).cpu()

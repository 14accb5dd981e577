"""Sampling recorded once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .conditions import Cond, Null, map_cond
from .derivative import evaluating
from .path import check_samples
from .sampling import guided, integrate, schedule_of


class CudaGraphSampler:
    """`sample` for one batch size on a GPU, recorded once and replayed with other noise and conditions.

    A small batch waits for Python to launch hundreds of kernels one after the other; a replay launches them at once.

    noise [B, *shape], cond: on the GPU; what is called later has their shapes. steps, times, guidance, null: as in
    `sample`. Weights that are changed in place take effect; for weights that were moved, make another.
    Raises ValueError off a GPU, for what `sample` refuses, and for a network that waits for the CPU on its way.
    """

    def __init__(
        self,
        net: nn.Module,
        noise: Tensor,
        cond: Cond = None,
        *,
        steps: int | None = None,
        times: Sequence[float] | Tensor | None = None,
        guidance: float | None = None,
        null: Null = None,
    ) -> None:
        check_samples(noise, "noise")
        if noise.device.type != "cuda":
            raise ValueError(
                f"a CUDA graph needs network, noise and conditions on a GPU, got noise on {noise.device}; "
                "call mf.sample instead, which runs anywhere"
            )
        self._net, self._places = net, _places(net)
        self._noise, self._cond = noise.detach().clone(), map_cond(torch.clone, cond)
        field = guided(net, guidance, null)
        # On the GPU before recording: a copy from the CPU cannot be part of a graph.
        rows = schedule_of(steps, times, len(noise)).to(noise.device, torch.promote_types(noise.dtype, torch.float32))
        with torch.cuda.device(noise.device), torch.no_grad(), evaluating(net):
            self._graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                integrate(field, self._noise, self._cond, times=rows)  # libraries allocate on their first call
            try:
                with torch.cuda.graph(self._graph, stream=side):
                    self._samples = integrate(field, self._noise, self._cond, times=rows)
            except RuntimeError as error:
                raise ValueError(
                    f"{type(net).__name__} cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}): it reads "
                    "a value on the CPU (.item(), if tensor:) or copies one to the GPU; call mf.sample instead"
                ) from error

    @torch.no_grad()
    def __call__(self, noise: Tensor, cond: Cond = None) -> Tensor:
        """Samples [B, *shape] from noise [B, *shape] and conditions of the recorded shapes and dtypes."""
        came, recorded = (_form(noise), _form(cond)), (_form(self._noise), _form(self._cond))
        if came != recorded:
            raise ValueError(f"the graph was recorded for noise and conditions {recorded}, got {came}; make another")
        if _places(self._net) != self._places:
            raise ValueError("the weights were moved since the graph was recorded; make another CudaGraphSampler")
        self._noise.copy_(noise)
        map_cond(Tensor.copy_, self._cond, cond)
        self._graph.replay()
        return self._samples.clone()


def _places(net: nn.Module) -> tuple[int, ...]:
    return tuple(weight.data_ptr() for weight in chain(net.parameters(), net.buffers()))


def _form(cond: Cond) -> Any:
    """Shapes and dtypes in the structure of a condition."""
    if isinstance(cond, Tensor):
        return f"{list(cond.shape)} {cond.dtype}"
    return cond and {key: _form(value) for key, value in cond.items()}

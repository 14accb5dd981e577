"""What is exported: modules whose inputs and outputs are plain tensors, fit for torch.export."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.func import functional_call

from ..core.conditions import Cond, Null, null_like
from ..core.sampling import jump
from ..data import VAE, LatentContract
from ..evaluation.pictures import as_bytes


class Half(nn.Module):
    """A network whose weights are kept in float16 and used in float32: half the file, the same arithmetic."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.names, self.skeleton = list(dict(net.named_parameters())), [net]  # in a list, so no sub-module
        self.weights = nn.ParameterList(
            nn.Parameter(value.detach().half(), requires_grad=False) for value in net.parameters()
        )

    def forward(self, *inputs: Tensor, **named: object) -> Tensor:
        weights = {name: value.float() for name, value in zip(self.names, self.weights, strict=True)}
        return functional_call(self.skeleton[0], weights, inputs, named)


class Field(nn.Module):
    """u(z, r, t) for times of every row; with a guidance scale, the guided one of two calls.

    null: what "no condition" is, where the field is to be guided.
    """

    def __init__(self, net: nn.Module, null: Null = None) -> None:
        super().__init__()
        self.net, self.null = net, null

    def forward(
        self, z: Tensor, t: Tensor, r: Tensor, cond: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        u = self.net(z, t=t, r=r, cond=cond)
        if guidance is None:
            return u
        # w u(z, c) + (1 - w) u(z, null), arXiv:2505.13447 eq. 13
        return guidance * u + (1 - guidance) * self.net(z, t=t, r=r, cond=null_like(cond, self.null))


class Sampler(nn.Module):
    """Samples from noise [B, *shape]: one call of the field per interval of `times`, all of them in one program.

    after: what follows the last call, such as the decoder and the step to uint8.
    """

    def __init__(self, field: Field, times: Sequence[float], after: nn.Module) -> None:
        super().__init__()
        self.field, self.times, self.after = field, tuple(times), after

    def forward(self, noise: Tensor, cond: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        def u(z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
            assert cond is None or isinstance(cond, Tensor)
            return self.field(z, t, r, cond, guidance)

        z = noise
        for t, r in pairwise(self.times):
            z = jump(u, z, t=z.new_full(z.shape[:1], t), r=z.new_full(z.shape[:1], r), cond=cond)
        return self.after(z)


class Decoder(nn.Module):
    """Images in [-1, 1] of latents as a network makes them."""

    def __init__(self, vae: VAE, contract: LatentContract) -> None:
        super().__init__()
        self.net, self.contract = vae.net, contract

    def forward(self, latents: Tensor) -> Tensor:
        return self.net.decode(self.contract.denormalise(latents)).clamp(-1, 1)  # type: ignore[operator]


class Bytes(nn.Module):
    """Images in [-1, 1] as uint8, as `meanflow sample` writes them."""

    def forward(self, x: Tensor) -> Tensor:
        return as_bytes(x)

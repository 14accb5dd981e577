"""A pipeline of diffusers around a network of ours, so that its users load it as they load any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..core.sampling import EulerField, sample
from ..data.latents import per_channel
from ..evaluation.pictures import single, to_uint8
from ..nets import build

Generators = torch.Generator | list[torch.Generator]


class MeanFlowModel(ModelMixin, ConfigMixin):
    """A network of ours as a model of diffusers.

    kind, arguments: as in the config.json of a run. euler: whether it is a flow-matching network. shift, scale: of the
    latents that it makes, None for pixels.
    """

    @register_to_config
    def __init__(
        self,
        kind: str,
        arguments: dict[str, Any],
        euler: bool = False,
        shift: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.net: nn.Module = build(kind, dict(arguments))

    @property
    def field(self) -> nn.Module:
        """u(z, r, t)."""
        return EulerField(self.net) if self.config.euler else self.net

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Any = None) -> Tensor:
        """u [B, *shape]."""
        return self.field(z, t=t, r=r, cond=cond)


class MeanFlowPipeline(DiffusionPipeline):
    """Images from noise in one network call, or in `num_inference_steps`."""

    _optional_components = ["vae"]  # noqa: RUF012  # the name is diffusers'

    def __init__(self, net: MeanFlowModel, vae: Any = None) -> None:
        super().__init__()
        self.register_modules(net=net, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 1,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        class_labels: one for all or one an image. latents: the noise, [B, *shape], instead of fresh noise.
        output_type: pil, np (float [B, H, W, C] in [0, 1]), pt (float [B, C, H, W] in [0, 1]) or latent (as the
        network gives it). Raises ValueError for labels that do not fit.
        """
        field, device = self.net.field.eval(), self._execution_device
        labels = self._labels(class_labels, len(latents) if latents is not None else batch_size)
        count = len(labels) if labels is not None else len(latents) if latents is not None else batch_size
        shape = (count, *self.net.net.shape)
        noise = latents if latents is not None else randn_tensor(shape, generator, device, self.net.dtype)
        x = sample(field, noise.to(device, self.net.dtype), labels, steps=num_inference_steps)
        images = _drawn(x if output_type == "latent" else self._decoded(x), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, given: int | Sequence[int] | Tensor | None, count: int) -> Tensor | None:
        classes = self.net.net.null
        if not isinstance(classes, int):
            if given is not None:
                raise ValueError("this model was trained without classes; leave class_labels out")
            return None
        if given is None:
            raise ValueError(f"this model has {classes} classes; pass class_labels, e.g. class_labels=[0, 1]")
        labels = torch.as_tensor([given] * count if isinstance(given, int) else given, device=self._execution_device)
        if labels.ndim != 1 or bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"class_labels must be one number or a list of numbers 0 to {classes - 1}, got {given}")
        return labels

    def _decoded(self, x: Tensor) -> Tensor:
        if self.vae is None:
            return x
        config = self.net.config
        z = x / per_channel(config.scale, x) + per_channel(config.shift, x)
        return self.vae.decode(z.to(self.vae.dtype)).sample


def _drawn(x: Tensor, form: str) -> Any:
    if form == "latent":
        return x
    if form == "pil":
        return [single(image) for image in x]
    if form not in ("np", "pt"):
        raise ValueError(f"output_type must be pil, np, pt or latent, got {form!r}")
    images = to_uint8(x).float() / 255
    return images if form == "pt" else images.permute(0, 2, 3, 1).numpy().astype(np.float32)


def save_pipeline(net: nn.Module, folder: Path, vae: str | Path | None = None) -> None:
    """Write a network that `load` gave, and the autoencoder of a run of latents, as a pipeline into a folder.

    Raises ValueError for runs that a pipeline of images cannot be: vectors, own networks, an autoencoder that is none
    of diffusers.
    """
    contract: Any = net.latents
    euler = isinstance(net, EulerField)
    inner: Any = net.net if isinstance(net, EulerField) else net
    if not hasattr(inner, "arguments") or len(inner.shape) != 3:
        raise ValueError("a pipeline of diffusers is for images made by a network of meanflow")
    if net.source is not None:
        raise ValueError("a pipeline of diffusers starts from standard normal noise, and this run from another source")
    extra: dict[str, Any] = {}
    decoder = None
    if contract is not None:
        decoder = _of_diffusers(contract.load_vae(vae))
        extra = {"shift": list(contract.shift), "scale": list(contract.scale)}
    model = MeanFlowModel(type(inner).__name__, inner.arguments, euler=euler, **extra)
    model.net.load_state_dict(inner.state_dict())
    MeanFlowPipeline(model, decoder).save_pretrained(folder)


def _of_diffusers(vae: Any) -> Any:
    model = vae.net.model
    if not isinstance(model, ModelMixin):
        raise ValueError(
            f"the autoencoder {type(model).__name__} is none of diffusers, so a pipeline cannot hold it; encode with "
            "one that is, or publish without the pipeline"
        )
    return model

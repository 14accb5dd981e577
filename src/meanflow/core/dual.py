"""Tensors with a tangent: forward-mode differentiation that costs what the mathematics asks.

A network runs once on `Dual` tensors. Every torch function in it computes its primal value as usual, with a graph,
and beside it the tangent without one: nothing of the tangent is stored for the backward pass. Linear and bilinear
functions apply themselves to the tangent, so that constant weights cost no product with a zero tangent; everything
else goes through torch's own forward-mode rule of that one function. Whatever this cannot do right (in-place changes,
no_grad blocks, autograd.Functions) raises `NotDual`, and the caller takes torch.func.jvp instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Largest number of attention scores that the tangent of attention holds at a time, per operand.
SCORES_AT_A_TIME = 2**24
# Functions that change their first argument, besides those with an underscore at the end of their name.
IN_PLACE = ("__setitem__", "__iadd__", "__isub__", "__imul__")
# Functions that draw random numbers, besides those with dropout in their name.
RANDOM = ("rrelu", "multi_head_attention_forward", "gumbel_softmax", "gru", "lstm", "rnn_tanh", "rnn_relu")


class NotDual(Exception):
    """Something in the network that dual tensors cannot follow; the message says what."""


class Dual(Tensor):
    """A tensor and its tangent of the same shape; torch functions take it apart, modules never notice."""

    primal: Tensor
    tangent: Tensor

    @staticmethod
    def __new__(cls, primal: Tensor, tangent: Tensor) -> Dual:
        if not isinstance(tangent, Tensor) or tangent.shape != primal.shape:
            raise NotDual(f"a value of shape {list(primal.shape)} came with another tangent")
        dual = Tensor._make_wrapper_subclass(
            cls, primal.size(), strides=primal.stride(), dtype=primal.dtype, device=primal.device
        )
        dual.primal, dual.tangent = primal, tangent
        return dual

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.is_grad_enabled() and _graph_wanted.enabled:
            raise NotDual(f"{_name(func)} runs in a torch.no_grad() block or in an autograd.Function")
        try:
            return RULES.get(_name(func), general)(func, tuple(args), dict(kwargs or {}))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            # A call in a form that the rules do not know; where it is the user's mistake, the way out repeats it.
            raise NotDual(f"{_name(func)}: {error}") from error

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotDual(f"{func} reached a dual tensor past the torch functions")


class _GraphWanted:
    """Whether the present derivative runs with gradients enabled around it."""

    enabled = False


_graph_wanted = _GraphWanted()


def dual_jvp(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor]:
    """function(*primals) with a graph where gradients are enabled, and its derivative along tangents without one.

    A tangent that is zero everywhere may be given as None. Raises NotDual for what cannot be followed.
    """
    before, _graph_wanted.enabled = _graph_wanted.enabled, torch.is_grad_enabled()
    try:
        given = [p if d is None else Dual(p, d.detach()) for p, d in zip(primals, tangents, strict=True)]
        out = function(*given)
    finally:
        _graph_wanted.enabled = before
    if isinstance(out, Dual):
        return out.primal, out.tangent
    return out, torch.zeros_like(out)


Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Rule = Callable[[Callable[..., Any], Args, Kwargs], Any]


def primal_of(value: Any) -> Any:
    """The value with every dual tensor in it replaced by its primal."""
    return _replace(value, lambda dual: dual.primal)


def general(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Any function: its value with a graph, its tangent by torch's forward-mode rule for it."""
    name = _name(func)
    in_place = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE
    if in_place or kwargs.get("inplace") or kwargs.get("out") is not None:
        raise NotDual(f"{name} changes a tensor in place")
    device = _duals((args, kwargs))[0].device
    # On a CPU the generator is kept in any case; on a GPU that costs, so it is for functions known to draw.
    with torch.no_grad(), _rng_kept(device, device.type == "cpu" or "dropout" in name or name in RANDOM):
        tangent = _forward_mode(func, args, kwargs)
    return _paired(func(*primal_of(args), **primal_of(kwargs)), tangent)


def _forward_mode(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Tangents of the outputs, with None where an output has none."""
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):

        def pack(dual: Dual) -> Tensor:
            return forward_ad.make_dual(dual.primal.detach(), dual.tangent.to(dual.primal.dtype))

        out = func(*_replace(args, pack), **_replace(kwargs, pack))
        return _map_tensors(out, lambda x: forward_ad.unpack_dual(x).tangent)


def linear(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Functions that are linear in their first argument: they apply themselves to the tangent."""
    first = args[0] if args else None
    if not isinstance(first, Dual) or _duals((args[1:], kwargs)):
        return general(func, args, kwargs)
    with torch.no_grad():
        tangent = func(first.tangent, *args[1:], **kwargs)
    return _paired(func(first.primal, *args[1:], **kwargs), tangent)


def shaped_like(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """view_as, expand_as and the like: the second tensor gives its shape or type alone."""
    return linear(func, (args[0], *primal_of(args[1:])), primal_of(kwargs))


def multilinear(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Products: the product rule, one term for each factor that has a tangent."""
    if _duals(kwargs):
        return general(func, args, kwargs)
    out = func(*primal_of(args), **kwargs)
    with torch.no_grad():
        total: Any = None
        for term in _one_tangent_each(args):
            part = func(*term, **kwargs)
            total = part if total is None else total + part
    return Dual(out, total)


def additive(first_sign: int, second_sign: int) -> Rule:
    """Sums and differences."""

    def rule(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        if kwargs or len(args) != 2:
            return general(func, args, kwargs)
        out = func(*primal_of(args))
        with torch.no_grad():
            terms = [
                a.tangent if sign > 0 else -a.tangent
                for a, sign in zip(args, (first_sign, second_sign), strict=True)
                if isinstance(a, Dual)
            ]
            tangent = terms[0] + terms[1] if len(terms) == 2 else terms[0]
            return Dual(out, tangent.to(out.dtype).expand(out.shape))

    return rule


def quotient(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Division by something without a tangent is linear."""
    return general(func, args, kwargs) if kwargs or isinstance(args[1], Dual) else linear(func, args, kwargs)


def affine(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Linear layers and convolutions (input, weight, bias, ...): the tangent meets the weight, not the bias."""
    rest = list(args[1:])
    if not args or not isinstance(args[0], Dual) or _duals((rest, kwargs)):
        return general(func, args, kwargs)
    out = func(*primal_of(args), **kwargs)
    if len(rest) > 1:
        rest[1] = None
    with torch.no_grad():
        return Dual(out, func(args[0].tangent, *rest, **{**kwargs, **({"bias": None} if "bias" in kwargs else {})}))


def joined(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """cat, stack: parts without a tangent contribute zeros."""
    if not args:
        return general(func, args, kwargs)
    out = func(primal_of(args[0]), *args[1:], **kwargs)
    with torch.no_grad():
        parts = [
            p.tangent.to(out.dtype) if isinstance(p, Dual) else torch.zeros_like(p, dtype=out.dtype) for p in args[0]
        ]
        return Dual(out, func(parts, *args[1:], **kwargs))


def chosen(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """where(condition, a, b), as a function or as the method a.where(condition, b)."""
    condition = args[0] if args else None
    if kwargs or len(args) != 3 or type(condition) is not Tensor or condition.dtype != torch.bool:
        return general(func, args, kwargs)
    out = func(*primal_of(args))
    with torch.no_grad():
        a, b = (x.tangent.to(out.dtype) if isinstance(x, Dual) else out.new_zeros(()) for x in args[1:])
        return Dual(out, torch.where(condition, a, b).expand(out.shape))


def padded(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Padding with a constant pads the tangent with zeros."""
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    if mode != "constant":
        return linear(func, args, kwargs)
    out = func(*primal_of(args), **kwargs)
    with torch.no_grad():
        return Dual(out, func(args[0].tangent, args[1] if len(args) > 1 else kwargs["pad"]))


def dropped(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Dropout: one mask for value and tangent."""
    if func is torch.dropout:
        return general(func, args, kwargs)
    given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    x = given.pop("input")
    if given.pop("inplace", False):
        raise NotDual(f"{_name(func)} changes a tensor in place")
    if not given.get("training", True):
        return x
    with torch.no_grad():
        mask = func(torch.ones_like(x.primal), **given)
        tangent = x.tangent * mask
    return Dual(x.primal * mask, tangent)


def batch_norm(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Normalisation by running statistics; updating them changes a buffer in place."""
    running = [x for x in (*args[1:3], kwargs.get("running_mean")) if isinstance(x, Tensor)]
    training = kwargs.get("training", kwargs.get("use_input_stats", args[5] if len(args) > 5 else False))
    if training and running:
        raise NotDual(f"{_name(func)} updates its running statistics")
    return general(func, args, kwargs)


def attention(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Scaled dot-product attention: the fused kernel for the value, an exact chunked form for the tangent."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    if given.get("dropout_p") or given.get("enable_gqa") or isinstance(given.get("attn_mask"), Dual):
        return attention_in_steps(given)
    given = {name: value for name, value in given.items() if name not in ("dropout_p", "enable_gqa")}
    duals = [given.pop(name) for name in names[:3]]
    (q, dq), (k, dk), (v, dv) = ((d.primal, d.tangent) if isinstance(d, Dual) else (d, None) for d in duals)
    out = func(q, k, v, **given)
    with torch.no_grad():
        return Dual(out, attention_tangent((q, k, v), (dq, dk, dv), **given).to(out.dtype))


def attention_tangent(
    primals: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Tangent of softmax(q k^T scale + mask) v, a few query rows at a time where the scores would be large.

    With S the scores and P = softmax(S): dP = P (dS - rowsum(P dS)), d(P v) = dP v + P dv.
    """
    q, k, v = primals
    dq, dk, dv = tangents
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows = max(1, SCORES_AT_A_TIME // max(1, q[..., 0, 0].numel() * k.shape[-2]))
    mask = _additive_mask(attn_mask, is_causal, q, k)
    parts = []
    for start in range(0, q.shape[-2], rows):
        here = slice(start, start + rows)
        scores = (q[..., here, :] @ k.mT) * scale
        if mask is not None:
            scores = scores + (mask[..., here, :] if mask.shape[-2] > 1 else mask)
        p = scores.float().softmax(-1).to(q.dtype) if q.dtype != torch.float64 else scores.softmax(-1)
        if mask is not None:
            # Rows that may look at nothing attend to nothing.
            p = p.masked_fill(scores.isneginf().all(-1, keepdim=True), 0.0)
        part: Tensor | None = p @ dv if dv is not None else None
        if dq is not None or dk is not None:
            ds = _sum(
                dq[..., here, :] @ k.mT if dq is not None else None, q[..., here, :] @ dk.mT if dk is not None else None
            )
            dp = p * (ds * scale)
            dp = dp - p * dp.sum(-1, keepdim=True)
            part = _sum(part, dp @ v)
        parts.append(_sum(part, None))
    return torch.cat(parts, -2) if len(parts) > 1 else parts[0]


def attention_in_steps(given: dict[str, Any]) -> Any:
    """Attention written out, for what the fused rule leaves out: dropout, grouped heads, a mask with a tangent."""
    q, k, v = given["query"], given["key"], given["value"]
    if given.get("enable_gqa"):
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scale = given.get("scale") or q.shape[-1] ** -0.5
    scores = q @ k.transpose(-2, -1) * scale
    mask = given.get("attn_mask")
    if not isinstance(mask, Dual):
        mask = _additive_mask(mask, given.get("is_causal", False), q, k)
    if mask is not None:
        scores = scores + mask
    return F.dropout(scores.softmax(-1), given.get("dropout_p", 0.0)) @ v


def attribute(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Properties: shapes and types come from the primal, transposes are linear."""
    name = getattr(getattr(func, "__self__", None), "__name__", "")
    out = func(args[0].primal)
    if not isinstance(out, Tensor) or name in ("data", "grad"):
        return out
    with torch.no_grad():
        return Dual(out, func(args[0].tangent))


def plain(func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
    """Functions whose result has no tangent: detach, comparisons, sizes."""
    return func(*primal_of(args), **primal_of(kwargs))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor:
    total = b if a is None else a if b is None else a + b
    assert total is not None
    return total


def _additive_mask(mask: Tensor | None, is_causal: bool, q: Tensor, k: Tensor) -> Tensor | None:
    if is_causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))


def _duals(value: Any) -> list[Dual]:
    if isinstance(value, Dual):
        return [value]
    if isinstance(value, tuple | list):
        return [d for item in value for d in _duals(item)]
    return [d for item in value.values() for d in _duals(item)] if isinstance(value, Mapping) else []


def _replace(value: Any, change: Callable[[Dual], Any]) -> Any:
    if isinstance(value, Dual):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_replace(item, change) for item in value)
    return {key: _replace(item, change) for key, item in value.items()} if type(value) is dict else value


def _map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return tuple(_map_tensors(item, change) for item in value) if isinstance(value, tuple | list) else value


def _paired(out: Any, tangent: Any) -> Any:
    """Outputs with their tangents; an output without one stays a plain tensor."""
    if isinstance(out, Tensor):
        smooth = out.is_floating_point() or out.is_complex()
        return Dual(out, tangent) if tangent is not None and smooth else out
    if isinstance(out, tuple | list):
        pairs = [_paired(o, d) for o, d in zip(out, tangent, strict=True)]
        # Named results such as those of max keep their type.
        return type(out)(pairs) if type(out) in (tuple, list) or hasattr(out, "n_fields") else tuple(pairs)
    return out


def _one_tangent_each(args: Args) -> list[Any]:
    """The arguments once for each place of a dual tensor, with the tangent there and primals elsewhere.

    By place and not by object: in x * x the same tensor stands in two.
    """

    def only(place: int) -> Any:
        places = count()
        return _replace(args, lambda dual: dual.tangent if next(places) == place else dual.primal)

    return [only(place) for place in range(len(_duals(args)))]


def _rng_kept(device: torch.device, random: bool) -> AbstractContextManager[None]:
    """Draws inside leave the generator where it was, so that the value draws the same again."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=random)


def _rules(words: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(words.split(), rule)


RULES: dict[str, Rule] = {
    **_rules(
        """
        reshape view flatten unflatten permute transpose t squeeze unsqueeze expand repeat repeat_interleave chunk split
        tensor_split unbind __getitem__ select narrow index_select flip roll rot90 contiguous to float double bfloat16
        type clone neg __neg__ negative sum mean cumsum movedim moveaxis swapaxes swapdims broadcast_to diagonal
        tril triu pixel_shuffle pixel_unshuffle channel_shuffle avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample unfold fold take_along_dim gather adjoint
        view_as_real view_as_complex fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2""",
        linear,
    ),
    **_rules("view_as expand_as reshape_as type_as", shaped_like),
    **_rules("mul __mul__ __rmul__ multiply matmul __matmul__ __rmatmul__ bmm mm mv", multilinear),
    **_rules("dot outer einsum tensordot kron", multilinear),
    **_rules("add __add__ __radd__", additive(1, 1)),
    **_rules("sub __sub__ subtract", additive(1, -1)),
    **_rules("__rsub__ rsub", additive(-1, 1)),
    **_rules("div __truediv__ true_divide divide", quotient),
    **_rules("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", affine),
    **_rules("cat concat concatenate stack hstack vstack dstack", joined),
    **_rules("dropout dropout1d dropout2d dropout3d", dropped),
    **_rules(
        """detach size dim ndimension numel stride is_contiguous is_floating_point is_complex element_size get_device
        is_same_size data_ptr register_hook __len__ __bool__ item tolist argmax argmin argsort bernoulli long int
        __eq__ __ne__ __lt__ __le__ __gt__ __ge__ eq ne lt le gt ge isnan isfinite isinf
        new_zeros new_ones new_full new_empty new_tensor
        zeros_like ones_like full_like empty_like rand_like randn_like""",
        plain,
    ),
    **_rules("batch_norm instance_norm", batch_norm),
    "where": chosen,
    "pad": padded,
    "scaled_dot_product_attention": attention,
    "__get__": attribute,
}

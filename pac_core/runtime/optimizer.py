"""AdamW, its schedule, and one optimiser step over micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pac_core.config import OptimizerConfig
from pac_core.model import PacModel

SPARE = 2
"""Numbers behind all gradients in `gradient_vector`, for what devices add up along with them."""

HEAD_RATE = 0.08
"""Rate of the head's wide layer, as a part of the side network's, for one output; found by trial (docs/quality.md)."""


def make_optimizer(model: PacModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: matrices decay, vectors do not, the head's wide layer has its own rate.

    The parameters of a group become views of one (see `united`), so gradients are cleared with
    ``zero_grad(set_to_none=False)``.
    It is slow by default, since it overfits small data first, and the slower the fewer classes share its gradient.
    """
    head = set() if model.head is None else {id(p) for p in model.head.wide.parameters()}
    default = HEAD_RATE * config.lr * math.sqrt(max(model.task.outputs, 1))
    head_lr = default if config.head_lr is None else config.head_lr
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.zeros(sum(p.numel() for p in trained) + SPARE, dtype=trained[0].dtype, device=trained[0].device)
    groups, start = [], 0
    for is_head, lr in ((False, config.lr), (True, head_lr)):
        mine = [p for p in trained if (id(p) in head) == is_head]
        for decays in (True, False):
            chosen = [p for p in mine if (p.ndim > 1) == decays]
            if chosen:
                decay = config.weight_decay if decays else 0.0
                vector = united(chosen, gradients[start:])
                groups.append({"params": [vector], "lr": lr, "peak": lr, "weight_decay": decay})
                start += vector.numel()
    return torch.optim.AdamW(groups, fused=True)


def united(parameters: Sequence[nn.Parameter], gradients: Tensor) -> nn.Parameter:
    """One vector of which ``parameters`` become views, and their gradients views of its gradient, which is the first
    part of ``gradients``: an optimiser step over a side network is then a few kernels rather than hundreds, each of
    which would take longer to start than to run."""
    whole = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    whole.grad = gradients[: whole.numel()]
    start = 0
    for parameter in parameters:
        part = slice(start, start + parameter.numel())
        parameter.data = whole.data[part].view_as(parameter)
        parameter.grad = whole.grad[part].view_as(parameter)
        start = part.stop
    return whole


def gradient_vector(optimizer: torch.optim.Optimizer) -> Tensor:
    """(parameters + `SPARE`) the memory of all gradients of `make_optimizer`'s optimiser, one behind another, so that
    they can be summed over devices where they are."""
    first = _parameters(optimizer)[0].grad
    assert first is not None
    count = first.untyped_storage().nbytes() // first.element_size()
    return first.as_strided((count,), (1,), 0)


def places(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter, slice]]:
    """For each parameter of ``model`` its name, and which slice of which of the optimiser's vectors it is."""
    vectors = {p.untyped_storage().data_ptr(): p for p in _parameters(optimizer)}
    for name, parameter in model.named_parameters():
        start = parameter.storage_offset()
        yield name, vectors[parameter.untyped_storage().data_ptr()], slice(start, start + parameter.numel())


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What `make_optimizer`'s AdamW has gathered, by parameter: ``<name>:step`` () and, flat, ``<name>:exp_avg`` and
    ``<name>:exp_avg_sq``. Unlike its own state it does not depend on which parameters are on a device."""
    found = {}
    for name, vector, part in places(model, optimizer):
        for key, value in optimizer.state.get(vector, {}).items():
            found[f"{name}:{key}"] = value if value.ndim == 0 else value[part]
    return found


def set_moments(model: nn.Module, optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> None:
    """Let an optimiser of the same kind go on from `moments`, of all stages together."""
    for name, vector, part in places(model, optimizer):
        state = optimizer.state[vector]
        for key in ("exp_avg", "exp_avg_sq"):
            if key not in state:  # a vector as large as all parameters together
                state[key] = torch.zeros_like(vector, requires_grad=False)
            state[key][part] = found[f"{name}:{key}"].to(vector)
        state["step"] = found[f"{name}:step"].clone()


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to ``factor`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def lr_factor(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Part of the peak rate at each step, counted from 0."""
    warm = int(config.warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        rest = (step - warm) / max(steps - warm, 1)
        if config.schedule == "linear":
            return max(1.0 - rest, 0.0)
        return 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0))) if config.schedule == "cosine" else 1.0

    return factor


def cut(size: int, micro_batch_size: int | None) -> list[list[int]]:
    """Indices 0..size in runs of ``micro_batch_size``.

    >>> cut(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    step = micro_batch_size or max(size, 1)
    return [list(range(i, min(i + step, size))) for i in range(0, size, step)]


def clip(optimizer: torch.optim.Optimizer, max_norm: float | None, norm: Tensor | None = None) -> None:
    """Scale the gradients of an optimiser's parameters down to ``max_norm``; ``norm`` () is theirs unless others' count
    as well, as those of other pipeline stages do."""
    if max_norm is None:
        return
    norm = gradient_norm(optimizer) if norm is None else norm
    if norm > max_norm:
        nn.utils.clip_grads_with_norm_(_parameters(optimizer), max_norm, norm)


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """() norm of the gradients of an optimiser's parameters."""
    return nn.utils.get_total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]

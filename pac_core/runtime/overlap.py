"""Gradients summed over devices while a backward pass still computes others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

BUCKET_BYTES = 1 << 20
"""Gradients that are summed at once: enough for the speed of a home network, a small part of what is to be summed."""


class Overlap:
    """Sums the gradients of parameters in buckets, in the order in which a backward pass finishes them.

    That order is seen in the first step, which is summed as a whole, and is one device's on all devices. From then on a
    thread sums each bucket once all before it and all of its own gradients are ready. What no backward pass reached,
    as on a device that has no rows of a batch, follows in `finish`.

    Every device calls the same methods in the same order, and no other collective between `begin` and `finish`.

    Args:
        parameters: all that train, alike on all devices, with gradients that stay where they are.
        add_up: sums a vector over all devices in place.
        agree: replaces a vector by that of a device which has rows of every batch, the same on all devices.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        add_up: Callable[[Tensor], None],
        agree: Callable[[Tensor], None],
    ) -> None:
        self._parameters = list(parameters)
        self._add_up, self._agree = add_up, agree
        self._seen: list[int] = []
        self._buckets: list[list[int]] = []
        self._bucket_of: list[int] = []
        self._left: list[int] = []
        self._sums: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pac-gradients")
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._note, index))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """The next backward pass of this device, if there is one before `finish`, is the only one of a step."""
        self._left = [len(bucket) for bucket in self._buckets]

    def finish(self) -> bool:
        """Return once all gradients are sums; errors of ``add_up`` are raised. False in the first step, in which they
        are still to be summed."""
        if not self._buckets:
            self._order()
            return False
        self._left = [0] * len(self._buckets)
        self._go_on()
        sums, self._sums = self._sums, []
        for each in sums:
            each.result()
        return True

    def _note(self, index: int, parameter: Tensor) -> None:
        """The gradient of a parameter is ready."""
        if not self._buckets:
            self._seen.append(index)
        elif len(self._sums) < len(self._buckets):
            self._left[self._bucket_of[index]] -= 1
            self._go_on()

    def _go_on(self) -> None:
        while len(self._sums) < len(self._buckets) and self._left[len(self._sums)] <= 0:
            self._sums.append(self._thread.submit(self._sum, self._buckets[len(self._sums)]))

    def _sum(self, bucket: Sequence[int]) -> None:
        gradients = [grad for grad in (self._parameters[i].grad for i in bucket) if grad is not None]
        united = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._add_up(united)
        wholes = torch.split(united, [gradient.numel() for gradient in gradients])
        for gradient, whole in zip(gradients, wholes, strict=True):
            gradient.copy_(whole.view_as(gradient))

    def _order(self) -> None:
        """Agree on the buckets."""
        unseen = set(range(len(self._parameters))) - set(self._seen)
        order = torch.tensor([*dict.fromkeys(self._seen), *sorted(unseen)])
        self._agree(order)
        self._bucket_of = [0] * len(self._parameters)
        filled = BUCKET_BYTES
        for index in order.tolist():
            if filled >= BUCKET_BYTES:
                self._buckets.append([])
                filled = 0
            self._buckets[-1].append(index)
            self._bucket_of[index] = len(self._buckets) - 1
            filled += self._parameters[index].nbytes

"""PacModel: a frozen backbone, its side network and the activation cache as one ``nn.Module`` for any trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from pac_core.adapter_files import SavedAdapter, read_adapter, write_adapter
from pac_core.alignment import Matcher
from pac_core.backbones import load_backbone
from pac_core.cache import ActivationCache
from pac_core.contracts.adapter import AdapterConfig, ParallelAdapterConfig, Rows, SideNetwork, Taps
from pac_core.contracts.backbone import DECODER, Backbone, BackboneInfo, BackboneSource, tap_indices
from pac_core.contracts.formats import WeightFormat
from pac_core.examples import IGNORE, Example, Task
from pac_core.heads import Pooled, PooledHead, peaks
from pac_core.inputs import examples_from_tensors
from pac_core.registry import Registry
from pac_core.taps import TapReader
from pac_core.tasks import target_stream, task_of_model


@dataclass
class PacOutput(ModelOutput):  # type: ignore[misc]  # transformers has no types
    """What `PacModel.forward` returns.

    Attributes:
        loss: () mean loss of the batch, None without labels.
        logits: (rows, classes) or (rows,) for the pooled tasks; (rows, tokens, vocabulary) for language modelling,
            at the places of ``input_ids`` (of the decoder's tokens), zeros at padding, and only in evaluation mode or
            without labels, since training does not need them.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class PacModel(nn.Module):
    """A frozen backbone with a trainable side network, reading taps from the cache where it has them.

    Its parameters are those that train: the side network and, for classification and regression, the head. The
    backbone is held beside them, so optimisers, checkpoints and `state_dict` never see it.

    Args:
        backbone: the frozen backbone.
        side: the side network.
        task: what is predicted.
        cache: the activation cache; None runs the backbone every time.
        model_name: the backbone's path or id, for saved adapters and cache listings.
    """

    accepts_loss_kwargs = True  # tells transformers' Trainer of num_items_in_batch

    def __init__(
        self,
        backbone: Backbone,
        side: SideNetwork,
        task: Task,
        *,
        cache: ActivationCache | None = None,
        model_name: str = "",
    ) -> None:
        super().__init__()
        self.side = side
        self.task = task
        self.model_name = model_name
        self.cache = cache
        self.info: BackboneInfo = backbone.info
        taps = {s: tap_indices(self.info.stream(s).layers, side.config.tap_every) for s in side.reads}
        self.head: PooledHead | None = None
        if not task.generates:
            texts, matched = (2, len(taps[side.target])) if task.apart else (1, 0)
            self.head = PooledHead(
                self.info.hidden_size,
                side.width,
                task.outputs,
                texts=texts,
                taps=matched,
                dropout=side.config.dropout,
            )
        self.matcher = Matcher(len(taps[side.target]), self.info.hidden_size) if task.apart else None
        if self.info.dtype == torch.float64:
            for part in (self.head, self.matcher):
                if part is not None:
                    part.double()
        self.calibrated: Tensor
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))
        bound = None if cache is None else cache.bind(self.info, taps, model=model_name)
        self.reader = TapReader(backbone, bound, taps, half=side.half_taps)

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone, never among the module's parameters."""
        return self.reader.backbone

    @property
    def config(self) -> Any:
        """The backbone's transformers configuration, which third-party trainers look for."""
        return self.backbone.config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> PacOutput:
        """Loss and logits of a padded batch, as a transformers model with the same task would take it.

        Args:
            input_ids: (rows, tokens) int64.
            attention_mask: (rows, tokens), 1 for real tokens; all real if left out. Padding on either side.
            token_type_ids: (rows, tokens), for backbones that have them.
            labels: (rows,) classes or numbers; (rows, tokens) token ids with -100 where nothing is learnt for
                language models (not shifted, as in transformers).
            decoder_input_ids: (rows, target tokens), for encoder-decoder models without ``labels``.
            num_items_in_batch: what the sum of the losses is divided by, rather than the number of predictions; given
                by transformers' Trainer, so that accumulated steps weigh every token alike.
        """
        batch = examples_from_tensors(
            self.task, self.backbone, input_ids, attention_mask, token_type_ids, labels, decoder_input_ids
        )
        taps = self.reader.read(batch)
        if not self.task.generates:
            outputs = self.outputs(taps)
            loss = None if labels is None else self.loss(batch, taps, outputs)
            loss = self._per_item(loss, batch, num_items_in_batch)
            logits = outputs if self.task.kind == "classification" else self._head.numbers(outputs)
            return PacOutput(loss=loss, logits=logits)
        hidden = self.hidden(taps)
        loss = None if labels is None else self._token_loss(batch, hidden)
        loss = self._per_item(loss, batch, num_items_in_batch)
        if self.training and loss is not None:
            return PacOutput(loss=loss)
        logits = self.backbone.head(hidden)
        if self.info.is_encoder_decoder:
            places = decoder_places(taps[DECODER].rows, labels if decoder_input_ids is None else decoder_input_ids)
        else:
            places = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        whole = logits.new_zeros(*places.shape, logits.shape[-1])
        whole[places.to(logits.device)] = logits
        return PacOutput(loss=loss, logits=whole)

    def hidden(self, taps: dict[str, Taps]) -> Tensor:
        """Last hidden states (tokens, d) of the target stream: the backbone's plus what the side network adds."""
        hidden: Tensor = self.side(self._prepared(taps))
        return hidden

    def _prepared(self, taps: dict[str, Taps]) -> dict[str, Taps]:
        """``taps`` on the side network's device; the first batch of a loop that is not ours sets the scales."""
        if self.training and not bool(self.calibrated):
            self.calibrate([taps])
        device = next(self.side.parameters()).device
        return {s: Taps(t.values.to(device), t.rows) for s, t in taps.items()}

    def outputs(self, taps: dict[str, Taps]) -> Tensor:
        """Outputs (rows, outputs) of the trainable head."""
        taps = self._prepared(taps)
        last, statistics = self._matched(taps[self.side.target])
        return self.pooled_outputs(self.side.final({**taps, self.side.target: last}), last, statistics)

    def pooled_outputs(self, state: Tensor, last: Taps, statistics: Tensor | None) -> Tensor:
        """Outputs (rows, outputs) of the trainable head for last states (tokens, r) of the side network; of the taps
        ``last`` of the target stream b_L suffices."""
        head = self._head
        pooled = head.pool(state, last.rows)
        hidden = self.side.exit(self.side.target, pooled, head.pool(last.last, last.rows))
        peak, attended = peaks(state, last.rows), head.attend(state, last.rows)
        outputs: Tensor = head(Pooled(hidden, pooled, peak, statistics, attended))
        return outputs

    def _matched(self, taps: Taps) -> tuple[Taps, Tensor | None]:
        """``taps`` whose rows tell how well each token is matched, and the rows' match statistics, for two texts."""
        if self.matcher is None:
            return taps, None
        matches = self.matcher(taps)
        rows = replace(taps.rows, match=self.matcher.scaled(matches.tokens))
        return Taps(taps.values, rows), matches.statistics

    @torch.no_grad()
    def calibrate(self, taps: Sequence[dict[str, Taps]], targets: Tensor | None = None) -> None:
        """Set the scales that the side network and the head work in from frozen taps; done once, before training.

        In a loop that is not ours the first training batch serves. ``targets`` (samples,) are those of regression.
        """
        statistics = None
        if self.matcher is not None:
            statistics = self.matcher.calibrate([batch[self.side.target] for batch in taps])
        self.set_scales(torch.cat([self.frozen_features(batch) for batch in taps]), statistics, targets)

    @torch.no_grad()
    def frozen_features(self, taps: dict[str, Taps]) -> Tensor:
        """What scales are set from: (samples, texts, d) means of the last tap or, for text that is written, (tokens, d)
        as they are."""
        last = taps[self.side.target]
        return last.last if self.head is None else self.head.pool(last.last, last.rows)

    @torch.no_grad()
    def set_scales(self, features: Tensor, statistics: Tensor | None = None, targets: Tensor | None = None) -> None:
        """`calibrate` from `frozen_features` of all samples, and their match statistics (samples, statistics) if texts
        are read apart."""
        if self.head is not None:
            self.head.calibrate(features, statistics, targets)
            features = features.flatten(0, 1)
        if len(features) > 1:
            self.side.calibrate(features.std(0).clamp(min=1e-4))
        self.calibrated.fill_(True)

    def loss(self, batch: Sequence[Example], taps: dict[str, Taps], outputs: Tensor | None = None) -> Tensor:
        """Mean loss () of a batch whose taps have been read; over samples, or over tokens that have a target."""
        if self.task.generates:
            return self._token_loss(batch, self.hidden(taps))
        return self._pooled_loss(batch, self.outputs(taps) if outputs is None else outputs)

    def loss_of_states(
        self, batch: Sequence[Example], state: Tensor, last: Taps, statistics: Tensor | None = None
    ) -> Tensor:
        """Mean loss () of a batch from what the last stage of a pipeline has; arguments as in `pooled_outputs`."""
        if self.task.generates:
            return self._token_loss(batch, self.side.exit(self.side.target, state, last.last))
        return self._pooled_loss(batch, self.pooled_outputs(state, last, statistics))

    def _pooled_loss(self, batch: Sequence[Example], outputs: Tensor) -> Tensor:
        targets = torch.as_tensor([e.target for e in batch], device=outputs.device)
        if self.task.kind == "regression":
            return self._head.regression_loss(outputs, targets)
        return F.cross_entropy(outputs, targets)

    def learnt(self, batch: Sequence[Example]) -> int:
        """How many predictions a batch's mean loss is over: samples, or tokens that have a target."""
        if not self.task.generates:
            return len(batch)
        return sum(int((np.asarray(e.target) != IGNORE).sum()) for e in batch)

    def _per_item(self, loss: Tensor | None, batch: Sequence[Example], items: Tensor | int | None) -> Tensor | None:
        """The mean ``loss`` as a sum divided by ``items``."""
        return loss if loss is None or items is None else loss * (self.learnt(batch) / items)

    def _token_loss(self, batch: Sequence[Example], hidden: Tensor) -> Tensor:
        targets = torch.from_numpy(np.concatenate([np.asarray(e.target) for e in batch])).to(hidden.device)
        learnt = (targets != IGNORE).nonzero()[:, 0]
        return F.cross_entropy(self.backbone.head(hidden[learnt]), targets[learnt])

    @property
    def _head(self) -> PooledHead:
        assert self.head is not None
        return self.head

    def release_backbone(self) -> None:
        """Drop the backbone's layers from memory; samples that are not in the cache can no longer be read."""
        self.backbone.release(keep_head=self.task.generates)

    def replace_backbone(self, backbone: Backbone) -> None:
        """Put a freshly loaded backbone in the place of a released one.

        Raises:
            BadInput: it is not the same backbone.
        """
        self.reader.replace_backbone(backbone)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train."""
        print(f"trainable parameters: {self.trainable():,}")

    def trainable(self) -> int:
        """Number of parameters that train."""
        return sum(p.numel() for p in self.parameters())

    def generate(self, *args: Any, **options: Any) -> Tensor:
        """Token ids of the answers; see `pac_core.generation.generate`."""
        from pac_core.generation import generate

        return generate(self, *args, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``: side network, head, task, no backbone."""
        write_adapter(Path(folder), self.side.config, self.task, self.info, self.model_name, self.state_dict())

    @classmethod
    def from_pretrained(
        cls,
        base_model: Any,
        folder: str | Path,
        *,
        cache: ActivationCache | None = None,
        registry: Registry | None = None,
    ) -> Self:
        """A model with the adapter saved in ``folder``; ``base_model`` is a live model, a path or an id.

        Raises:
            BadInput: the folder holds no PAC adapter, is damaged, or was trained on another backbone, or on one in
                another number format; on int8 weights, if ``base_model`` is a live model.
        """
        saved = read_adapter(Path(folder))
        held = saved.weights if isinstance(base_model, (str, Path)) else "native"  # else `check` tells what is wrong
        backbone, name = _backbone_of(base_model, registry := registry or Registry(), saved.dtype, held)
        return cls.on_backbone(backbone, saved, registry, cache=cache, model_name=name)

    @classmethod
    def on_backbone(
        cls,
        backbone: Backbone,
        saved: SavedAdapter,
        registry: Registry,
        *,
        cache: ActivationCache | None = None,
        model_name: str = "",
    ) -> Self:
        """A model with a saved adapter on an open backbone, in evaluation mode; errors as in `from_pretrained`."""
        saved.check(backbone.info)
        build = registry.get("adapters", saved.config.name)
        side = build(backbone, saved.config, target_stream(backbone.info, saved.task))
        model = cls(backbone, side, saved.task, cache=cache, model_name=model_name)
        saved.restore(model)
        return model.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves between devices take the backbone along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.backbone.to(next(self.parameters()).device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PacModel:
        """A copy that shares the frozen backbone and the cache."""
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        memo[id(self.reader)] = self.reader
        memo[id(self.cache)] = self.cache
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied


def get_pac_model(
    base_model: Any,
    config: AdapterConfig | None = None,
    *,
    cache: ActivationCache | None = None,
    task: Task | None = None,
    registry: Registry | None = None,
    weights: WeightFormat = "native",
) -> PacModel:
    """Attach a side network to a frozen transformers model.

    Args:
        base_model: a ``PreTrainedModel`` with a task head, or a path or id. Its class says what is predicted:
            sequence classification (regression with one label), causal language modelling, conditional generation.
        config: the adapter; ``ParallelAdapterConfig()`` if left out.
        cache: where taps are kept; from the second epoch on, rows found there never touch the backbone.
        task: what is predicted, where the class does not say or says otherwise.
        weights: how to hold the matrices of a model that is loaded from a path or id.

    Raises:
        BadInput: an architecture without a plugin, a reduction that does not divide, a class that names no task; int8
            weights of a model in memory.
    """
    config = ParallelAdapterConfig() if config is None else config
    registry = registry or Registry()
    task = task or task_of_model(base_model)
    backbone, name = _backbone_of(base_model, registry, weights=weights)
    side = registry.get("adapters", config.name)(backbone, config, target_stream(backbone.info, task))
    return PacModel(backbone, side, task, cache=cache, model_name=name)


def _backbone_of(
    base_model: Any, registry: Registry, dtype: torch.dtype | None = None, weights: WeightFormat = "native"
) -> tuple[Backbone, str]:
    """The backbone of a live model, or of a path or id in ``dtype`` (the checkpoint's if None), and its name."""
    if isinstance(base_model, (str, Path)):
        source = BackboneSource(path=base_model, dtype=dtype, weights=weights)
        return load_backbone(source, registry), str(base_model)
    source = BackboneSource(model=base_model, weights=weights)
    return load_backbone(source, registry), str(getattr(base_model, "name_or_path", ""))


def decoder_places(rows: Rows, given: Tensor | None) -> Tensor:
    """(rows, width) bool, True where ``given`` labels or decoder ids (rows, width) hold a token that was fed."""
    assert given is not None
    lengths = torch.tensor(rows.lengths, device=given.device)
    return torch.arange(given.shape[1], device=given.device)[None] < lengths[:, None]

"""The backbone contract: a frozen transformers model as a chain of layers that can be run in slices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pac_core.contracts.formats import WeightFormat

ENCODER = "encoder"
DECODER = "decoder"

PARTIAL = "-partial"
"""Ends the fingerprint of a slice whose device does not know the other layers; no whole backbone's ends so."""

Boundary = dict[str, Tensor]
"""What crosses from one layer to the next, all rows padded to one length.

``hidden``        (rows, tokens, d), the backbone's dtype
``mask``          (rows, tokens) bool, True for real tokens; when decoding with a past, (rows, past + tokens)
``positions``     (rows, tokens) int64, position of each token in its row (0 for padding)
``encoder``       (rows, source tokens, d), only in the decoder stream of an encoder-decoder model
``encoder_mask``  (rows, source tokens) bool, likewise
"""


@dataclass(frozen=True)
class Stream:
    """One chain of backbone layers that reads one token sequence.

    An encoder or a decoder-only model has one stream, an encoder-decoder model has two: ``encoder`` and ``decoder``.

    Attributes:
        name: ``"encoder"`` or ``"decoder"``.
        layers: number of layers L; the taps are b_0 (embedding output) to b_L.
        causal: whether a token sees only the tokens before it.
        cross: whether each layer also attends to the output of the encoder stream.
    """

    name: str
    layers: int
    causal: bool
    cross: bool = False


@dataclass(frozen=True)
class BackboneInfo:
    """Facts about a backbone that adapters, caches and planners need; no tensors.

    Attributes:
        model_type: ``config.model_type`` of transformers, the name the plugin is registered under.
        hidden_size: width d of every tap.
        intermediate_size: width of a layer's MLP.
        streams: the chains, the encoder first.
        norm: kind of normalisation in the layers.
        norm_eps: its epsilon.
        activation: name of the MLP's activation, as in ``transformers.activations.ACT2FN``.
        gated_mlp: whether the MLP is ``down(act(gate(x)) * up(x))`` rather than ``down(act(up(x)))``.
        vocab_size: number of token ids.
        max_tokens: longest sequence the position embeddings take, None if unbounded.
        dtype: dtype of weights and taps.
        fingerprint: hex digest that covers the architecture, the attention implementation, every weight that a tap
            depends on, the dtype, and int8 weights; heads are no part of it. A slice has that of the whole backbone,
            unless files of the other layers are not on this device: then it ends in ``-partial`` and equals no whole
            backbone's.
        weights: how the layers' matrices are held.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    streams: tuple[Stream, ...]
    norm: Literal["layer", "rms"]
    norm_eps: float
    activation: str
    gated_mlp: bool
    vocab_size: int
    max_tokens: int | None
    dtype: torch.dtype
    fingerprint: str
    weights: WeightFormat = "native"

    def stream(self, name: str) -> Stream:
        """The stream called ``name``; KeyError if this backbone has none."""
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise KeyError(name)

    @property
    def is_encoder_decoder(self) -> bool:
        return len(self.streams) == 2


@dataclass(frozen=True)
class BackboneSource:
    """Where a backbone comes from: a folder or hub id to load from, or a model already in memory.

    Attributes:
        path: local folder (or hub id) with ``config.json`` and safetensors; None when ``model`` is given.
        model: a ``transformers.PreTrainedModel``, with or without a task head; it is frozen, never copied.
        layers: per stream the half-open range [first, last) of layers to hold; None holds all. Embeddings come with
            first = 0, the final norm and language-model head with last = L, even where first = L too. An empty dict
            holds nothing, which costs no memory and is enough for `Backbone.info`. Only with ``path``.
        dtype: dtype to load the weights in; None keeps the checkpoint's.
        fingerprint: that of this very checkpoint and dtype where it is known already: then only what is held is read,
            and of a model in memory nothing.
        digests: those of the weights that are not held, as `Backbone.digests` of another device gives them: then these
            weights are neither read nor need to be there, and the fingerprint is made of the digests of what is held
            and of these. An empty mapping reads nothing but headers to tell what is not held.
        weights: how to hold the layers' matrices; they are quantised one after the other as they are read, so the slice
            never is in full precision as a whole. What a matrix is quantised to depends on it and ``dtype`` alone, not
            on the slice. int8 only with ``path``.
    """

    path: str | Path | None = None
    model: Any = None
    layers: dict[str, tuple[int, int]] | None = None
    dtype: torch.dtype | None = None
    fingerprint: str | None = None
    digests: Mapping[str, str] | None = None
    weights: WeightFormat = "native"


@dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint that a backbone consists of, and where its bytes are; read from headers alone.

    Attributes:
        name: of the parameter; the key in `Backbone.digests`.
        stored: its name in the checkpoint.
        file: the file that holds it, raw and little-endian, on this device.
        start: its first byte in that file.
        dtype, shape: as stored.
        nbytes: what it takes in memory, in the backbone's dtype or as int8.
        layer: stream and number of the layer that it belongs to; None for embeddings, final norms, the head, and what
            layers share.
    """

    name: str
    stored: str
    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    layer: tuple[str, int] | None

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class AttentionWeights:
    """Projections of one attention, each as (out features, in features); key and value may have fewer heads.

    ``heads`` is the number of query heads.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    heads: int


@dataclass(frozen=True)
class LayerWeights:
    """One backbone layer's matrices in a family-independent form, for structural pruning (no copies, no gradients).

    Matrices are (out features, in features) whatever the family's own storage (GPT-2 stores them transposed and
    q, k, v fused). ``cross`` only where the stream has cross attention, ``gate`` only where the MLP is gated.
    """

    attention: AttentionWeights
    cross: AttentionWeights | None
    up: Tensor
    gate: Tensor | None
    down: Tensor


class Backbone(ABC):
    """A frozen transformers model as a chain: ``embed``, then layers, then ``head``.

    For each stream the taps are b_0..b_L exactly as the model's own forward reports them with
    ``output_hidden_states=True`` (and without a key-value cache): b_0 is the output of the embeddings, b_i the output
    of layer i, and b_L the last hidden state *after* the stream's final norm where the family has one. Any split into
    slices gives the same bits as one pass, because the same modules run on the same tensors.

    Implementations run under ``torch.no_grad`` with dropout off, return tensors that may enter autograd as constants,
    and never modify the model's weights. The registered factory is ``factory(source: BackboneSource) -> Backbone`` and
    raises `pac_core.errors.BadInput` for a checkpoint that it cannot serve (mixture of experts, already quantised,
    missing or truncated files) or cannot hold as int8, naming file and reason.

    Example:
        >>> boundary = backbone.embed("decoder", input_ids, mask)
        >>> taps = [boundary["hidden"]]
        >>> for boundary in backbone.run("decoder", 0, info.stream("decoder").layers, boundary):
        ...     taps.append(boundary["hidden"])
    """

    info: BackboneInfo
    config: Any  # the transformers configuration
    digests: Mapping[str, str]
    """Of every weight in the backbone's dtype before it is quantised, the language-model head's too, by name, as far as
    they are known: empty where the source says the fingerprint."""

    @abstractmethod
    def embed(
        self,
        stream: str,
        input_ids: Tensor,
        mask: Tensor,
        *,
        token_type_ids: Tensor | None = None,
        encoder: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        past: Any = None,
    ) -> Boundary:
        """The boundary before layer 1 of ``stream``.

        Args:
            stream: name of the stream.
            input_ids: (rows, tokens) int64; padding holds any valid id. Padding may be on either side.
            mask: (rows, tokens) bool, True for real tokens. With ``past``: (rows, past + tokens).
            token_type_ids: (rows, tokens) int64, for families that have them; others ignore them.
            encoder, encoder_mask: output of the encoder stream (its b_L) and its mask, for a decoder with cross
                attention.
            past: key-value cache from `new_past`; the tokens then follow those already in it.
        """

    @abstractmethod
    def run(self, stream: str, first: int, last: int, boundary: Boundary, *, past: Any = None) -> Iterator[Boundary]:
        """Run layers first+1..last of ``stream``; yields the boundary after each, so ``last - first`` of them.

        ``boundary`` is the one before layer ``first + 1``. The final norm belongs to layer L. Needs nothing that a
        worker holding only [first, last) does not have (T5's position bias, rotary tables and masks are made here).
        """

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of last hidden states (..., d), differentiable in ``hidden`` and frozen otherwise.

        Raises:
            BadInput: the model has no language-model head.
        """

    @abstractmethod
    def decoder_start(self) -> int | None:
        """Token id that every decoder sequence of an encoder-decoder model starts with; None for other models."""

    @abstractmethod
    def layer_weights(self, stream: str, layer: int) -> LayerWeights:
        """Matrices of layer ``layer`` (0-based) of ``stream`` in the backbone's dtype, for pruning; those of a layer
        that is not held, or held as int8, are read from the checkpoint, and not kept.

        Raises:
            RuntimeError: the backbone has been released.
        """

    @abstractmethod
    def weights(self, layers: Mapping[str, tuple[int, int]] | None = None) -> tuple[Weight, ...]:
        """The stored tensors that a slice of this checkpoint needs, whatever this backbone holds; each once.

        Args:
            layers: as in `BackboneSource`.

        Raises:
            BadInput: there are no such layers, files are missing, or the model came from memory and has no files.
        """

    @abstractmethod
    def new_past(self) -> Any:
        """An empty key-value cache for incremental decoding with ``embed`` and ``run``, numbered from the first layer
        that this backbone holds."""

    @abstractmethod
    def release(self, *, keep_head: bool) -> None:
        """Drop the layers and embeddings from memory; with ``keep_head`` the language-model head stays usable.

        ``embed`` and ``run`` raise RuntimeError afterwards; ``info`` stays.
        """

    @property
    @abstractmethod
    def released(self) -> bool:
        """Whether `release` has been called."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Backbone:
        """Move what is held to ``device``; returns self."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""


def tap_indices(layers: int, every: int) -> tuple[int, ...]:
    """Indices of the taps read when every ``every``-th layer is tapped: 0, every, 2*every, ..., always with L.

    >>> tap_indices(6, 1)
    (0, 1, 2, 3, 4, 5, 6)
    >>> tap_indices(7, 3)
    (0, 3, 6, 7)
    """
    indices: Sequence[int] = range(0, layers + 1, every)
    return tuple(indices) if indices[-1] == layers else (*indices, layers)

"""Text generation with key-value caches for the backbone and the side network: each token is computed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pac_core.contracts.adapter import Memory, Rows, Taps
from pac_core.contracts.backbone import DECODER, ENCODER
from pac_core.errors import BadInput

if TYPE_CHECKING:
    from pac_core.model import PacModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: most tokens to add.
        temperature: 0 takes the likeliest token, above 0 samples from logits divided by it.
        top_p: samples only among the likeliest tokens that together have this probability.
        eos: token ids that end a row.
        pad: id put behind the end of a row.
        seed: seed of the sampling; None for another result each time.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    eos: tuple[int, ...] = ()
    pad: int = 0
    seed: int | None = None


class Decoding:
    """Rows of equal length that grow token by token; holds both key-value caches.

    Args:
        model: a model whose task generates.
        encoder_ids, encoder_mask: (rows, source tokens) for encoder-decoder models.
    """

    def __init__(self, model: PacModel, encoder_ids: Tensor | None = None, encoder_mask: Tensor | None = None) -> None:
        self.model = model
        self.past = model.backbone.new_past()
        self.side_past = model.side.new_past()
        self.seen = 0
        self.memory: Memory | None = None
        self.context: dict[str, Tensor] = {}
        if encoder_ids is not None and encoder_mask is not None:
            self._encode(encoder_ids, encoder_mask)

    def _encode(self, ids: Tensor, mask: Tensor) -> None:
        hidden, taps = self._taps(ENCODER, ids, mask, {}, None)
        self.context = {"encoder": hidden, "encoder_mask": mask}
        if ENCODER in self.model.side.reads:
            lengths = mask.sum(1)
            rows = Rows(tuple(lengths.tolist()))
            self.memory = self.model.side.remember(Taps(taps[:, mask], rows))

    def step(self, ids: Tensor) -> Tensor:
        """Logits (rows, vocabulary) after the last of the new tokens ids (rows, new)."""
        rows, new = ids.shape
        self.seen += new
        mask = torch.ones(rows, self.seen, dtype=torch.bool, device=ids.device)
        _, taps = self._taps(DECODER, ids, mask, self.context, self.past)
        ragged = Taps(taps.flatten(1, 2), Rows((new,) * rows))
        hidden = self.model.side({DECODER: ragged}, memory=self.memory, past=self.side_past)
        return self.model.backbone.head(hidden.view(rows, new, -1)[:, -1])

    def _taps(
        self, stream: str, ids: Tensor, mask: Tensor, context: dict[str, Tensor], past: Any
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states (rows, tokens, d) and taps (taps, rows, tokens, d) in the side network's dtype."""
        backbone = self.model.backbone
        wanted = self.model.reader.taps.get(stream, ())
        entry = backbone.embed(stream, ids, mask, past=past, **context)
        after = backbone.run(stream, 0, backbone.info.stream(stream).layers, entry, past=past)
        taps = [entry["hidden"], *(boundary["hidden"] for boundary in after)]
        dtype = self.model.reader.dtype
        chosen = torch.stack([taps[i] for i in wanted]).to(dtype) if wanted else taps[-1]
        return taps[-1], chosen


@torch.no_grad()
def generate(
    model: PacModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    seed: int | None = None,
    on_token: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Token ids of the answers, greedy unless ``temperature`` is above 0.

    Args:
        model: a model whose task generates.
        input_ids: (rows, tokens) int64 prompts, padding on either side.
        attention_mask: (rows, tokens), 1 for real tokens.
        max_new_tokens: most tokens to add; fewer where the backbone takes no longer sequences.
        eos_token_id: what ends a row; the configuration's if left out.
        pad_token_id: what stands behind the end of a row; the configuration's if left out, else an end token.
        on_token: called with (rows,) new ids after each step, for streaming; rows of different prompt lengths are
            decoded in groups of one length, each calling it on its own.

    Returns:
        As transformers' ``generate``: decoder-only models give prompts and answers (rows, tokens + new),
        encoder-decoder models give the start token and answers (rows, 1 + new), padded behind the end of each row.

    Raises:
        BadInput: the task does not generate, or a prompt is longer than the backbone takes.
        RunFailed: the backbone has been released.
    """
    if not model.task.generates:
        raise BadInput(f"task {model.task.kind} gives no text; use the logits of model(...)")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    mask = mask.bool()
    model.reader.need_backbone("text is to be generated")
    eos = _eos(model.config, eos_token_id)
    sampling = Sampling(max_new_tokens, temperature, top_p, eos, _pad(model.config, pad_token_id, eos), seed)
    was_training = model.training
    model.eval()
    try:
        if model.info.is_encoder_decoder:
            return _answer_sources(model, input_ids, mask, sampling, on_token)
        return _continue_prompts(model, input_ids, mask, sampling, on_token)
    finally:
        model.train(was_training)


def stream_tokens(decoding: Decoding, ids: Tensor, sampling: Sampling) -> Iterator[Tensor]:
    """New token ids (rows,) one step after another, until every row has ended or the limit is reached.

    ``ids`` (rows, tokens) is fed first. A row that has ended yields the pad id.

    Raises:
        BadInput: ``ids`` are more than the backbone takes.
    """
    limit = sampling.max_new_tokens
    if (most := decoding.model.info.max_tokens) is not None:
        limit = min(limit, most - ids.shape[1] + 1)  # the last token is not fed
        if limit < 1:
            raise BadInput(f"the prompt has {ids.shape[1]} tokens, but the model takes {most}; shorten it")
    generator = torch.Generator(ids.device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    eos = torch.tensor(sampling.eos, dtype=torch.long, device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(limit):
        chosen = choose(decoding.step(ids), sampling, generator).masked_fill(ended, sampling.pad)
        yield chosen
        ended = ended | torch.isin(chosen, eos)
        if bool(ended.all()):
            return
        ids = chosen[:, None]


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Next ids (rows,) of logits (rows, vocabulary)."""
    if sampling.temperature <= 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _answer_sources(
    model: PacModel, ids: Tensor, mask: Tensor, sampling: Sampling, on_token: Callable[[Tensor], None] | None
) -> Tensor:
    first = model.backbone.decoder_start()
    assert first is not None  # an encoder-decoder model has one
    start = torch.full((len(ids), 1), first, dtype=torch.long, device=ids.device)
    new = _collect(Decoding(model, ids, mask), start, sampling, on_token)
    return torch.cat([start, new], 1)


def _continue_prompts(
    model: PacModel, ids: Tensor, mask: Tensor, sampling: Sampling, on_token: Callable[[Tensor], None] | None
) -> Tensor:
    groups: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(mask.sum(1).tolist()):
        groups[length].append(row)
    answers = torch.full((len(ids), sampling.max_new_tokens), sampling.pad, dtype=torch.long, device=ids.device)
    longest = 0
    for rows in groups.values():
        prompts = torch.stack([ids[row, mask[row]] for row in rows])
        new = _collect(Decoding(model), prompts, sampling, on_token)
        answers[rows, : new.shape[1]] = new
        longest = max(longest, new.shape[1])
    return torch.cat([ids, answers[:, :longest]], 1)


def _collect(decoding: Decoding, ids: Tensor, sampling: Sampling, on_token: Callable[[Tensor], None] | None) -> Tensor:
    new = []
    for chosen in stream_tokens(decoding, ids, sampling):
        new.append(chosen)
        if on_token is not None:
            on_token(chosen)
    return torch.stack(new, 1) if new else ids.new_zeros(len(ids), 0)


def _eos(config: Any, given: int | Sequence[int] | None) -> tuple[int, ...]:
    value = getattr(config, "eos_token_id", None) if given is None else given
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _pad(config: Any, given: int | None, eos: tuple[int, ...]) -> int:
    """Without a padding token an end token: any other would be read as text."""
    value = getattr(config, "pad_token_id", None) if given is None else given
    return (eos[0] if eos else 0) if value is None else int(value)

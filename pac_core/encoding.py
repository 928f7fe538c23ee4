"""Tokenising: samples become the token sequences that the backbone reads and the targets that are learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pac_core.columns import Sample
from pac_core.contracts.backbone import DECODER, ENCODER, BackboneInfo
from pac_core.data import check_form, check_number, label_index
from pac_core.errors import BadInput
from pac_core.examples import IGNORE, Example, Segment, Task
from pac_core.pieces import Ids, Joiner, answer_text, learnt_pieces, question_pieces

CHUNK = 2048
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model", "tekken.json")


def load_tokenizer(path_or_id: str | Path) -> Any:
    """The transformers tokenizer (``PreTrainedTokenizerBase``) of a local folder or a hub id.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = Path(path_or_id).expanduser()
    # From a folder with config.json alone, AutoTokenizer makes a tokenizer without a vocabulary and says nothing.
    if folder.is_dir() and not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        raise BadInput(f"{folder} holds no tokenizer (tokenizer.json or the like); copy the files beside config.json")
    try:
        return AutoTokenizer.from_pretrained(str(folder if folder.is_dir() else path_or_id))
    except Exception as error:  # OSError, ValueError, ImportError, and what the parsers of each format raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"no tokenizer can be loaded from {path_or_id} ({reason}); give a folder with tokenizer.json, "
            "or a hub id that was downloaded before or can be reached"
        ) from None


class Encoder:
    """Turns samples into examples for one task and one backbone.

    A text or a joint pair is one segment, a pair read apart is two. A seq2seq sample is an encoder segment and a
    decoder segment that starts with ``decoder_start``. For a causal LM the tokens of the prompt are exactly a prefix of
    the segment, and what follows the last token to be predicted is left out, since nothing is learnt there.

    Args:
        tokenizer: from `load_tokenizer`.
        task: the task.
        info: the backbone.
        max_length: longest segment in tokens; None stands for what the backbone takes.
        on_long: cut longer samples, or raise; None cuts where ``max_length`` is given.
        decoder_start: token that decoder sequences start with (`Backbone.decoder_start`), for seq2seq.

    Raises:
        BadInput: ``max_length`` does not fit the backbone, or a token that the task needs is missing.
    """

    def __init__(
        self,
        tokenizer: Any,
        task: Task,
        info: BackboneInfo,
        *,
        max_length: int | None = None,
        on_long: Literal["error", "truncate"] | None = None,
        decoder_start: int | None = None,
    ) -> None:
        if max_length is not None and info.max_tokens is not None and max_length > info.max_tokens:
            raise BadInput(
                f"max length {max_length} is more than the {info.max_tokens} tokens the model takes; lower it"
            )
        least = tokenizer.num_special_tokens_to_add(pair=task.pair and not task.apart) + 1
        if max_length is not None and max_length < least:
            raise BadInput(f"max length {max_length} leaves no room for text; use {least} or more")
        if task.kind == "seq2seq" and decoder_start is None:
            raise BadInput("the model names no decoder_start_token_id, which seq2seq needs; add it to its config.json")
        if task.generates and tokenizer.eos_token_id is None:
            raise BadInput("the tokenizer has no end-of-sequence token, so answers could not end; set its eos_token")
        self.tokenizer, self.task, self.info = tokenizer, task, info
        self.limit = info.max_tokens if max_length is None else max_length
        self.cut = on_long == "truncate" if on_long else max_length is not None
        self._start: Ids = [] if decoder_start is None else [decoder_start]
        self._shortened: set[str] = set()

    def __call__(self, samples: Sequence[Sample]) -> list[Example]:
        """Examples with targets, in order.

        Raises:
            BadInput: a sample that is too long, has a label that is not known, or does not fit the task.
        """
        return self._run(
            samples, {"seq2seq": self._seq2seq, "causal-lm": self._causal}.get(self.task.kind, self._texts)
        )

    def prompts(self, samples: Sequence[Sample]) -> list[Example]:
        """Examples without targets, for prediction: the texts, or what the model is to continue or answer.

        A chat is taken up to its last message that is not the assistant's. For seq2seq the example is the encoder
        segment alone. Labels and completions may be missing.
        """
        if not self.task.generates:
            return self._run(samples, self._unlabelled)
        return self._run(samples, self._questions)

    @property
    def truncated(self) -> int:
        """How many samples of the last call were cut to the limit."""
        return len(self._shortened)

    def _run(self, samples: Sequence[Sample], encode: Callable[[Sequence[Sample]], Iterator[Example]]) -> list[Example]:
        self._shortened = set()
        chunks = (samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK))
        return [example for chunk in chunks for example in encode(chunk)]

    # --- texts: classification and regression

    def _texts(self, samples: Sequence[Sample]) -> Iterator[Example]:
        for sample, segments in zip(samples, self._segments(samples)):
            target = label_index(self.task, sample) if self.task.kind == "classification" else check_number(sample)
            yield Example(segments, target, sample.source)

    def _unlabelled(self, samples: Sequence[Sample]) -> Iterator[Example]:
        for sample, segments in zip(samples, self._segments(samples)):
            yield Example(segments, None, sample.source)

    def _segments(self, samples: Sequence[Sample]) -> Iterator[tuple[Segment, ...]]:
        for sample in samples:
            check_form(sample, self.task.kind, labelled=False)
            if (sample.text_pair is not None) != self.task.pair:
                wanted = "a pair of texts" if self.task.pair else "one text"
                raise BadInput(f"{sample.source}: the task has {wanted} in each sample, this one does not")
        sources = [sample.source for sample in samples]
        firsts, seconds = ([sample.text or "" for sample in samples], [sample.text_pair or "" for sample in samples])
        if not self.task.pair:
            return ((segment,) for segment in self._whole(sources, firsts))
        if self.task.apart:
            return zip(self._whole(sources, firsts), self._whole(sources, seconds))
        count = self.tokenizer.num_special_tokens_to_add
        if count(pair=True) <= count(pair=False):  # nothing would part the two texts
            firsts = [text + "\n" for text in firsts]
        return ((segment,) for segment in self._whole(sources, firsts, seconds))

    def _whole(self, sources: list[str], texts: list[str], pairs: list[str] | None = None) -> Iterator[Segment]:
        """One segment a text or pair, with all the special tokens of the tokenizer."""
        rows = self._tokens(texts, pairs)
        for i, (ids, types) in enumerate(rows):
            if self._too_long(sources[i], len(ids)):
                second = None if pairs is None else [pairs[i]]
                ids, types = self._tokens([texts[i]], second, truncation="longest_first", max_length=self.limit)[0]
            yield self._segment(sources[i], self._text_stream, ids, types)

    def _tokens(self, texts: list[str], pairs: list[str] | None = None, **how: Any) -> list[tuple[Ids, Ids | None]]:
        batch = self.tokenizer(texts, pairs, return_attention_mask=False, verbose=False, **how)
        typed = self._has_types and "token_type_ids" in batch
        return list(zip(batch["input_ids"], batch["token_type_ids"] if typed else [None] * len(texts)))

    @cached_property
    def _text_stream(self) -> str:
        return self.info.streams[0].name

    @cached_property
    def _has_types(self) -> bool:
        # A tokenizer may make them for a model that has none; GPT-2 would even add them up with its token embeddings.
        return [stream.name for stream in self.info.streams] == [ENCODER]

    def _segment(
        self, source: str, stream: str, ids: Ids, types: Ids | None = None, context: Segment | None = None
    ) -> Segment:
        if not ids:
            raise BadInput(f"{source}: the tokenizer makes no tokens of this text; remove the row")
        if max(ids) >= self.info.vocab_size:
            raise BadInput(
                f"{source}: token id {max(ids)} is beyond the model's vocabulary of {self.info.vocab_size}; "
                "this tokenizer belongs to another model"
            )
        kinds = None if types is None else np.array(types, np.int8)
        return Segment(stream, np.array(ids, np.int32), kinds, context)

    def _too_long(self, source: str, tokens: int, what: str = "") -> bool:
        """Whether to cut; counts it. Raises where nothing may be cut."""
        if self.limit is None or tokens <= self.limit:
            return False
        if not self.cut:
            raise BadInput(
                f"{source}: {what}{tokens} tokens are more than the {self.limit} the model takes; "
                f"shorten the text or cut it with --max-length {self.limit}"
            )
        self._shortened.add(source)
        return True

    # --- seq2seq

    def _seq2seq(self, samples: Sequence[Sample]) -> Iterator[Example]:
        for sample in samples:
            check_form(sample, self.task.kind)
        answers = self.tokenizer(
            text_target=[answer_text(sample) for sample in samples], return_attention_mask=False, verbose=False
        )["input_ids"]
        eos = self.tokenizer.eos_token_id
        for sample, question, answer in zip(samples, self._sources(samples), answers):
            target = answer if answer and answer[-1] == eos else [*answer, eos]
            if self._too_long(sample.source, len(target), "in the completion, "):
                target = target[: self.limit]
            segment = self._segment(sample.source, DECODER, self._start + target[:-1], context=question)
            yield Example((question, segment), np.array(target, np.int64), sample.source)

    def _sources(self, samples: Sequence[Sample]) -> Iterator[Segment]:
        texts = ["".join(piece.text for piece in question_pieces(self.tokenizer, sample)) for sample in samples]
        return self._whole([sample.source for sample in samples], texts)

    # --- causal language models

    def _causal(self, samples: Sequence[Sample]) -> Iterator[Example]:
        for sample in samples:
            check_form(sample, self.task.kind)
        rows = self._joiner([learnt_pieces(self.tokenizer, sample) for sample in samples])
        for sample, (ids, learnt) in zip(samples, rows):
            if self.tokenizer.eos_token_id not in ids[-2:]:  # a chat template may end its turns with one and a newline
                ids, learnt = [*ids, self.tokenizer.eos_token_id], [*learnt, True]
            if self._too_long(sample.source, len(ids) - 1):
                ids, learnt = self._cut_end(sample.source, ids, learnt)
            target = [token if wanted else IGNORE for token, wanted in zip(ids[1:], learnt[1:])]
            yield Example((self._segment(sample.source, DECODER, ids[:-1]),), np.array(target, np.int64), sample.source)

    def _cut_end(self, source: str, ids: Ids, learnt: list[bool]) -> tuple[Ids, list[bool]]:
        """What fits, ending with a token that is learnt. The last token is never fed, hence the one more."""
        kept = learnt[: (self.limit or 0) + 1]
        last = max((i for i, wanted in enumerate(kept) if wanted and i > 0), default=None)
        if last is None:
            raise BadInput(
                f"{source}: the prompt takes all of the {self.limit} tokens, so that nothing of the completion "
                f"would be left; raise --max-length beyond {learnt.index(True)} or shorten the prompt"
            )
        return ids[: last + 1], kept[: last + 1]

    # --- prompts

    def _questions(self, samples: Sequence[Sample]) -> Iterator[Example]:
        for sample in samples:
            check_form(sample, self.task.kind, labelled=False)
        segments = self._sources(samples) if self.task.kind == "seq2seq" else self._starts(samples)
        for sample, segment in zip(samples, segments):
            yield Example((segment,), None, sample.source)

    def _starts(self, samples: Sequence[Sample]) -> Iterator[Segment]:
        rows = self._joiner([question_pieces(self.tokenizer, sample) for sample in samples])
        for sample, (ids, _) in zip(samples, rows):
            if self._too_long(sample.source, len(ids)):
                # The end is what gets continued, so the beginning goes, save for the token every text starts with.
                first = len(self._joiner.prefix) if sample.messages is None else 0
                ids = ids[:first] + ids[len(ids) - (self.limit or 0) + first :]
            yield self._segment(sample.source, DECODER, ids)

    @cached_property
    def _joiner(self) -> Joiner:
        return Joiner(self.tokenizer)

"""A saved adapter in use: scoring, prediction, conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pac_core.adapter_files import read_adapter
from pac_core.config import GenerationConfig
from pac_core.data import Message, Sample, read_samples
from pac_core.encoding import Encoder, load_tokenizer
from pac_core.errors import BadInput
from pac_core.examples import Segment
from pac_core.generation import Decoding, Sampling, stream_tokens
from pac_core.model import PacModel
from pac_core.registry import Registry
from pac_core.runtime.evaluate import evaluate, generate_texts, generated_metrics, predict
from pac_core.runtime.load import open_backbone
from pac_core.runtime.team import ALONE
from pac_core.taps import pad_segments


@dataclass(frozen=True, eq=False)
class OpenAdapter:
    """A trained adapter on its backbone.

    Attributes:
        model: both in one.
        encoder: turns samples into what the model reads.
        columns: columns by role, as in training.
        chat: whether what is asked is put to the model as a chat, as in training, or as a plain prompt.
    """

    model: PacModel
    encoder: Encoder
    columns: dict[str, str]
    chat: bool

    def read(self, data: str) -> list[Sample]:
        """Samples of a data file to predict; columns of labels and answers may be missing."""
        columns = {role: column for role, column in self.columns.items() if role not in ("label", "completion")}
        return read_samples(data, columns=columns, require_label=False)

    def samples(self, texts: Sequence[str]) -> list[Sample]:
        """Samples of texts given on the command line; the two texts of a pair are separated by a TAB.

        Raises:
            BadInput: a pair is wanted and there is no TAB.
        """
        task, found = self.model.task, []
        for number, text in enumerate(texts, start=1):
            source = f"argument:{number}"
            _check_text(source, text)
            if task.generates:
                found.append(self.question(source, [Message("user", text)]))
            elif not task.pair:
                found.append(Sample(source, text=text))
            else:
                first, tab, second = text.partition("\t")
                if not tab:
                    raise BadInput(f"{source}: this adapter takes pairs; separate the two texts with a TAB")
                _check_text(source, first)
                _check_text(source, second)
                found.append(Sample(source, text=first, text_pair=second))
        return found

    def question(self, source: str, messages: Sequence[Message]) -> Sample:
        """What the model is asked: all turns of a chat, or the last one alone where it was trained on prompts."""
        if self.chat:
            return Sample(source, messages=tuple(messages))
        return Sample(source, prompt=messages[-1].content)

    def score(self, data: str, *, batch_size: int = 32, max_new_tokens: int = 64) -> dict[str, float]:
        """Metrics on a data file with labels or answers."""
        samples = read_samples(data, columns=self.columns)
        metrics = evaluate(self.model, ALONE.share_out(self.encoder(samples), batch_size, 0)).metrics
        if self.model.task.generates:
            settings = GenerationConfig(max_new_tokens=max_new_tokens)
            metrics |= generated_metrics(self.model, self.encoder, samples, settings).metrics
        return metrics

    def predict(self, samples: Sequence[Sample], *, max_new_tokens: int = 64, temperature: float = 0.0) -> list[Any]:
        """Label names, numbers, or generated texts, one for each sample, in order."""
        task = self.model.task
        if task.generates:
            settings = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature)
            return generate_texts(self.model, self.encoder, samples, settings)
        found = predict(self.model, self.encoder.prompts(samples))
        return [task.labels[i] for i in found] if task.kind == "classification" else found

    def conversation(self, *, max_new_tokens: int = 256, temperature: float = 0.0) -> Conversation:
        """A chat with the model.

        Raises:
            BadInput: the adapter's task gives no text.
        """
        if not self.model.task.generates:
            raise BadInput(f"this adapter does {self.model.task.kind}, which gives no text; use pac predict")
        return Conversation(self, max_new_tokens, temperature)


def _check_text(source: str, text: str) -> None:
    if not text.strip():
        raise BadInput(f"{source}: the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that Python could not decode come as halves of surrogate pairs
        raise BadInput(f"{source}: the text is not UTF-8; convert it, for example with iconv") from None


def open_adapter(
    folder: Path, model: str | None = None, registry: Registry | None = None, *, max_length: int | None = None
) -> OpenAdapter:
    """Load a folder written by ``pac finetune``, its backbone included.

    Args:
        folder: the adapter.
        model: the backbone, if it is no longer where it was in training.
        registry: the plugins; by default all that are installed.
        max_length: cut texts to this many tokens; as in training if left out.

    Raises:
        BadInput: not an adapter, or its backbone is not where it was (say where with ``model``).
    """
    registry = registry or Registry()
    saved = read_adapter(folder)
    path = model or saved.file.base_model_name_or_path
    if path is None:
        raise BadInput(f"{folder}: does not say which model it was trained on; give --model")
    backbone = open_backbone(path, saved.dtype, registry, weights=saved.weights)
    built = PacModel.on_backbone(backbone, saved, registry, model_name=str(path))
    encoder = Encoder(
        load_tokenizer(folder),
        saved.task,
        backbone.info,
        max_length=max_length or saved.file.max_length,
        decoder_start=backbone.decoder_start(),
    )
    chat = saved.file.chat
    if chat is None:
        chat = bool(encoder.tokenizer.chat_template) and not backbone.info.is_encoder_decoder
    return OpenAdapter(built, encoder, saved.file.columns, chat)


@dataclass
class Conversation:
    """Turns so far; each answer sees them all where the model was trained on chats, else only the last message.

    Where the turns leave no room for an answer in what the model takes, the oldest are no longer shown to it.
    """

    opened: OpenAdapter
    max_new_tokens: int
    temperature: float
    messages: list[Message] = field(default_factory=list)
    first: int = 0
    """Index of the oldest message that the model still sees."""

    def answer(self, text: str) -> Iterator[str]:
        """Pieces of the answer to ``text`` as they are generated.

        Raises:
            BadInput: the text alone is longer than the model takes; it is not part of the conversation then.
        """
        opened, model = self.opened, self.opened.model
        prompt = self._prompt(text)
        self.messages.append(Message("user", text))
        ids, mask, _ = pad_segments([prompt], model.backbone.device)
        tokenizer = opened.encoder.tokenizer
        sampling = Sampling(self.max_new_tokens, self.temperature, eos=(tokenizer.eos_token_id,))
        if model.info.is_encoder_decoder:
            decoding = Decoding(model, ids, mask)
            ids = torch.full((1, 1), model.backbone.decoder_start() or 0, device=ids.device)
        else:
            decoding = Decoding(model)
        found: list[int] = []
        shown = ""
        with torch.no_grad():
            for chosen in stream_tokens(decoding, ids, sampling):
                found.append(int(chosen[0]))
                whole = tokenizer.decode(found, skip_special_tokens=True)
                if not whole.endswith("\ufffd"):  # a character whose bytes are not all there yet
                    yield whole[len(shown) :]
                    shown = whole
        self.messages.append(Message("assistant", shown))

    def _prompt(self, text: str) -> Segment:
        """What the model reads before it answers ``text``: as many turns as leave room for the answer."""
        _check_text("chat", text)
        encoder = self.opened.encoder
        while True:
            turns = [*self.messages[self.first :], Message("user", text)]
            alone = len(turns) == 1
            try:
                prompt = encoder.prompts([self.opened.question("chat", turns)])[0].segments[0]
            except BadInput:
                if alone:
                    raise
            else:
                if alone or encoder.limit is None or len(prompt) + self.max_new_tokens <= encoder.limit:
                    return prompt
            self.first += 2

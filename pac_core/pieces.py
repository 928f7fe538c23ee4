"""Prompts, completions and chats as stretches of text, and tokenising those so that the boundaries stay exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pac_core.columns import Message, Sample
from pac_core.errors import BadInput

Ids = list[int]
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: the text, joined to its neighbours as it is.
        learnt: whether the model learns to write it.
        start: whether the tokens that the tokenizer puts before every text belong before it.
    """

    text: str
    learnt: bool = False
    start: bool = False


def learnt_pieces(tokenizer: Any, sample: Sample) -> list[Piece]:
    """The whole sample, ending with a piece that is learnt: the completion, the last assistant turn, the plain text.

    Raises:
        BadInput: a chat without an assistant turn, or a chat template that is missing or not prefix-stable.
    """
    if sample.messages is None:
        if sample.prompt is None:
            return [Piece(sample.text or "", learnt=True, start=True)]
        return [Piece(sample.prompt, start=True), Piece(sample.completion or "", learnt=True)]
    _last_answer(sample)
    pieces = _turns(tokenizer, sample.source, sample.messages)
    if pieces is None:
        raise BadInput(
            f"{sample.source}: the chat template renders earlier turns differently once later turns follow, so what is "
            "learnt cannot be told apart; give samples with one assistant turn, or prompt and completion"
        )
    return pieces


def question_pieces(tokenizer: Any, sample: Sample) -> list[Piece]:
    """What the model is given to answer: the prompt, the plain text, or the chat up to the last assistant turn."""
    if sample.messages is None:
        return [Piece(sample.text or "" if sample.prompt is None else sample.prompt, start=True)]
    end = len(sample.messages)
    while end and sample.messages[end - 1].role == ASSISTANT:
        end -= 1
    if not end:
        raise BadInput(f"{sample.source}: the chat holds assistant messages only; there is nothing to answer")
    messages = sample.messages[:end]
    whole = _render(tokenizer, sample.source, messages, ask=True)
    earlier = _turns(tokenizer, sample.source, messages) or []
    done = "".join(piece.text for piece in earlier)
    if not whole.startswith(done):
        return [Piece(whole)]
    return [*earlier, Piece(whole[len(done) :])]


def answer_text(sample: Sample) -> str:
    """The text that answers `question_pieces`: the completion, or the last assistant message.

    Raises:
        BadInput: the chat does not end with an assistant message.
    """
    if sample.messages is None:
        return sample.completion or ""
    return _last_answer(sample).content


def _last_answer(sample: Sample) -> Message:
    last = (sample.messages or ())[-1]
    if last.role != ASSISTANT:
        raise BadInput(f"{sample.source}: the chat ends with {last.role!r}; the last message must be the assistant's")
    return last


def _turns(tokenizer: Any, source: str, messages: Sequence[Message]) -> list[Piece] | None:
    """Pieces up to the last assistant turn, which alone are learnt; None if rendering more turns changes earlier ones.

    What a turn adds is the difference between rendering the chat with and without it.
    """
    pieces: list[Piece] = []
    done = ""
    for i, message in enumerate(messages):
        if message.role != ASSISTANT:
            continue
        before = _render(tokenizer, source, messages[:i], ask=True) if i else ""
        after = _render(tokenizer, source, messages[: i + 1], ask=False)
        if not (before.startswith(done) and after.startswith(before)):
            return None
        pieces += [Piece(before[len(done) :]), Piece(after[len(before) :], learnt=True)]
        done = after
    return pieces


def _render(tokenizer: Any, source: str, messages: Sequence[Message], *, ask: bool) -> str:
    if not tokenizer.chat_template:
        raise BadInput(
            f"{source}: the tokenizer has no chat template for messages; use prompt and completion columns, "
            "or a tokenizer saved with a chat_template"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # templates raise whatever they like: roles out of order, no system messages, ...
        raise BadInput(
            f"{source}: the model's chat template refuses this chat ({error}); change the messages"
        ) from None


class Joiner:
    """Tokenises each piece on its own and puts the tokens together, so that a prompt's tokens are always a prefix.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        plain, newline, joined = self._plain(["a", "\n", "\na"])
        whole = tokenizer("a", verbose=False)["input_ids"]
        starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        self.prefix: Ids = whole[: next(starts, 0)]
        """What the tokenizer puts before every text, such as the begin-of-sequence token."""

        # SentencePiece begins every text with a space that is not there. After a newline it does not, so that pieces in
        # the middle are tokenised behind one, which is taken away again.
        parted = joined[: len(newline)] == newline
        self._newline: Ids = newline if parted and joined[len(newline) :] != plain else []

    def __call__(self, rows: Sequence[Sequence[Piece]]) -> list[tuple[Ids, list[bool]]]:
        """For each row of pieces its token ids and, for each token, whether it is learnt."""
        firsts = iter(self._plain([row[0].text for row in rows]))
        others = iter(self._inside([piece.text for row in rows for piece in row[1:]]))
        return [self._join(row, [next(firsts), *(next(others) for _ in row[1:])]) for row in rows]

    def _join(self, row: Sequence[Piece], parts: Iterable[Ids]) -> tuple[Ids, list[bool]]:
        ids: Ids = list(self.prefix) if row[0].start else []
        learnt = [False] * len(ids)
        for piece, part in zip(row, parts):
            ids += part
            learnt += [piece.learnt] * len(part)
        return ids, learnt

    def _inside(self, texts: list[str]) -> list[Ids]:
        if not self._newline:
            return self._plain(texts)
        behind = self._plain(["\n" + text for text in texts])
        size = len(self._newline)
        exact = [ids[:size] == self._newline for ids in behind]
        return [ids[size:] if fine else self._plain([text])[0] for text, ids, fine in zip(texts, behind, exact)]

    def _plain(self, texts: list[str]) -> list[Ids]:
        if not texts:
            return []
        batch = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids: list[Ids] = batch["input_ids"]
        return ids

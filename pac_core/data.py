"""Data sets: reading samples from files and finding out which task they pose."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import get_args

from pac_core.columns import Label, Message, Sample, check_mapping, has_header, samples_of
from pac_core.contracts.backbone import ENCODER, BackboneInfo
from pac_core.errors import BadInput
from pac_core.examples import Task, TaskKind
from pac_core.rows import Grid, load

__all__ = ["Message", "Sample", "infer_task", "label_index", "label_name", "read_samples"]


def read_samples(
    path_or_id: str | Path, *, columns: Mapping[str, str] | None = None, require_label: bool = True
) -> list[Sample]:
    """Read a data file or a Hugging Face data set.

    Args:
        path_or_id: a ``.jsonl``, ``.csv``, ``.tsv`` or ``.json`` file, ``file.json:split``, a folder saved by
            ``datasets``, or ``org/name:split`` on the hub.
        columns: role (text, text_pair, label, prompt, context, completion, messages) to column name, or to column
            number counted from 0 in a file without header, for columns that are not found by their names.
        require_label: False reads rows without label or completion as well, for predictions.

    Returns:
        The samples in file order, at least one. All labels are of one type: text, int or float.

    Raises:
        BadInput: one line that names file, line and way out.
    """
    mapping = check_mapping(columns)
    loaded = load(path_or_id)
    if not isinstance(loaded, Grid):
        return samples_of(loaded, mapping, require_label=require_label)
    header = has_header(loaded, mapping)
    roles = mapping or ({} if header else {"text": "0", "label": "1"})
    return samples_of(loaded.table(header=header), roles, require_label=require_label)


def infer_task(
    samples: Sequence[Sample], *, kind: str = "auto", info: BackboneInfo | None = None, apart: bool = False
) -> Task:
    """The task that training samples pose to a backbone.

    With ``kind="auto"``: text with text or int labels is classification, with float labels regression; prompts with
    completions, chats and plain text without labels are seq2seq for an encoder-decoder backbone and causal-lm for a
    decoder.

    Args:
        samples: the training samples, of one form.
        kind: a `TaskKind`, or ``"auto"``.
        info: the backbone; without it "auto" cannot choose between seq2seq and causal-lm.
        apart: have the backbone read the two texts of a pair apart.

    Raises:
        BadInput: the samples, the kind and the backbone do not go together.
    """
    if not samples:
        raise BadInput("there are no samples to train on")
    if kind not in ("auto", *get_args(TaskKind)):
        raise BadInput(f"task {kind!r} is not known; choose auto, {', '.join(get_args(TaskKind))}")
    pair = samples[0].text_pair is not None
    if apart and not pair:
        raise BadInput(
            f"{samples[0].source}: texts can only be read apart where there are two, such as sentence1 and sentence2"
        )
    chosen = _auto_kind(samples, info) if kind == "auto" else kind
    check_form(samples[0], chosen)
    if info is not None:
        _check_backbone(samples[0], chosen, info)
    if chosen == "classification":
        return Task("classification", _class_names(samples, guessed=kind == "auto"), pair, apart)
    if chosen == "regression":
        for sample in samples:
            check_number(sample)
        return Task("regression", (), pair, apart)
    return Task("seq2seq" if chosen == "seq2seq" else "causal-lm")


def _auto_kind(samples: Sequence[Sample], info: BackboneInfo | None) -> str:
    first = samples[0]
    if first.text is not None and first.label is not None:
        return "regression" if isinstance(first.label, float) else "classification"
    if info is None:
        raise BadInput(f"{first.source}: the task cannot be told from the data alone; choose seq2seq or causal-lm")
    if info.is_encoder_decoder:
        return "seq2seq"
    return "causal-lm" if info.streams[0].causal else "classification"


def check_form(sample: Sample, kind: str, *, labelled: bool = True) -> None:
    """Whether a sample has what the task needs; without ``labelled`` the label or the completion may be missing.

    Raises:
        BadInput: it has not.
    """
    has_label = sample.label is not None or not labelled
    has_answer = sample.completion is not None or not labelled
    asks = sample.messages is not None or (sample.prompt is not None and has_answer)
    plain = sample.text is not None and sample.text_pair is None and (sample.label is None or not labelled)
    hint = ""
    if kind in ("classification", "regression"):
        fine, wanted = sample.text is not None and has_label, "a text" + (" and a label" if labelled else "")
    elif kind == "seq2seq":
        fine, wanted = asks or (plain and not labelled), "prompt and completion, or messages"
    else:
        fine, wanted = asks or plain, "prompt and completion, messages, or text alone"
    if sample.label is not None and kind in ("seq2seq", "causal-lm"):
        hint = "; to have labels written out: columns: {prompt: TEXT COLUMN, completion: LABEL COLUMN}"
    if not fine:
        raise BadInput(f"{sample.source}: {kind} needs {wanted}; this sample has {_form(sample)}{hint}")


def _form(sample: Sample) -> str:
    if sample.messages is not None:
        return "messages"
    if sample.prompt is not None:
        return "prompt and completion" if sample.completion is not None else "a prompt without completion"
    texts = "a pair of texts" if sample.text_pair is not None else "a text"
    return f"{texts} and a label" if sample.label is not None else f"{texts} without label"


def _check_backbone(first: Sample, kind: str, info: BackboneInfo) -> None:
    encoder_only = [stream.name for stream in info.streams] == [ENCODER]
    if kind == "seq2seq" and not info.is_encoder_decoder:
        wanted = "an encoder-decoder model such as T5 or BART"
    elif kind == "causal-lm" and info.is_encoder_decoder:
        wanted = "a decoder such as GPT-2 or Llama; for this model choose seq2seq"
    elif kind == "causal-lm" and encoder_only:
        wanted = "a model that writes text, such as GPT-2, Llama or T5; this one takes texts with labels"
    else:
        return
    raise BadInput(f"{first.source}: {kind} needs {wanted} (the model is of type {info.model_type!r})")


def _class_names(samples: Sequence[Sample], *, guessed: bool) -> tuple[str, ...]:
    """Names of the classes: numbers in numeric order, others in alphabetical order."""
    for sample in samples:
        if sample.label is None:
            raise BadInput(f"{sample.source}: no label; fill it in or remove the row")
    names = {label_name(sample.label) for sample in samples if sample.label is not None}
    if len(names) == 1:
        raise BadInput(
            f"{samples[0].source}: every sample has the label {min(names)!r}; two classes at least are needed"
        )
    if guessed and len(names) > max(50, len(samples) // 2):
        raise BadInput(
            f"{samples[0].source}: {len(names)} different labels in {len(samples)} rows look like free text; "
            "name the columns prompt and completion to have text written, or choose the task classification"
        )
    return tuple(sorted(names, key=_class_order))


def _class_order(name: str) -> tuple[bool, int, str]:
    number = name.removeprefix("-").isdecimal()
    return (not number, int(name) if number else 0, name)


def label_name(label: Label) -> str:
    """Name of the class that a label stands for: 1, 1.0 and "1" are one class."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


@lru_cache(maxsize=16)
def _positions(labels: tuple[str, ...]) -> dict[str, int]:
    return {label: index for index, label in enumerate(labels)}


def label_index(task: Task, sample: Sample) -> int:
    """Index of a sample's class in ``task.labels``.

    Raises:
        BadInput: the sample has no label, or one that the training data did not have.
    """
    if sample.label is None:
        raise BadInput(f"{sample.source}: no label; fill it in or remove the row")
    name = label_name(sample.label)
    index = _positions(task.labels).get(name)
    if index is None:
        near = difflib.get_close_matches(name, task.labels, n=3)
        others = [label for label in task.labels if label not in near][: 8 - len(near)]
        more = ", ..." if len(near) + len(others) < len(task.labels) else ""
        raise BadInput(
            f"{sample.source}: the label {name!r} does not occur in the training data; its {len(task.labels)} labels "
            f"are {', '.join(near + others)}{more}; correct the row or train with that label"
        )
    return index


def check_number(sample: Sample) -> float:
    """The label as a number; BadInput where it is missing or text."""
    if sample.label is None:
        raise BadInput(f"{sample.source}: no label; fill it in or remove the row")
    if isinstance(sample.label, str):
        raise BadInput(f"{sample.source}: the label {sample.label!r} is not a number, which regression needs")
    return float(sample.label)

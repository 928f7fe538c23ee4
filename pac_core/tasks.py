"""What a task needs of a model: which stream answers it, and which task a transformers class stands for."""

from __future__ import annotations

from typing import Any

from pac_core.contracts.backbone import DECODER, ENCODER, BackboneInfo
from pac_core.errors import BadInput
from pac_core.examples import Task


def target_stream(info: BackboneInfo, task: Task) -> str:
    """The stream whose last hidden states answer the task: an encoder suffices where nothing is generated."""
    names = [stream.name for stream in info.streams]
    if task.generates:
        if DECODER not in names:
            raise BadInput(f"task {task.kind} needs a model that generates; {info.model_type} is an encoder")
        return DECODER
    return ENCODER if ENCODER in names else DECODER


def task_of_model(model: Any) -> Task:
    """The task that a transformers model's class stands for.

    Raises:
        BadInput: the class stands for none.
    """
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        if model.config.num_labels == 1:
            return Task("regression")
        return Task("classification", tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels)))
    if name.endswith("ForConditionalGeneration"):
        return Task("seq2seq")
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return Task("causal-lm")
    raise BadInput(f"{name} does not say what is to be predicted; pass task=Task(...), or a model with a task head")

"""The bundled model families. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pac_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from pac_core.contracts.backbone import Backbone, BackboneSource

FAMILIES = {
    "bert": ("bert", "BertBackbone", "BERT and MiniLM encoders"),
    "roberta": ("bert", "RobertaBackbone", "RoBERTa encoders"),
    "xlm-roberta": ("bert", "RobertaBackbone", "XLM-RoBERTa encoders"),
    "electra": ("bert", "ElectraBackbone", "ELECTRA encoders"),
    "distilbert": ("bert", "DistilBertBackbone", "DistilBERT encoders"),
    "t5": ("t5", "T5Backbone", "T5, T5 1.1 and FLAN-T5 encoder-decoders"),
    "bart": ("bart", "BartBackbone", "BART encoder-decoders"),
    "gpt2": ("gpt2", "Gpt2Backbone", "GPT-2 decoders"),
    "llama": ("llama", "LlamaBackbone", "Llama decoders"),
    "mistral": ("llama", "MistralBackbone", "Mistral decoders"),
    "qwen2": ("llama", "QwenBackbone", "Qwen2 and Qwen2.5 decoders"),
    "qwen3": ("llama", "QwenBackbone", "Qwen3 decoders"),
    "gemma": ("llama", "GemmaBackbone", "Gemma decoders"),
}
"""model_type: (module, class, what it is)."""


@hookimpl
def pac_register_backbones(register: Register) -> None:
    for model_type, (module, name, summary) in FAMILIES.items():
        register(model_type, _factory(module, name), summary=summary)


def _factory(module: str, name: str) -> Callable[[BackboneSource], Backbone]:
    def build(source: BackboneSource) -> Backbone:
        return getattr(import_module(f"{__name__}.{module}"), name)(source)

    return build

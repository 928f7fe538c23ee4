"""Tiny models with random weights, and a tokenizer for them: what tests run on. Needs nothing from a hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

VOCABULARY = 64
WIDTH = 32
LAYERS = 3
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""Special tokens of the tiny tokenizer; their ids are 0 to 3."""

WORDS = tuple(
    """good great fine happy love bad awful sad poor hate the a film was is very not it really so
    yes no what who where red blue one two three four plus and of to in for you me we they""".split()  # noqa: SIM905
)

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)

_PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _bert(labels: int) -> Any:
    return hf.BertForSequenceClassification(hf.BertConfig(**_PLAIN, pad_token_id=0, num_labels=labels))


def _gpt2(labels: int) -> Any:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_inner=48, n_layer=LAYERS, n_head=4, n_positions=64, **_IDS
    )
    return hf.GPT2LMHeadModel(config)


def _llama(labels: int) -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_PLAIN, **_IDS, num_key_value_heads=2))


def _t5(labels: int) -> Any:
    config = hf.T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_ff=48,
        d_kv=8,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=LAYERS,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    return hf.T5ForConditionalGeneration(config)


def _bart(labels: int) -> Any:
    config = hf.BartConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=LAYERS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=64,
        **_IDS,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return hf.BartForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[int], Any]] = {"bert": _bert, "gpt2": _gpt2, "llama": _llama, "t5": _t5, "bart": _bart}
"""Builders by ``model_type``."""


def tiny_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, labels: int = 3, layers: int | None = None
) -> Any:
    """A transformers model of width 32 with 2 or 3 layers, in evaluation mode.

    Its weights are larger than fresh ones, and biases and norms are no longer 0 and 1, so that a part that is left out
    or a token that is read wrongly shows.

    Args:
        family: a key of `FAMILIES`.
        seed: of the weights.
        dtype: of the weights.
        labels: classes of a sequence classification model; 1 stands for regression.
        layers: of each stream, for pipelines of many stages; None leaves 2 or 3.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = FAMILIES[family](labels)
        if layers is not None:
            model = type(model)(_of_depth(model.config, layers))
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def _of_depth(config: Any, layers: int) -> Any:
    """``config`` with so many layers in each stream."""
    names = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    held = config.to_dict()
    return type(config)(**{**held, **{name: layers for name in names if name in held}})


def tiny_tokenizer() -> Any:
    """A tokenizer that knows `WORDS` and the special tokens, and cuts at white space; it has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [*SPECIAL, "user", "assistant", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny(folder: Path, family: str, **options: Any) -> Path:
    """Write the checkpoint of `tiny_model` and its tokenizer into ``folder``; returns it."""
    tiny_model(family, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder

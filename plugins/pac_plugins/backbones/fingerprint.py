"""Content fingerprints: equal for equal taps, however the weights came into memory."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
import xxhash
from torch import Tensor, nn

from pac_core.contracts.backbone import PARTIAL
from pac_core.contracts.formats import WeightFormat
from pac_core.int8 import BLOCK
from pac_plugins.backbones.tensor_file import raw_bytes

# Whatever is not named here counts: a field too many costs a cache miss, a field too few would be a wrong hit.
_IRRELEVANT = re.compile(
    r"^_|dropout|_pdrop$|layerdrop|_token_ids?$|^init|^output_|^summary_"
    r"|^(architectures|transformers_version|dtype|torch_dtype|torchscript|name_or_path|auto_map|use_cache|return_dict"
    r"|id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|classifier_activation"
    r"|tie_word_embeddings|tie_encoder_decoder|tie_last_hidden_states|scale_decoder_outputs|gradient_checkpointing"
    r"|vocab_size|prefix|num_beams|max_length|min_length|no_repeat_ngram_size|length_penalty|early_stopping)$"
)

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``function`` of each item, in order; reading and hashing let go of Python's lock."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


def tensor_digest(tensor: Tensor) -> str:
    """Digest of dtype, shape and bytes."""
    data = raw_bytes(tensor.detach().cpu().contiguous())
    return _digest(xxhash.xxh3_128(data), tensor.dtype, tuple(tensor.shape))


def stream_digest(chunks: Iterator[memoryview], dtype: torch.dtype, shape: tuple[int, ...], cast: torch.dtype) -> str:
    """The `tensor_digest` of a tensor stored in ``dtype``, after a cast, that never is in memory as a whole."""
    state = xxhash.xxh3_128()
    for piece in chunks:
        state.update(piece if cast == dtype else raw_bytes(torch.frombuffer(piece, dtype=dtype).to(cast)))
    return _digest(state, cast, shape)


def combine(
    base: nn.Module,
    config: Any,
    dtype: torch.dtype,
    digests: dict[str, str | None],
    keys: frozenset[str],
    *,
    weights: WeightFormat = "native",
) -> str:
    """The fingerprint of a backbone.

    Args:
        base: the bare model, for the buffers that it computes itself.
        config: its configuration.
        dtype: dtype of the weights.
        digests: of every weight that a tap depends on, before it is quantised; None where the file is not on this
            device.
        keys: fields of ``config`` that count although they are ignored elsewhere.
        weights: how the layers' matrices are held.
    """
    fields = config.to_dict()
    facts = {
        "model_type": config.model_type,
        # sdpa and eager may differ in the last bit
        "attention": sorted({m.config._attn_implementation for m in base.modules() if hasattr(m, "config")}),
        "config": {k: v for k, v in fields.items() if v is not None and (k in keys or not _IRRELEVANT.search(k))},
        "buffers": {
            name: _computed(buffer, dtype) for name, buffer in base.named_buffers() if buffer.is_floating_point()
        },
        "weights": {name: digest for name, digest in digests.items() if digest is not None},
    }
    if weights != "native":
        facts["held as"] = [weights, BLOCK]
    text = json.dumps(facts, sort_keys=True, default=str)
    whole = all(digest is not None for digest in digests.values())
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest() + ("" if whole else PARTIAL)


def _computed(buffer: Tensor, dtype: torch.dtype) -> str:
    """A buffer that a conversion such as ``model.bfloat16()`` may have rounded: a scale, or a rotary table."""
    return str(buffer.to(dtype).item() if buffer.numel() == 1 else buffer.dtype)


def _digest(state: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)} {state.hexdigest()}"

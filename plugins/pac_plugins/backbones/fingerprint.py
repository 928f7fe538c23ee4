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

from pac_plugins.backbones.tensor_file import raw_bytes

PARTIAL = "partial-"
"""Starts the fingerprint of a slice whose device lacks the other layers' files; no whole backbone's starts so."""

# Whatever is not named here counts: a field too many costs a cache miss, a field too few would be a wrong hit.
_IRRELEVANT = re.compile(
    r"^_|dropout|_pdrop$|layerdrop|_token_ids?$|^init|init(ializer)?_(range|factor|std)$|^output_|^summary_|^problem_type$"
    r"|^(architectures|transformers_version|dtype|torch_dtype|torchscript|id2label|label2id|num_labels|use_cache"
    r"|return_dict|task_specific_params|tie_word_embeddings|tie_encoder_decoder|tie_last_hidden_states"
    r"|scale_decoder_outputs|finetuning_task|classifier_activation|gradient_checkpointing|pretraining_tp|auto_map"
    r"|vocab_size|prefix|decoder_start|num_beams|max_length|min_length|no_repeat_ngram_size|length_penalty"
    r"|early_stopping|normalize_before|add_final_layer_norm|force_bos_token_to_be_generated|save_step"
    r"|n_ctx|chunk_size_feed_forward|name_or_path|keys_to_ignore_at_inference)$"
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


def combine(base: nn.Module, config: Any, digests: dict[str, str | None], keys: frozenset[str]) -> str:
    """The fingerprint of a backbone.

    Args:
        base: the bare model, for the dtypes of its computed buffers.
        config: its configuration.
        digests: of every weight that a tap depends on; None where the file is not on this device.
        keys: fields of ``config`` that count although they are ignored elsewhere.
    """
    fields = config.to_dict()
    facts = {
        "model_type": config.model_type,
        # sdpa and eager may differ in the last bit
        "attention": config._attn_implementation,
        "config": {k: v for k, v in fields.items() if v is not None and (k in keys or not _IRRELEVANT.search(k))},
        "buffers": {name: str(buffer.dtype) for name, buffer in base.named_buffers() if buffer.is_floating_point()},
        "weights": {name: digest for name, digest in digests.items() if digest is not None},
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    whole = all(digest is not None for digest in digests.values())
    return ("" if whole else PARTIAL) + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(state: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)} {state.hexdigest()}"

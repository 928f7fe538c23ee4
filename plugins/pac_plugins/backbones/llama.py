"""Llama-like decoders: Llama, Mistral, Qwen2, Qwen3, Gemma."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pac_core.contracts.backbone import DECODER, AttentionWeights, Boundary, LayerWeights
from pac_core.errors import BadInput
from pac_plugins.backbones.base import RunLayer, TransformersBackbone, cache_of
from pac_plugins.backbones.family import Family, Layout

FULL = "full_attention"
SLIDING = "sliding_attention"
BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


def _rebuild(base: Any, config: Any) -> None:
    base.rotary_emb = type(base.rotary_emb)(config=config)


def _rebuild_gemma(base: Any, config: Any) -> None:
    _rebuild(base, config)
    base.embed_tokens.embed_scale = torch.tensor(base.embed_tokens.scalar_embed_scale)


def _family(rebuild: Any) -> Family:
    return Family(
        streams={DECODER: Layout("layers", "num_hidden_layers", embeddings=("embed_tokens",), final=("norm",))},
        prefixes=("model", "transformer"),
        embedding="embed_tokens.weight",
        rebuild=rebuild,
    )


class LlamaBackbone(TransformersBackbone):
    """Llama: rotary positions, grouped-query attention, gated MLP, RMS norms before each block."""

    family = _family(_rebuild)

    def _facts(self, config: Any) -> dict[str, Any]:
        return {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "norm": "rms",
            "norm_eps": config.rms_norm_eps,
            "activation": config.hidden_act,
            "gated_mlp": True,
            "vocab_size": config.vocab_size,
            "max_tokens": config.max_position_embeddings,
        }

    def _refuse(self, config: Any, dtype: torch.dtype) -> None:
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope in BATCH_DEPENDENT_ROPE:
            raise BadInput(
                f"this {config.model_type} model has rope_type '{rope}': its activations depend on the longest row of "
                "the batch, so they cannot be cached; use a checkpoint with fixed rotary tables"
            )

    def _attention_kinds(self) -> list[str]:
        """For each layer of the whole model, which tokens it sees."""
        return [FULL] * self.config.num_hidden_layers

    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        return self._base.embed_tokens(input_ids)

    def _prepare(self, stream: str, first: int, last: int, boundary: Boundary, past: Any) -> RunLayer:
        hidden = boundary["hidden"]
        # rows without padding share their positions, and so one row of rotary tables
        positions = boundary["positions"][:1] if boundary["mask"].all() else boundary["positions"]
        kinds = self._attention_kinds()
        masks = self._masks(
            set(kinds[first:last]), boundary, positions, cache_of(past, *self._local(stream, first, last))
        )
        rotary = self._base.rotary_emb(hidden, position_ids=positions)

        def run_layer(index: int, layer: Any, hidden: Tensor) -> Tensor:
            return layer(
                hidden,
                attention_mask=masks[kinds[index]],
                position_embeddings=rotary,
                position_ids=positions,
                past_key_values=past,
                use_cache=past is not None,
            )

        return run_layer

    def _masks(self, kinds: set[str], boundary: Boundary, positions: Tensor, cache: Any) -> dict[str, Any]:
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        makers = {FULL: create_causal_mask, SLIDING: create_sliding_window_causal_mask}
        return {
            kind: makers[kind](
                config=self.config,
                inputs_embeds=boundary["hidden"],
                attention_mask=boundary["mask"],
                past_key_values=cache,
                position_ids=positions,
            )
            for kind in kinds
        }

    def _finish(self, stream: str, hidden: Tensor) -> Tensor:
        return self._base.norm(hidden)

    def _new_past(self) -> Any:
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        first, last = self._held_range(DECODER)
        cache = DynamicCache()
        cache.layers = [
            DynamicSlidingWindowLayer(sliding_window=self.config.sliding_window) if kind == SLIDING else DynamicLayer()
            for kind in self._attention_kinds()[first:last]
        ]
        return cache

    def _weights(self, stream: str, layer: Any) -> LayerWeights:
        own, mlp = layer.self_attn, layer.mlp
        query, key, value, output = own.q_proj, own.k_proj, own.v_proj, own.o_proj
        heads = self.config.num_attention_heads
        attention = AttentionWeights(query.weight, key.weight, value.weight, output.weight, heads)
        return LayerWeights(attention, None, mlp.up_proj.weight, mlp.gate_proj.weight, mlp.down_proj.weight)


class MistralBackbone(LlamaBackbone):
    """Mistral: one sliding window for all layers, or none."""

    def _attention_kinds(self) -> list[str]:
        kind = FULL if self.config.sliding_window is None else SLIDING
        return [kind] * self.config.num_hidden_layers


class QwenBackbone(LlamaBackbone):
    """Qwen2 and Qwen3: each layer has its own kind of attention."""

    def _attention_kinds(self) -> list[str]:
        return list(self.config.layer_types)


class GemmaBackbone(LlamaBackbone):
    """Gemma: embeddings are scaled by sqrt(d), norms multiply by 1 + weight; both live in its modules."""

    family = _family(_rebuild_gemma)

"""GPT-2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pac_core.contracts.backbone import DECODER, AttentionWeights, Boundary, LayerWeights
from pac_core.errors import BadInput
from pac_plugins.backbones.base import RunLayer, TransformersBackbone, cache_of
from pac_plugins.backbones.family import Family, Layout


class Gpt2Backbone(TransformersBackbone):
    """GPT-2: learned positions, fused and transposed projections, head tied to the embeddings."""

    family = Family(
        streams={DECODER: Layout("h", "n_layer", embeddings=("wte", "wpe"), final=("ln_f",))},
        prefixes=("transformer",),
        embedding="wte.weight",
    )

    def _facts(self, config: Any) -> dict[str, Any]:
        return {
            "hidden_size": config.n_embd,
            "intermediate_size": config.n_inner or 4 * config.n_embd,
            "norm": "layer",
            "norm_eps": config.layer_norm_epsilon,
            "activation": config.activation_function,
            "gated_mlp": False,
            "vocab_size": config.vocab_size,
            "max_tokens": config.n_positions,
        }

    def _refuse(self, config: Any, dtype: torch.dtype) -> None:
        if config.add_cross_attention:
            raise BadInput("this gpt2 model has cross attention (add_cross_attention); only decoders alone are served")

    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        return self._base.wte(input_ids) + self._base.wpe(positions)

    def _prepare(self, stream: str, first: int, last: int, boundary: Boundary, past: Any) -> RunLayer:
        from transformers.masking_utils import create_causal_mask

        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=boundary["hidden"],
            attention_mask=boundary["mask"],
            past_key_values=cache_of(past, *self._local(stream, first, last)),
            position_ids=boundary["positions"],
        )
        return lambda index, layer, hidden: layer(hidden, past, mask, use_cache=past is not None)

    def _finish(self, stream: str, hidden: Tensor) -> Tensor:
        return self._base.ln_f(hidden)

    def _weights(self, stream: str, layer: Any) -> LayerWeights:
        # Conv1D stores (in, out), and query, key and value side by side
        query, key, value = layer.attn.c_attn.weight.t().chunk(3)
        attention = AttentionWeights(query, key, value, layer.attn.c_proj.weight.t(), self.config.n_head)
        return LayerWeights(attention, None, layer.mlp.c_fc.weight.t(), None, layer.mlp.c_proj.weight.t())

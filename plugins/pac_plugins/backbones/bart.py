"""BART."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pac_core.contracts.backbone import DECODER, ENCODER, AttentionWeights, Boundary, LayerWeights
from pac_plugins.backbones.base import RunLayer, TransformersBackbone, cache_of
from pac_plugins.backbones.family import Family, Layout


def _layout(stream: str) -> Layout:
    embeddings = ("shared", f"{stream}.embed_positions", f"{stream}.layernorm_embedding")
    return Layout(f"{stream}.layers", f"{stream}_layers", embeddings)


class BartBackbone(TransformersBackbone):
    """BART: learned positions that start at 2, scaled embeddings, no final norm, a head with a bias."""

    family = Family(
        streams={ENCODER: _layout(ENCODER), DECODER: _layout(DECODER)},
        prefixes=("model",),
        embedding="shared.weight",
        tied=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    )

    def _facts(self, config: Any) -> dict[str, Any]:
        return {
            "hidden_size": config.d_model,
            "intermediate_size": config.encoder_ffn_dim,
            "norm": "layer",
            "norm_eps": 1e-5,
            "activation": config.activation_function,
            "gated_mlp": False,
            "vocab_size": config.vocab_size,
            "max_tokens": config.max_position_embeddings,
        }

    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        part = getattr(self._base, stream)
        # embed_positions adds its offset of 2, and an axis in front
        places = part.embed_positions(input_ids, position_ids=positions)[0]
        return part.layernorm_embedding(self._base.shared(input_ids) + places)

    def _prepare(self, stream: str, first: int, last: int, boundary: Boundary, past: Any) -> RunLayer:
        from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

        given = {"config": self.config, "inputs_embeds": boundary["hidden"]}
        if stream == ENCODER:
            mask = create_bidirectional_mask(**given, attention_mask=boundary["mask"])
            return lambda index, layer, hidden: layer(hidden, mask)
        encoder = boundary["encoder"]
        cache = cache_of(past, *self._local(stream, first, last))
        mask = create_causal_mask(**given, attention_mask=boundary["mask"], past_key_values=cache)
        cross = create_bidirectional_mask(
            **given, attention_mask=boundary["encoder_mask"], encoder_hidden_states=encoder
        )
        return lambda index, layer, hidden: layer(
            hidden, mask, encoder, encoder_attention_mask=cross, past_key_values=past, use_cache=past is not None
        )

    def _new_past(self) -> Any:
        from transformers import DynamicCache, EncoderDecoderCache

        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def _weights(self, stream: str, layer: Any) -> LayerWeights:
        cross = _attention(layer.encoder_attn) if stream == DECODER else None
        return LayerWeights(_attention(layer.self_attn), cross, layer.fc1.weight, None, layer.fc2.weight)


def _attention(module: Any) -> AttentionWeights:
    query, key, value, output = module.q_proj, module.k_proj, module.v_proj, module.out_proj
    return AttentionWeights(query.weight, key.weight, value.weight, output.weight, module.num_heads)

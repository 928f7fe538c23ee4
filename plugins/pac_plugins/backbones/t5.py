"""T5: the original, 1.1 (gated MLP) and FLAN-T5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pac_core.contracts.backbone import DECODER, ENCODER, AttentionWeights, Boundary, LayerWeights
from pac_core.errors import BadInput
from pac_plugins.backbones.base import RunLayer, TransformersBackbone, cache_of
from pac_plugins.backbones.family import Family, Layout

BIAS = "block.0.layer.0.SelfAttention"


def _layout(stream: str, count: str) -> Layout:
    return Layout(
        f"{stream}.block",
        count,
        embeddings=("shared",),
        final=(f"{stream}.final_layer_norm",),
        always=(f"{stream}.{BIAS}.relative_attention_bias.weight",),
    )


class T5Backbone(TransformersBackbone):
    """T5: relative positions as a bias that block 0 holds for all blocks, no other position embeddings."""

    family = Family(
        streams={ENCODER: _layout(ENCODER, "num_layers"), DECODER: _layout(DECODER, "num_decoder_layers")},
        prefixes=("transformer",),
        embedding="shared.weight",
        tied=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        kept=(f"{ENCODER}.{BIAS}", f"{DECODER}.{BIAS}"),
    )

    def _facts(self, config: Any) -> dict[str, Any]:
        return {
            "hidden_size": config.d_model,
            "intermediate_size": config.d_ff,
            "norm": "rms",
            "norm_eps": config.layer_norm_epsilon,
            "activation": config.dense_act_fn,
            "gated_mlp": config.is_gated_act,
            "vocab_size": config.vocab_size,
            "max_tokens": None,
        }

    def _refuse(self, config: Any, dtype: torch.dtype) -> None:
        # transformers keeps some float16 T5 weights in float32, so the hidden states change their dtype on the way
        if dtype == torch.float16:
            raise BadInput("T5 overflows in float16; load it with dtype bfloat16 or float32")

    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        return self._base.shared(input_ids)

    def _prepare(self, stream: str, first: int, last: int, boundary: Boundary, past: Any) -> RunLayer:
        local = self._local(stream, first, last)
        mask = self._mask(stream, boundary, cache_of(past, *local))
        bias = self._position_bias(stream, boundary["hidden"], 0 if past is None else past.get_seq_length(local[0]))
        encoder, cross_mask = boundary.get("encoder"), self._cross_mask(stream, boundary)
        cross_bias = None

        def run_layer(index: int, layer: Any, hidden: Tensor) -> Tensor:
            nonlocal cross_bias
            hidden, _, cross = layer(hidden, mask, bias, encoder, cross_mask, cross_bias, past_key_values=past)
            cross_bias = cross if stream == DECODER else None
            return hidden

        return run_layer

    def _mask(self, stream: str, boundary: Boundary, cache: Any) -> Any:
        from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

        config = getattr(self._base, stream).config
        arguments = {"config": config, "inputs_embeds": boundary["hidden"], "attention_mask": boundary["mask"]}
        if stream == ENCODER:
            return create_bidirectional_mask(**arguments)
        return create_causal_mask(**arguments, past_key_values=cache)

    def _cross_mask(self, stream: str, boundary: Boundary) -> Any:
        from transformers.masking_utils import create_bidirectional_mask

        if stream == ENCODER:
            return None
        return create_bidirectional_mask(
            config=self._base.decoder.config,
            inputs_embeds=boundary["hidden"],
            attention_mask=boundary["encoder_mask"],
            encoder_hidden_states=boundary["encoder"],
        )

    def _position_bias(self, stream: str, hidden: Tensor, seen: int) -> Tensor:
        tokens = hidden.shape[1]
        block = self._kept[f"{stream}.{BIAS}"]
        return block.compute_bias(tokens, seen + tokens, device=hidden.device, past_seen_tokens=seen)

    def _finish(self, stream: str, hidden: Tensor) -> Tensor:
        return getattr(self._base, stream).final_layer_norm(hidden)

    def _scale_logits(self, hidden: Tensor) -> Tensor:
        scaled = getattr(self.config, "scale_decoder_outputs", self.config.tie_word_embeddings)
        return hidden * (self.config.d_model**-0.5) if scaled else hidden

    def _new_past(self) -> Any:
        from transformers import DynamicCache, EncoderDecoderCache

        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def _weights(self, stream: str, layer: Any) -> LayerWeights:
        mlp = layer.layer[-1].DenseReluDense
        up, gate = (mlp.wi_1.weight, mlp.wi_0.weight) if self.info.gated_mlp else (mlp.wi.weight, None)
        cross = _attention(layer.layer[1].EncDecAttention) if stream == DECODER else None
        return LayerWeights(_attention(layer.layer[0].SelfAttention), cross, up, gate, mlp.wo.weight)


def _attention(module: Any) -> AttentionWeights:
    return AttentionWeights(module.q.weight, module.k.weight, module.v.weight, module.o.weight, module.n_heads)

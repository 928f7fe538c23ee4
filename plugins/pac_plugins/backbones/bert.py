"""BERT-like encoders: BERT (and MiniLM), RoBERTa, XLM-RoBERTa, ELECTRA, DistilBERT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pac_core.contracts.backbone import ENCODER, AttentionWeights, Boundary, LayerWeights
from pac_core.errors import BadInput
from pac_plugins.backbones.base import RunLayer, TransformersBackbone
from pac_plugins.backbones.family import Family, Layout

WORDS = "embeddings.word_embeddings.weight"


def _rebuild(base: Any, config: Any) -> None:
    embeddings = base.embeddings
    positions = torch.arange(config.max_position_embeddings).expand((1, -1))
    embeddings.position_ids = positions
    if hasattr(embeddings, "token_type_ids"):
        embeddings.token_type_ids = torch.zeros(positions.size(), dtype=torch.long)


class BertBackbone(TransformersBackbone):
    """BERT: absolute positions, token types, normalisation after each block."""

    family = Family(
        streams={ENCODER: Layout("encoder.layer", "num_hidden_layers", embeddings=("embeddings",))},
        prefixes=("bert",),
        embedding=WORDS,
        rebuild=_rebuild,
        head=False,
    )

    def _facts(self, config: Any) -> dict[str, Any]:
        return {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "norm": "layer",
            "norm_eps": config.layer_norm_eps,
            "activation": config.hidden_act,
            "gated_mlp": False,
            "vocab_size": config.vocab_size,
            "max_tokens": config.max_position_embeddings,
        }

    def _refuse(self, config: Any, dtype: torch.dtype) -> None:
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise BadInput(
                f"this {config.model_type} model is set up as a decoder (is_decoder); only encoders are served"
            )

    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        return self._base.embeddings(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=positions)

    def _prepare(self, stream: str, first: int, last: int, boundary: Boundary, past: Any) -> RunLayer:
        from transformers.masking_utils import create_bidirectional_mask

        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=boundary["hidden"], attention_mask=boundary["mask"]
        )
        return lambda index, layer, hidden: layer(hidden, mask)

    def _weights(self, stream: str, layer: Any) -> LayerWeights:
        own = layer.attention.self
        attention = AttentionWeights(
            own.query.weight,
            own.key.weight,
            own.value.weight,
            layer.attention.output.dense.weight,
            self.config.num_attention_heads,
        )
        return LayerWeights(attention, None, layer.intermediate.dense.weight, None, layer.output.dense.weight)


class RobertaBackbone(BertBackbone):
    """RoBERTa: positions count from the padding id + 1."""

    family = Family(
        streams=BertBackbone.family.streams,
        prefixes=("roberta",),
        embedding=WORDS,
        rebuild=_rebuild,
        head=False,
        config_keys=frozenset({"pad_token_id"}),
    )

    def _facts(self, config: Any) -> dict[str, Any]:
        tokens = config.max_position_embeddings - config.pad_token_id - 1
        return {**super()._facts(config), "max_tokens": tokens}

    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        # RoBERTa finds the positions from where the padding id is, also among real tokens
        padded = input_ids.masked_fill(~mask, self.config.pad_token_id)
        return self._base.embeddings(input_ids=padded, token_type_ids=token_type_ids)


class ElectraBackbone(BertBackbone):
    """ELECTRA: the embeddings may be narrower than the layers."""

    family = Family(
        streams={
            ENCODER: Layout("encoder.layer", "num_hidden_layers", embeddings=("embeddings", "embeddings_project"))
        },
        prefixes=("electra",),
        embedding=WORDS,
        rebuild=_rebuild,
        head=False,
    )

    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        hidden = super()._embed(stream, input_ids, positions, mask, token_type_ids)
        project = getattr(self._base, "embeddings_project", None)
        return hidden if project is None else project(hidden)


class DistilBertBackbone(BertBackbone):
    """DistilBERT: no token types."""

    family = Family(
        streams={ENCODER: Layout("transformer.layer", "n_layers", embeddings=("embeddings",))},
        prefixes=("distilbert",),
        embedding=WORDS,
        rebuild=_rebuild,
        head=False,
    )

    def _facts(self, config: Any) -> dict[str, Any]:
        return {
            "hidden_size": config.dim,
            "intermediate_size": config.hidden_dim,
            "norm": "layer",
            "norm_eps": 1e-12,
            "activation": config.activation,
            "gated_mlp": False,
            "vocab_size": config.vocab_size,
            "max_tokens": config.max_position_embeddings,
        }

    def _embed(
        self, stream: str, input_ids: Tensor, positions: Tensor, mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        return self._base.embeddings(input_ids, position_ids=positions)

    def _weights(self, stream: str, layer: Any) -> LayerWeights:
        own = layer.attention
        query, key, value, output = own.q_lin.weight, own.k_lin.weight, own.v_lin.weight, own.out_lin.weight
        attention = AttentionWeights(query, key, value, output, self.config.n_heads)
        return LayerWeights(attention, None, layer.ffn.lin1.weight, None, layer.ffn.lin2.weight)

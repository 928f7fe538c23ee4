"""Every bundled family passes the public conformance suite."""

from typing import Any, ClassVar

import transformers as hf

from pac_core.testing.backbone import BackboneSuite

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "decoder_start_token_id": 0}


class TestBert(BackboneSuite):
    token_types = True

    def make_model(self) -> Any:
        return hf.BertForSequenceClassification(hf.BertConfig(**SMALL))


class TestRoberta(BackboneSuite):
    left_positions = False

    def make_model(self) -> Any:
        return hf.RobertaModel(hf.RobertaConfig(**SMALL))


class TestXlmRoberta(BackboneSuite):
    left_positions = False

    def make_model(self) -> Any:
        return hf.XLMRobertaForSequenceClassification(hf.XLMRobertaConfig(**SMALL))


class TestElectra(BackboneSuite):
    token_types = True

    def make_model(self) -> Any:
        return hf.ElectraModel(hf.ElectraConfig(**SMALL, embedding_size=16))


class TestDistilBert(BackboneSuite):
    def make_model(self) -> Any:
        config = hf.DistilBertConfig(
            vocab_size=64, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=40
        )
        return hf.DistilBertForSequenceClassification(config)


class TestT5(BackboneSuite):
    left_positions = False

    def make_model(self) -> Any:
        return hf.T5ForConditionalGeneration(hf.T5Config(**T5, num_layers=3, num_decoder_layers=4))


class TestT5GatedUntied(BackboneSuite):
    left_positions = False

    def make_model(self) -> Any:
        config = hf.T5Config(**T5, num_layers=3, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        model = hf.T5ForConditionalGeneration(config)
        model.lm_head.weight = hf.AutoModel.from_config(config).shared.weight
        return model


class TestBart(BackboneSuite):
    padding_sides: ClassVar[tuple[str, ...]] = ("right",)

    def make_model(self) -> Any:
        config = hf.BartConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=3,
            decoder_layers=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=40,
            scale_embedding=True,
        )
        model = hf.BartForConditionalGeneration(config)
        model.final_logits_bias.normal_()
        return model


class TestGpt2(BackboneSuite):
    def make_model(self) -> Any:
        config = hf.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=40, scale_attn_by_inverse_layer_idx=True
        )
        return hf.GPT2LMHeadModel(config)


class TestLlama(BackboneSuite):
    def make_model(self) -> Any:
        return hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED))


class TestLlamaTied(BackboneSuite):
    def make_model(self) -> Any:
        return hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=True, attention_bias=True))


class TestMistral(BackboneSuite):
    def make_model(self) -> Any:
        return hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=4))


class TestQwen2(BackboneSuite):
    def make_model(self) -> Any:
        return hf.Qwen2ForCausalLM(
            hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1)
        )


class TestQwen3(BackboneSuite):
    def make_model(self) -> Any:
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        config = hf.Qwen3Config(
            **GROUPED,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=4,
            layer_types=kinds,
            tie_word_embeddings=True,
        )
        return hf.Qwen3ForCausalLM(config)


class TestGemma(BackboneSuite):
    def make_model(self) -> Any:
        return hf.GemmaForCausalLM(hf.GemmaConfig(**GROUPED, head_dim=8))

"""Where a slice of a transformers model silently goes wrong, family by family."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from pac_core.backbones import load_backbone
from pac_core.contracts.backbone import DECODER, ENCODER, Backbone, BackboneSource
from pac_core.errors import BadInput, UnknownPlugin
from pac_core.registry import Registry
from pac_core.testing.backbone_reference import backbone_taps, differing_taps, make_batch, model_taps, whole

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "decoder_start_token_id": 0}
BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}


def load(source: Any, **fields: Any) -> Backbone:
    given = {"path": source} if isinstance(source, Path) else {"model": source}
    return load_backbone(BackboneSource(**given, **fields), Registry())


@pytest.fixture
def t5() -> Any:
    torch.manual_seed(1)
    return hf.T5ForConditionalGeneration(hf.T5Config(**T5, num_layers=3)).eval()


def test_a_slices_layers_count_from_zero_for_the_cache(tmp_path: Path) -> None:
    hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    part = load(tmp_path, layers={DECODER: (2, 4)})
    assert [layer.self_attn.layer_idx for layer in part._layers[DECODER]] == [0, 1]
    past = part.new_past()
    hidden = torch.randn(1, 3, 32)
    mask = torch.ones(1, 3, dtype=torch.bool)
    list(part.run(DECODER, 2, 4, {"hidden": hidden, "mask": mask, "positions": torch.arange(3)[None]}, past=past))
    assert past.get_seq_length() == 3


def test_a_t5_slice_without_block_0_reads_a_copy_of_its_position_bias(t5: Any, tmp_path: Path) -> None:
    t5.save_pretrained(tmp_path)
    part = load(tmp_path, layers={ENCODER: (1, 3)})
    bias = part._kept["encoder.block.0.layer.0.SelfAttention"]
    assert torch.equal(
        bias.relative_attention_bias.weight, t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    )
    assert bias.q.weight is None


def test_the_t5_position_bias_reaches_layers_of_a_later_slice(t5: Any) -> None:
    backbone = load(t5)
    batch = make_batch(t5, [6, 6], [3, 3], "right", 0)
    boundary = backbone.embed(ENCODER, batch.ids, batch.mask)
    before = [b["hidden"] for b in backbone.run(ENCODER, 2, 3, boundary)]
    t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data.mul_(30)
    after = [b["hidden"] for b in backbone.run(ENCODER, 2, 3, boundary)]
    assert not torch.allclose(before[0], after[0], atol=1e-3)


def test_qwen3_sliding_layers_do_not_see_the_far_past() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = hf.Qwen3Config(
        **SMALL, num_key_value_heads=2, head_dim=8, use_sliding_window=True, sliding_window=3, layer_types=kinds
    )
    backbone = load(hf.Qwen3ForCausalLM(config))
    mask = torch.ones(1, 10, dtype=torch.bool)
    boundary = backbone.embed(DECODER, torch.arange(10)[None] + 5, mask)
    changed = {**boundary, "hidden": boundary["hidden"].clone()}
    changed["hidden"][:, 0] += 1
    for layer, sees in [(0, True), (1, False), (2, True), (3, False)]:
        one, two = (next(backbone.run(DECODER, layer, layer + 1, b))["hidden"][0, -1] for b in (boundary, changed))
        assert torch.equal(one, two) != sees


def test_rotary_tables_of_a_bfloat16_slice_are_real_and_float32(tmp_path: Path) -> None:
    hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    part = load(tmp_path, layers={DECODER: (1, 3)}, dtype=torch.bfloat16)
    assert part._base.rotary_emb.inv_freq.dtype == torch.float32
    tensors = [*part._base.parameters(), *part._base.buffers()]
    assert not [t for t in tensors if t.is_meta]


def test_the_last_tap_is_after_the_final_norm_and_the_one_before_is_not() -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)).eval()
    backbone = load(model)
    seen = {}
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *a, i=index: seen.__setitem__(i, a[2]))
    batch = make_batch(model, [6], [3], "right", 0)
    taps = backbone_taps([backbone], [whole(backbone)], batch)[DECODER]
    assert torch.equal(taps[4], model.model.norm(seen[3]))
    assert torch.equal(taps[3], seen[2])


def test_a_gpt2_slice_keeps_the_scale_of_its_place_in_the_whole_model(tmp_path: Path) -> None:
    config = hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, scale_attn_by_inverse_layer_idx=True)
    hf.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    part = load(tmp_path, layers={DECODER: (2, 4)})
    assert [block.attn.scaling for block in part._layers[DECODER]] == [8**-0.5 / 3, 8**-0.5 / 4]


def test_gpt2_layer_weights_are_the_unfused_projections() -> None:
    model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).eval()
    weights = load(model).layer_weights(DECODER, 1)
    x, block = torch.randn(5, 32), model.transformer.h[1]
    parts = torch.cat([x @ w.T for w in (weights.attention.query, weights.attention.key, weights.attention.value)], -1)
    torch.testing.assert_close(parts + block.attn.c_attn.bias, block.attn.c_attn(x))
    torch.testing.assert_close(x @ weights.up.T + block.mlp.c_fc.bias, block.mlp.c_fc(x))


def test_gated_t5_layer_weights_tell_the_gate_from_the_up_projection() -> None:
    model = hf.T5ForConditionalGeneration(hf.T5Config(**T5, num_layers=2, feed_forward_proj="gated-gelu")).eval()
    backbone = load(model)
    weights, x = backbone.layer_weights(ENCODER, 1), torch.randn(5, 32)
    act = hf.activations.ACT2FN[backbone.info.activation]
    expected = model.encoder.block[1].layer[-1].DenseReluDense(x)
    torch.testing.assert_close((act(x @ weights.gate.T) * (x @ weights.up.T)) @ weights.down.T, expected)


@pytest.mark.parametrize("scaled", [True, False])
def test_t5_scales_the_hidden_states_before_a_tied_head_only(scaled: bool) -> None:
    config = hf.T5Config(**T5, num_layers=2, **({} if scaled else {"tie_word_embeddings": False}))
    backbone = load(hf.T5ForConditionalGeneration(config))
    hidden = torch.randn(2, 32)
    plain = hidden @ backbone._head[0].weight.T
    torch.testing.assert_close(backbone.head(hidden), plain * 32**-0.5 if scaled else plain)


@pytest.mark.parametrize("model_class", [hf.T5ForConditionalGeneration, hf.BartForConditionalGeneration])
def test_taps_with_labels_are_those_of_the_shifted_decoder_ids(model_class: Any) -> None:
    config = hf.T5Config(**T5, num_layers=2) if model_class is hf.T5ForConditionalGeneration else hf.BartConfig(**BART)
    model = model_class(config).eval()
    backbone = load(model)
    batch = make_batch(model, [5, 8], [6, 6], "right", 0)
    labels = torch.cat([batch.decoder_ids[:, 1:], torch.full((2, 1), 9)], dim=1)
    start = torch.full((2, 1), backbone.decoder_start())
    assert torch.equal(batch.decoder_ids, torch.cat([start, labels[:, :-1]], dim=1))
    output = model(batch.ids, attention_mask=batch.mask.long(), labels=labels, output_hidden_states=True)
    reference = {ENCODER: list(output.encoder_hidden_states), DECODER: list(output.decoder_hidden_states)}
    assert differing_taps(backbone_taps([backbone], [whole(backbone)], batch), reference, batch) == []


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "gpt2", "llama", "qwen3"])
def test_eager_attention_gives_the_models_bits_too_and_another_fingerprint(name: str) -> None:
    config = {
        "bert": hf.BertConfig(**SMALL),
        "t5": hf.T5Config(**T5, num_layers=2),
        "bart": hf.BartConfig(**BART),
        "gpt2": hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, reorder_and_upcast_attn=True),
        "llama": hf.LlamaConfig(**SMALL, num_key_value_heads=2),
        "qwen3": hf.Qwen3Config(
            **SMALL,
            num_key_value_heads=2,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=3,
            layer_types=["sliding_attention"] * 4,
        ),
    }[name]
    kind = hf.AutoModelForSequenceClassification if name == "bert" else hf.AutoModelForCausalLM
    kind = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else kind
    torch.manual_seed(0)
    eager = kind.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    sdpa = kind.from_config(copy.deepcopy(config), attn_implementation="sdpa").eval()
    sdpa.load_state_dict(eager.state_dict())
    backbone = load(eager)
    batch = make_batch(eager, [5, 9], [4, 7], "right", 0)
    # with a cache, transformers' eager attention reads keys in another memory layout, which changes the last bit
    reference = model_taps(
        eager, backbone.info.streams[0].name, batch, **({} if name == "bert" else {"use_cache": False})
    )
    assert differing_taps(backbone_taps([backbone], [whole(backbone)], batch), reference, batch) == []
    assert backbone.info.fingerprint != load(sdpa).info.fingerprint


def test_a_bare_model_in_memory_has_a_head_if_its_embeddings_are_tied() -> None:
    hidden = torch.randn(2, 32)
    tied = hf.LlamaModel(hf.LlamaConfig(**SMALL, tie_word_embeddings=True))
    assert torch.equal(load(tied).head(hidden), hidden @ tied.embed_tokens.weight.T)
    with pytest.raises(BadInput, match="no language-model head"):
        load(hf.LlamaModel(hf.LlamaConfig(**SMALL))).head(hidden)


def test_the_head_of_a_model_in_memory_moves_with_the_backbone() -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    backbone = load(model).to("meta")
    assert backbone.head(torch.zeros(2, 32, device="meta")).is_meta
    assert model.lm_head.weight.is_meta


def test_heads_are_not_part_of_the_fingerprint() -> None:
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**SMALL))
    before = load(model).info.fingerprint
    model.classifier.weight.data.add_(1)
    model.bert.pooler.dense.weight.data.add_(1)
    assert load(model).info.fingerprint == load(model.bert).info.fingerprint == before


@pytest.mark.parametrize(
    ("field", "value"), [("rms_norm_eps", 1e-3), ("rope_parameters", {"rope_type": "default", "rope_theta": 5.0})]
)
def test_settings_that_change_taps_change_the_fingerprint(field: str, value: Any) -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    other = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **{field: value}))
    other.load_state_dict(model.state_dict())
    assert load(model).info.fingerprint != load(other).info.fingerprint
    assert load(model.bfloat16()).info.fingerprint != load(model.float()).info.fingerprint


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: hf.BertLMHeadModel(hf.BertConfig(**SMALL, is_decoder=True)), "is_decoder"),
        (lambda: hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=1, n_head=4, add_cross_attention=True)), "cross att"),
        (lambda: hf.T5Model(hf.T5Config(**T5, num_layers=1)).half(), "float16"),
        (lambda: hf.T5EncoderModel(hf.T5Config(**T5, num_layers=1)), "T5EncoderModel lacks a part"),
        (lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**SMALL, num_local_experts=2)), "mixture of experts"),
        (
            lambda: hf.LlamaModel(
                hf.LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
            ),
            "longest row",
        ),
        (lambda: torch.nn.Linear(2, 2), "not a transformers model"),
    ],
)
def test_models_that_cannot_be_served_are_refused_with_a_reason(model: Any, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        load(model())


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"bits": 4}}')
    with pytest.raises(BadInput, match="already quantised"):
        load(tmp_path)


def test_an_unknown_architecture_gets_the_known_ones_listed() -> None:
    model = hf.OPTModel(
        hf.OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4)
    )
    with pytest.raises(UnknownPlugin, match=r"'opt' is not known.*bart, bert.*llama, mistral.*t5"):
        load(model)


def test_a_source_is_either_a_path_or_a_model() -> None:
    model = hf.BertModel(hf.BertConfig(**SMALL))
    for source in (BackboneSource(), BackboneSource("somewhere", model=model)):
        with pytest.raises(BadInput, match="exactly one"):
            load_backbone(source, Registry())
    with pytest.raises(BadInput, match="only be chosen"):
        load(model, layers={ENCODER: (0, 1)})
    with pytest.raises(BadInput, match=r"float32, not torch\.bfloat16"):
        load(model, dtype=torch.bfloat16)


def test_registering_the_families_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, pac_plugins.backbones; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

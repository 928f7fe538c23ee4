"""From samples to tokens: segments, targets, boundaries, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pac_core.contracts.backbone import BackboneInfo, Stream
from pac_core.data import Message, Sample
from pac_core.encoding import Encoder
from pac_core.errors import BadInput
from pac_core.examples import IGNORE, Task

ENCODER = Stream("encoder", 2, causal=False)
DECODER = Stream("decoder", 2, causal=True)
CAUSAL, SEQ2SEQ, PLAIN = Task("causal-lm"), Task("seq2seq"), Task("classification", ("0", "1"))
PAIR, APART = Task("regression", pair=True), Task("regression", pair=True, apart=True)
WORDS = list("abcdefgh")
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
quick = settings(max_examples=80, deadline=None)
some_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def info(*streams: Stream, tokens: int | None = 16, vocabulary: int = 1000) -> BackboneInfo:
    return BackboneInfo("m", 8, 16, streams, "layer", 1e-5, "gelu", False, vocabulary, tokens, torch.float32, "f")


BERT, GPT, T5 = info(ENCODER), info(DECODER), info(ENCODER, DECODER)


def words() -> PreTrainedTokenizerFast:
    """One token a word, [CLS] and [SEP] like BERT."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_bpe(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE like GPT-2's, or with <bos> in front like Llama 3's."""
    special = ["<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=alphabet, vocab_size=400, show_progress=False
    )
    inner.train_from_iterator(["the cat sat on the mat and the dog saw it\n\n"] * 5, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", bos_token="<bos>")
    made.chat_template = CHAT
    return made


def metaspace() -> PreTrainedTokenizerFast:
    """Like SentencePiece in Llama 2: a space is put before every text."""
    letters = ["<unk>", "<s>", "</s>", "▁", "\n", *"abcdefgh"]
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


WORD, BPE, BOS, META = words(), byte_bpe(), byte_bpe(bos=True), metaspace()


def ask(prompt: str, completion: str | None = None) -> Sample:
    return Sample("f:1", prompt=prompt, completion=completion)


def ids_of(example, segment: int = -1) -> list[int]:
    return example.segments[segment].input_ids.tolist()


# --- classification and regression


def test_a_text_is_one_segment_with_types():
    [example] = Encoder(WORD, PLAIN, BERT)([Sample("f:7", text="a b", label=1)])
    [segment] = example.segments
    assert (segment.stream, ids_of(example), example.target, example.source) == ("encoder", [2, 4, 5, 3], 1, "f:7")
    assert (segment.input_ids.dtype, segment.token_type_ids.dtype) == (np.int32, np.int8)


def test_a_joint_pair_is_one_segment_and_a_pair_apart_two():
    sample = Sample("f:1", text="a b", text_pair="c", label=2.5)
    [joint] = Encoder(WORD, PAIR, BERT)([sample])
    assert (ids_of(joint), joint.target) == ([2, 4, 5, 3, 6, 3], 2.5)
    assert joint.segments[0].token_type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    [apart] = Encoder(WORD, APART, BERT)([sample])
    assert [ids_of(apart, i) for i in range(2)] == [[2, 4, 5, 3], [2, 6, 3]]


def test_decoders_get_no_types_and_a_newline_between_the_texts_of_a_pair():
    [example] = Encoder(BPE, PAIR, info(DECODER, tokens=None))([Sample("f:1", text="the", text_pair="cat", label=1)])
    assert (example.segments[0].stream, example.segments[0].token_type_ids) == ("decoder", None)
    assert BPE.decode(ids_of(example)) == "the\ncat"


def test_classifying_encoder_decoders_use_the_encoder_only():
    [example] = Encoder(WORD, PLAIN, T5)([Sample("f:1", text="a", label=0)])
    assert [s.stream for s in example.segments] == ["encoder"]
    assert example.segments[0].token_type_ids is None


# --- causal language models


@quick
@given(some_text, some_text, st.sampled_from([BPE, BOS]))
def test_the_prompt_is_a_prefix_and_the_completion_is_learnt(tokenizer_text, completion, tokenizer):
    prompt, model = tokenizer_text, info(DECODER, tokens=None)
    encoder = Encoder(tokenizer, CAUSAL, model)
    [example], [start] = encoder([ask(prompt, completion)]), encoder.prompts([ask(prompt)])
    ids, target, first = ids_of(example), example.target, len(start)
    assert ids[:first] == ids_of(start)
    assert start.target is None
    assert (target[: first - 1] == IGNORE).all()
    assert target.dtype == np.int64
    learnt = target[first - 1 :].tolist()
    assert learnt[:-1] == ids[first:]  # shifted: position t says what comes at t + 1
    assert learnt[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + completion
    assert (ids[0] == tokenizer.bos_token_id) == (tokenizer is BOS)


def test_no_space_is_put_between_prompt_and_completion():
    [example] = Encoder(META, CAUSAL, GPT)([ask("ab", "cd")])
    assert META.convert_ids_to_tokens(ids_of(example)) == ["<s>", "▁", "a", "b", "c", "d"]
    assert example.target.tolist() == [IGNORE] * 3 + META.convert_tokens_to_ids(["c", "d", "</s>"])


@quick
@given(some_text)
def test_plain_text_is_learnt_from_the_first_token(text):
    [example] = Encoder(BPE, CAUSAL, info(DECODER, tokens=None))([Sample("f:1", text=text)])
    ids = ids_of(example)
    assert example.target.tolist() == [*ids[1:], BPE.eos_token_id]


def chat(*contents: str, first: str = "user") -> Sample:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return Sample("f:1", messages=tuple(Message(roles[i % 2], text) for i, text in enumerate(contents)))


def test_only_assistant_turns_of_a_chat_are_learnt():
    [example] = Encoder(BPE, CAUSAL, info(DECODER, tokens=None))([chat("the cat", "sat", "on", "the mat")])
    learnt = [token for token in example.target.tolist() if token != IGNORE]
    assert BPE.decode(learnt) == "sat<eos>the mat<eos>"
    whole = BPE.decode([*ids_of(example), learnt[-1]])
    assert whole == "<|user|>the cat<eos><|assistant|>sat<eos><|user|>on<eos><|assistant|>the mat<eos>"


def test_prompts_of_a_chat_are_prefixes_of_its_training_example():
    encoder = Encoder(BPE, CAUSAL, info(DECODER, tokens=None))
    sample = chat("the cat", "sat", "on", "the mat")
    [example], [start] = encoder([sample]), encoder.prompts([sample])
    assert ids_of(example)[: len(start)] == ids_of(start)
    assert BPE.decode(ids_of(start)).endswith("on<eos><|assistant|>")


@pytest.mark.parametrize(
    ("template", "sample", "part"),
    [
        (None, chat("a", "b"), "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", chat("a", "b"), "refuses this chat (roles must alternate)"),
        ("{{ messages | length }}{{ messages[0].content }}", chat("a", "b"), "renders earlier turns differently"),
        (CHAT, chat("a", "b", "c"), "the chat ends with 'user'"),
    ],
)
def test_chats_that_cannot_be_learnt(template, sample, part):
    tokenizer = byte_bpe()
    tokenizer.chat_template = template
    with pytest.raises(BadInput) as caught:
        Encoder(tokenizer, CAUSAL, info(DECODER, tokens=None))([sample])
    assert str(caught.value).startswith("f:1: ")
    assert part in str(caught.value)


def test_a_template_without_end_token_gets_one():
    tokenizer = byte_bpe()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    [example] = Encoder(tokenizer, CAUSAL, info(DECODER, tokens=None))([chat("the cat", "sat")])
    assert example.target[-1] == tokenizer.eos_token_id


# --- seq2seq


def test_seq2seq_targets_are_shifted_right():
    [example] = Encoder(WORD, SEQ2SEQ, T5, decoder_start=0)([ask("a b", "c d")])
    source, target = example.segments
    assert (source.stream, target.stream, target.context) == ("encoder", "decoder", source)
    assert ids_of(example, 0) == [2, 4, 5, 3]
    assert example.target.tolist() == [2, 6, 7, 3]
    assert ids_of(example) == [0, 2, 6, 7]


@quick
@given(st.lists(some_text, min_size=1, max_size=4))
def test_seq2seq_answers_end_and_start(answers):
    encoder = Encoder(BPE, SEQ2SEQ, info(ENCODER, DECODER, tokens=None), decoder_start=1)
    for answer, example in zip(answers, encoder([ask("x", answer) for answer in answers])):
        assert example.target[-1] == BPE.eos_token_id
        assert ids_of(example) == [1, *example.target[:-1]]
        assert BPE.decode(example.target, skip_special_tokens=True) == answer


def test_seq2seq_prompts_are_the_encoder_segment():
    [example] = Encoder(WORD, SEQ2SEQ, T5, decoder_start=0).prompts([ask("a b")])
    assert (len(example.segments), ids_of(example), example.target) == (1, [2, 4, 5, 3], None)


# --- limits


def refused(encoder: Encoder, sample: Sample, *parts: str) -> None:
    with pytest.raises(BadInput) as caught:
        encoder([sample])
    for part in ("f:1: ", *parts):
        assert part in str(caught.value)


def test_longer_than_the_model_takes_is_refused():
    long = "a " * 20
    refused(Encoder(WORD, PLAIN, BERT), Sample("f:1", text=long, label=1), "22 tokens", "the 16", "--max-length 16")
    refused(Encoder(WORD, CAUSAL, GPT), ask("a", long), "22 tokens are more")  # the last of 23 is not fed
    refused(Encoder(WORD, SEQ2SEQ, T5, decoder_start=0), ask("a", long), "in the completion, 22 tokens")
    assert len(Encoder(WORD, PLAIN, info(ENCODER, tokens=None))([Sample("f:1", text=long, label=1)])[0]) == 22


def test_a_given_max_length_cuts_and_counts():
    encoder = Encoder(WORD, PAIR, BERT, max_length=8)
    samples = [Sample("f:1", text="a " * 20, text_pair="b c", label=1), Sample("f:2", text="a", text_pair="b", label=1)]
    long, short = encoder(samples)
    assert ids_of(long) == [2, 4, 4, 4, 3, 5, 6, 3]  # the longer text is cut first
    assert (len(short), encoder.truncated) == (5, 1)
    encoder(samples[1:])
    assert encoder.truncated == 0


def test_cutting_a_completion_keeps_the_targets_and_never_takes_all():
    encoder = Encoder(WORD, CAUSAL, GPT, max_length=5)
    [example] = encoder([ask("a b", "c d e f g")])
    assert (ids_of(example), example.target.tolist()) == ([2, 4, 5, 6, 7], [IGNORE, IGNORE, 6, 7, 8])
    refused(encoder, ask("a b c d e f", "g"), "nothing of the completion", "raise --max-length beyond 7")


def test_long_prompts_keep_their_end():
    encoder = Encoder(WORD, CAUSAL, GPT, max_length=4)
    [example] = encoder.prompts([ask("a b c d e f")])
    assert (ids_of(example), encoder.truncated) == ([2, 7, 8, 9], 1)


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ({"max_length": 17}, "max length 17 is more than the 16 tokens"),
        ({"max_length": 2}, "max length 2 leaves no room"),
        ({"task": SEQ2SEQ}, "decoder_start_token_id"),
    ],
)
def test_settings_that_do_not_fit(how, part):
    with pytest.raises(BadInput, match=part):
        Encoder(WORD, how.pop("task", PLAIN), T5, **how)


def test_samples_that_do_not_fit_the_task():
    refused(Encoder(WORD, PLAIN, BERT), ask("a", "b"), "classification needs a text; this sample has prompt")
    refused(Encoder(WORD, PLAIN, BERT), Sample("f:1", text="a", text_pair="b", label=1), "one text in each sample")
    refused(Encoder(WORD, PLAIN, BERT), Sample("f:1", text="a", label="2"), "the label '2' does not occur")
    refused(Encoder(WORD, SEQ2SEQ, T5, decoder_start=0), Sample("f:1", text="a"), "needs prompt and completion")
    refused(Encoder(WORD, PLAIN, info(ENCODER, vocabulary=5)), Sample("f:1", text="c", label=1), "another model")

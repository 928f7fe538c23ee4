from __future__ import annotations

from collections import Counter

from pac_core.data import infer_task
from pac_core.demo_data import eval_samples, phrases, train_samples
from pac_core.demo_phrases import EVAL_FRAMES, EVAL_PHRASES, OPPOSITES, SLOTS, TRAIN_FRAMES, TRAIN_PHRASES


def test_sizes_and_balance():
    for samples, least, each in ((train_samples(), 2000, 90), (eval_samples(), 500, 20)):
        assert len(samples) >= least
        assert set(Counter(sample.label for sample in samples).values()) == {each}
    task = infer_task(train_samples())
    assert (task.kind, len(task.labels)) == ("classification", 27)
    assert task == infer_task(eval_samples())


def test_a_seed_gives_the_same_samples():
    assert train_samples(3) == train_samples(3)
    assert train_samples(3) != train_samples(4)
    assert eval_samples(3) != eval_samples(4)


def test_no_command_and_no_phrase_is_in_both():
    train, evaluation = ({sample.text for sample in samples} for samples in (train_samples(), eval_samples()))
    assert not train & evaluation
    assert len(train) == len(train_samples())
    learnt = {phrase.strip("~") for intent in TRAIN_PHRASES for phrase in phrases(TRAIN_PHRASES, intent)}
    asked = {phrase.strip("~") for intent in EVAL_PHRASES for phrase in phrases(EVAL_PHRASES, intent)}
    assert not learnt & asked


def test_every_slot_is_known_and_filled():
    for table in (TRAIN_PHRASES, EVAL_PHRASES):
        for intent in table:
            for phrase in phrases(table, intent):
                assert phrase.format(**SLOTS)
    for sample in train_samples() + eval_samples():
        assert not set(sample.text) & set("{}|~\n")
        assert "  " not in sample.text


def test_frames_of_opposites_are_held_out_too():
    assert not set(TRAIN_FRAMES.replace("~", "").split("|")) & set(EVAL_FRAMES.replace("~", "").split("|"))
    for intent, (_, it, _) in OPPOSITES.items():
        assert intent in TRAIN_PHRASES
        assert it.format(**SLOTS)

"""The embedded data set of ``pac demo``: commands to a home assistant, to be sorted into intents.

The commands are made from phrases, slots, polite words and a few typing errors. The phrases of the evaluation samples
never occur in training, and several intents differ by little (a light on, off or dimmed; a door locked, unlocked or
asked about), so that there is something to learn.
"""

from __future__ import annotations

import random
import re

from pac_core.columns import Sample
from pac_core.demo_phrases import EVAL_FRAMES, EVAL_PHRASES, OPPOSITES, SLOTS, TRAIN_FRAMES, TRAIN_PHRASES

TRAIN_EACH = 90
EVAL_EACH = 20

ASKING = ("could you", "can you", "please", "would you", "i want you to", "will you", "i'd like you to")
CALLING = ("hey", "ok home,", "hello,", "um,", "listen,", "so,", "right,")
CLOSING = ("please", "thanks", "thank you", "if you can", "right now", "ok")


def train_samples(seed: int = 0) -> list[Sample]:
    """2,430 commands in 27 intents, the same for the same seed."""
    return _samples("train", TRAIN_PHRASES, TRAIN_FRAMES, TRAIN_EACH, random.Random(f"train {seed}"))


def eval_samples(seed: int = 0) -> list[Sample]:
    """540 commands in the same intents, from phrases that `train_samples` does not use."""
    return _samples("eval", EVAL_PHRASES, EVAL_FRAMES, EVAL_EACH, random.Random(f"eval {seed}"))


def phrases(table: dict[str, str], intent: str) -> list[str]:
    """The phrases of an intent, slots open."""
    return [" ".join(phrase.split()) for phrase in table[intent].split("|")]


def _samples(name: str, table: dict[str, str], frames: str, each: int, rng: random.Random) -> list[Sample]:
    commands: dict[str, str] = {}
    for intent in table:
        choices = phrases(table, intent)
        made = 0
        while made < each:
            framed = intent in OPPOSITES and made % 3 > 0
            phrase = _framed(intent, frames, rng) if framed else choices[made % len(choices)]
            text = _command(phrase, rng)
            made += text not in commands
            commands.setdefault(text, intent)
    pairs = list(commands.items())
    rng.shuffle(pairs)
    return [Sample(f"demo-{name}:{i}", text=text, label=intent) for i, (text, intent) in enumerate(pairs, 1)]


def _framed(intent: str, frames: str, rng: random.Random) -> str:
    """A phrase for one of the opposites, its slots still open."""
    do, it, so = OPPOSITES[intent]
    frame = rng.choice(frames.split("|"))
    return frame.format(do=rng.choice(do.split("|")), it=it, so=rng.choice(so.split("|")))


def _command(phrase: str, rng: random.Random) -> str:
    """One command: slots filled, polite or not, now and then with a typing error."""
    text = re.sub(r"{(\w+)}", lambda slot: rng.choice(SLOTS[slot[1]].split("|")), phrase.removeprefix("~"))
    if not phrase.startswith("~") and rng.random() < 0.4:
        text = f"{rng.choice(ASKING)} {text}"
    if rng.random() < 0.25:
        text = f"{rng.choice(CALLING)} {text}"
    if rng.random() < 0.25:
        text = f"{text} {rng.choice(CLOSING)}"
    return _typo(text, rng) if rng.random() < 0.06 else text


def _typo(text: str, rng: random.Random) -> str:
    """``text`` with two neighbouring letters of a longer word swapped."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if long:
        i = rng.choice(long)
        at = rng.randrange(1, len(words[i]) - 2)
        words[i] = words[i][:at] + words[i][at + 1] + words[i][at] + words[i][at + 2 :]
    return " ".join(words)

"""Small changes of a draft, for the local search of `pac-hetero`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

from pac_plugins.schedulers.hetero_drafts import Draft, Judge

Group = tuple[int, ...]

FEW = 3
"""Devices of a group whose orders are all tried; in larger ones neighbours change places."""


def neighbours(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft]:
    """Drafts that fit and differ from this one in one thing."""
    changes = (_cuts, _rows, _moved, _swapped, _turned, _merged, _split, _added, _limits, _resized, _ordered)
    for change in changes:
        yield from (other for other in change(judge, draft, sizes) if other is not None and other != draft)


def _made(judge: Judge, draft: Draft, groups: Sequence[Group], ends: Sequence[int]) -> Draft | None:
    """The draft with other groups or ends; as many micro-batches in flight as fit."""
    return judge.draft(draft.size, len(groups), groups, ends, draft)


def _near(judge: Judge, draft: Draft, groups: Sequence[Group], ends: Sequence[int]) -> Iterator[Draft | None]:
    """With these groups: the ends that are given, and those that suit the groups' speeds."""
    yield _made(judge, draft, groups, ends)
    for cut in judge.recuts(draft.size, groups, draft.limit):
        if cut != tuple(ends):
            yield _made(judge, draft, groups, cut)


def _cuts(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """One cut elsewhere, or two."""
    cuts = judge.found.cuts
    steps = [1, -1, 2, -2] if len(cuts) > 9 else [1, -1, 2, -2, 3, -3]
    inner = range(len(draft.ends) - 1)
    for chosen in [*combinations(inner, 1), *(combinations(inner, 2) if len(inner) <= 6 else ())]:
        for step in steps if len(chosen) == 1 else (1, -1):
            for other in (step,) if len(chosen) == 1 else (1, -1):
                ends = list(draft.ends)
                for place, by in zip(chosen, (step, other)):
                    at = cuts.index(ends[place]) + by
                    ends[place] = cuts[at] if 0 < at < len(cuts) - 1 else 0
                if all(a < b for a, b in zip([0, *ends], ends)):
                    yield _made(judge, draft, draft.groups, ends)


def _rows(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """One row of a stage for another device."""
    for stage, rows in enumerate(draft.rows):
        for giver, taker in permutations(range(len(rows)), 2):
            if rows[giver] > 1:
                changed = tuple(own - (i == giver) + (i == taker) for i, own in enumerate(rows))
                yield judge.with_rows(draft, stage, changed)


def _moved(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """One device to another stage, out of the plan, or into it."""
    places = [(stage, device) for stage, group in enumerate(draft.groups) for device in group]
    idle = [(None, device) for device in range(judge.count) if device not in draft.used]
    kinds = {(stage, judge.kinds[device]): device for stage, device in [*places, *idle]}
    for (stage, _), device in kinds.items():
        for target in (None, *range(len(draft.groups))):
            if target == stage:
                continue
            groups = [
                (*(d for d in group if d != device), *((device,) if number == target else ()))
                for number, group in enumerate(draft.groups)
            ]
            if all(groups):
                yield from _near(judge, draft, groups, draft.ends)
                if target is not None:
                    yield _with_one_row(judge, _made(judge, draft, groups, draft.ends), target)
            elif len(groups) > 1 and stage is not None:
                left = [group for group in groups if group]
                for ends in _without(draft.ends, stage):
                    yield from _near(judge, draft, left, ends)


def _with_one_row(judge: Judge, draft: Draft | None, stage: int) -> Draft | None:
    """The draft with as few rows as can be for the last device of a stage, whose link may be slow."""
    if draft is None or draft.rows[stage][-1] == 1:
        return None
    group, limit = draft.groups[stage], draft.limit
    rest = judge.share(group[:-1], *draft.ranges[stage], draft.size - 1, min(len(draft.groups) - stage, limit))
    return None if rest is None else judge.with_rows(draft, stage, (*rest, 1))


def _without(ends: Sequence[int], stage: int) -> list[tuple[int, ...]]:
    """Ends if a stage's layers go to the stage before, or behind."""
    given = [(*ends[:place], *ends[place + 1 :]) for place in (stage - 1, stage) if 0 <= place < len(ends) - 1]
    return list(dict.fromkeys(given))


def _swapped(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """Two devices of different stages, or one that is left out and one that is not, in each other's place."""
    stages = {device: stage for stage, group in enumerate(draft.groups) for device in group}
    for one, other in combinations(range(judge.count), 2):
        if stages.get(one) != stages.get(other) and judge.kinds[one] != judge.kinds[other]:
            swap = {one: other, other: one}
            groups = [tuple(swap.get(device, device) for device in group) for group in draft.groups]
            yield from _near(judge, draft, groups, draft.ends)


def _turned(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """Groups of two stages in each other's place, one stage's group elsewhere, and all of them the other way around."""
    groups = list(draft.groups)
    for one, other in combinations(range(len(groups)), 2):
        swapped = [*groups]
        swapped[one], swapped[other] = groups[other], groups[one]
        yield from _near(judge, draft, swapped, draft.ends)
    for one, other in permutations(range(len(groups)), 2):
        if abs(one - other) > 1:
            moved = [*groups]
            moved.insert(other, moved.pop(one))
            yield from _near(judge, draft, moved, draft.ends)
    if len(groups) > 2:
        yield from _near(judge, draft, groups[::-1], draft.ends)


def _merged(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """Two neighbouring stages as one."""
    for stage in range(len(draft.groups) - 1):
        groups = [*draft.groups[:stage], draft.groups[stage] + draft.groups[stage + 1], *draft.groups[stage + 2 :]]
        yield from _near(judge, draft, groups, (*draft.ends[:stage], *draft.ends[stage + 1 :]))


def _split(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """One stage as two."""
    for stage, group in enumerate(draft.groups):
        first, last = draft.ranges[stage]
        inner = [cut for cut in judge.found.cuts if first < cut < last]
        if not inner:
            continue
        middle = inner[len(inner) // 2]
        for count in range(1, len(group)):
            for front in _parts(group, count):
                back = tuple(device for device in group if device not in front)
                groups = [*draft.groups[:stage], front, back, *draft.groups[stage + 1 :]]
                yield from _near(judge, draft, groups, (*draft.ends[:stage], middle, *draft.ends[stage:]))


def _parts(group: Group, count: int) -> list[Group]:
    """All parts of a small group; of a large one its first and its last devices."""
    if len(group) <= 2 * FEW:
        return list(combinations(group, count))
    return [group[:count], group[-count:]]


def _added(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """One device as a stage of its own: one that is left out, or from a group of several."""
    crowded = {device for group in draft.groups if len(group) > 1 for device in group}
    for device in range(judge.count):
        if device in draft.used and device not in crowded:
            continue
        groups = [tuple(d for d in group if d != device) for group in draft.groups]
        for place in range(len(groups) + 1):
            widened = [*groups[:place], (device,), *groups[place:]]
            for cut in judge.recuts(draft.size, widened, draft.limit):
                yield _made(judge, draft, widened, cut)


def _limits(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """More or fewer micro-batches in flight, with rows shared anew."""
    for limit in range(1, min(len(draft.groups), 8) + 1):
        if limit != draft.limit:
            yield judge.draft(draft.size, limit, draft.groups, draft.ends)
            for cut in judge.recuts(draft.size, draft.groups, limit):
                yield judge.draft(draft.size, limit, draft.groups, cut)


def _resized(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """Micro-batches of another size."""
    for size in sizes:
        if size != draft.size:
            yield judge.draft(size, len(draft.groups), draft.groups, draft.ends)
            for cut in judge.recuts(size, draft.groups, len(draft.groups)):
                yield judge.draft(size, len(draft.groups), draft.groups, cut)


def _ordered(judge: Judge, draft: Draft, sizes: Sequence[int]) -> Iterator[Draft | None]:
    """A group's devices in another order, which decides who sends which rows to whom."""
    if len(draft.groups) == 1:
        return
    for stage, (group, rows) in enumerate(zip(draft.groups, draft.rows)):
        shares = list(zip(group, rows))
        if len(shares) <= FEW:
            orders = list(permutations(shares))
        else:
            orders = [(*shares[:i], shares[i + 1], shares[i], *shares[i + 2 :]) for i in range(len(shares) - 1)]
        for order in orders:
            groups = (*draft.groups[:stage], tuple(device for device, _ in order), *draft.groups[stage + 1 :])
            split = (*draft.rows[:stage], tuple(own for _, own in order), *draft.rows[stage + 1 :])
            yield Draft(draft.size, draft.limit, groups, draft.ends, split)

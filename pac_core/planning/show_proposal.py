"""A proposed plan as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from pac_core.planning.asked import Answer
from pac_core.planning.proposal import Candidate, Proposal
from pac_core.planning.simulate import Timeline
from pac_core.planning.supposed import Change
from pac_core.report.words import percent, size, span_of_time

CHOSEN = "*"
"""Stands before the plan that was chosen."""


def answer_text(answer: Answer, change: Change) -> str:
    """The plan; with a change also that for the change, and how much faster a run is by it."""
    there = f"no plan: {answer.reason}" if answer.found is None else proposal_text(answer.found)
    if answer.changed is None:
        return there
    parts = ["As it is", there, f"What if: {change}", proposal_text(answer.changed)]
    if answer.found is not None:
        one, other = answer.found.chosen.seconds, answer.changed.chosen.seconds
        parts.append(
            f"{span_of_time(one)} as it is, {span_of_time(other)} with the change: {answer.ratio:.2f} times as fast"
        )
    return "\n\n".join(parts)


def proposal_text(proposal: Proposal) -> str:
    """The plan, what it takes, memory, and the alternatives."""
    found = proposal.chosen
    parts = [found.plan.table(), *_left_out(proposal), _times(proposal), _memory(found), _alternatives(proposal)]
    return "\n\n".join(parts)


def _left_out(proposal: Proposal) -> list[str]:
    absent = proposal.left_out
    if not absent:
        return []
    leader = proposal.cluster.devices[0].name
    told = f"not used: {', '.join(absent)}"
    return [f"{told}; {leader} leads and must have part in a run" if leader in absent else told]


def _times(proposal: Proposal) -> str:
    told = proposal.predicted
    prefill = f", {span_of_time(told['prefill_seconds'])} of it prefill" if proposal.work.prefill else ""
    lines = [
        ("mini-batch", f"{span_of_time(told['mini_batch_seconds'])}, if it trains in the stages"),
        ("epoch 1", f"{span_of_time(told['epoch_1_seconds'])}{prefill}"),
    ]
    if told["cached_epoch_seconds"] is not None:
        lines += [("spreading", span_of_time(told["spread_seconds"]))]
        lines += [("cached epoch", span_of_time(told["cached_epoch_seconds"]))]
    run = f"{span_of_time(told['seconds'])}, {proposal.work.epochs} epochs of {proposal.work.samples} samples"
    lines.append(("run", f"{run}, {size(told['bytes_sent'])} sent"))
    return columns(lines)


def _memory(found: Timeline) -> str:
    lines = [("device", "memory", "of", "share")]
    for memory in found.memory:
        share = percent(memory.peak / memory.budget) + (" does not fit" if memory.missing else "")
        lines.append((memory.device, size(memory.peak), size(memory.budget), share))
    return columns(lines)


def _alternatives(proposal: Proposal) -> str:
    leader = proposal.cluster.devices[0].name
    found = [_alternative(one, one.timeline is proposal.chosen, leader) for one in proposal.candidates]
    text = columns([("", "scheduler", "run", "mini-batch", ""), *found])
    best = proposal.quickest
    if best.timeline is None or best.timeline is proposal.chosen:
        lacking = proposal.chosen.out_of_memory
        return f"{text}\nno plan fits; a smaller --micro-batch-size may, or a smaller --batch-size" if lacking else text
    if leader in proposal.left_out or proposal.chosen.out_of_memory:
        return f"{text}\nno run can follow this plan; it can with --scheduler {best.scheduler}"
    return f"{text}\nby --scheduler {best.scheduler} the run would be done sooner"


def _alternative(candidate: Candidate, chosen: bool, leader: str) -> tuple[str, ...]:
    found, mark = candidate.timeline, CHOSEN if chosen else ""
    if found is None or candidate.step_s is None:
        return mark, candidate.scheduler, "-", "-", candidate.reason
    notes = [f"{one.device} lacks {size(one.missing)}" for one in found.out_of_memory]
    notes += [] if leader in found.plan.devices else [f"without {leader}, which leads"]
    return mark, candidate.scheduler, span_of_time(found.seconds), span_of_time(candidate.step_s), ", ".join(notes)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, one under the other."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)

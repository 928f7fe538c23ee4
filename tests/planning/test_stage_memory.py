"""What a device is predicted to hold, against what it holds."""

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from pac_core.config import OptimizerConfig
from pac_core.contracts.adapter import AdapterConfig
from pac_core.contracts.backbone import DECODER, ENCODER, BackboneInfo
from pac_core.contracts.scheduler import Plan, StagePlan
from pac_core.model import PacModel, get_pac_model
from pac_core.planning.stage_memory import replica_bytes, stage_memory
from pac_core.runtime.optimizer import make_optimizer
from pac_core.runtime.parts import Part
from pac_core.runtime.stage import Stage, cut_model
from pac_core.testing.stages import texts

WIDTH, LAYERS, TOKENS, ROWS = 256, 4, 32, 4


def bert() -> Any:
    return hf.BertForSequenceClassification(
        hf.BertConfig(
            vocab_size=64,
            hidden_size=WIDTH,
            intermediate_size=1024,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_labels=3,
        )
    )


def llama() -> Any:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=64, hidden_size=WIDTH, intermediate_size=768, num_hidden_layers=LAYERS, num_attention_heads=4
        )
    )


BUILD = {"bert": (bert, ENCODER), "llama": (llama, DECODER)}


def plan_of(stream: str, stages: int, schedule: Any = "1f1b", micro_batches: int = 8) -> Plan:
    each = LAYERS // stages
    slices = [{stream: (i * each, (i + 1) * each)} for i in range(stages)]
    return Plan(tuple(StagePlan(s, (str(i),), (ROWS,)) for i, s in enumerate(slices)), micro_batches, schedule)


def adapter(name: str) -> AdapterConfig:
    return AdapterConfig(name=name, reduction=8, init="random")


def storages(tensors: list[Tensor]) -> int:
    """Bytes of the memory behind tensors, counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def kept(base: Any, model: PacModel, kind: str, plan: Plan, number: int) -> int:
    """Bytes that a micro-batch leaves behind for its backward pass at a stage, parameters aside."""
    part = Part(texts(kind, [TOKENS] * ROWS, 0), 1, {})
    for before in range(number):
        layers = plan.stages[before].layers
        part, _ = Stage(cut_model(copy.deepcopy(model), layers), layers).forward(part)
    layers = plan.stages[number].layers
    own = cut_model(copy.deepcopy(model), layers).train()
    parameters = {p.untyped_storage().data_ptr() for p in (*own.parameters(), *base.parameters())}
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved.append(tensor)
        return tensor

    part = Part(part.examples, 1, {name: tensor.detach() for name, tensor in part.tensors.items()})
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _, passed = Stage(own, layers).forward(part)
    return storages([*saved, *passed.inputs.values(), *passed.outputs.values()])


@pytest.mark.parametrize("name", ["parallel", "bottleneck"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("number", [0, 1])
def test_activations_in_flight_are_those_that_are_kept(kind: str, name: str, number: int) -> None:
    build, stream = BUILD[kind]
    base = build()
    model = get_pac_model(base, adapter(name))
    plan = plan_of(stream, 2)
    predicted = stage_memory(model.info, adapter(name), plan, number, TOKENS, head=kind == "llama").in_flight
    found = kept(base, model, kind, plan, number) * plan.most_in_flight(number)
    assert predicted == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_weights_and_optimiser_state_are_those_that_are_held(kind: str) -> None:
    build, stream = BUILD[kind]
    model = get_pac_model(build(), adapter("parallel"))
    alone = stage_memory(model.info, adapter("parallel"), plan_of(stream, 1), 0, TOKENS)
    base = model.backbone._base  # type: ignore[attr-defined]
    assert alone.weights == pytest.approx(storages(list(base.parameters())), rel=0.05)
    weights = storages(list(model.parameters()))
    assert replica_bytes(model.info, adapter("parallel"), plan_of(stream, 2)) == pytest.approx(weights, rel=0.15)
    optimizer = make_optimizer(model, OptimizerConfig())
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values()]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert alone.side == pytest.approx(storages([*trained, *(p.grad for p in trained), *moments]), rel=0.15)


def info(kind: str = "bert") -> BackboneInfo:
    return get_pac_model(BUILD[kind][0](), adapter("parallel")).info


def test_1f1b_holds_less_at_later_stages_and_gpipe_every_micro_batch() -> None:
    facts = info()
    in_flight = [stage_memory(facts, adapter("parallel"), plan_of(ENCODER, 4), i, TOKENS).in_flight for i in range(4)]
    one = in_flight[3]
    assert in_flight[1:] == [3 * one, 2 * one, one]
    every = stage_memory(facts, adapter("parallel"), plan_of(ENCODER, 4, "gpipe"), 3, TOKENS)
    assert every.in_flight == 8 * one
    assert every.total == sum((every.weights, every.side, every.in_flight, every.working, every.messages))


def test_only_the_last_stage_of_a_language_model_holds_its_head() -> None:
    facts = info("llama")
    plain, headed = (
        [stage_memory(facts, adapter("parallel"), plan_of(DECODER, 2), i, TOKENS, head=head) for i in range(2)]
        for head in (False, True)
    )
    assert headed[0] == plain[0]
    assert headed[1].weights - plain[1].weights == facts.vocab_size * WIDTH * 4
    assert headed[1].in_flight - plain[1].in_flight == ROWS * TOKENS * facts.vocab_size * 4

import json
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.data.sampler import QuerySampler, build_samplers
from museg_ray.errors import DataError
from museg_ray.rewards.phases import phase_steps
from museg_ray.train.plan import StepPlan, lookahead, plan_steps
from museg_ray.types import GroundingQuery

FILES = ("a.jsonl", "b.jsonl")
PHASES = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(FILES), st.sampled_from([0.0, 0.3, 1.0])), min_size=1, max_size=4
).map(
    lambda phases: [
        PhaseConfig(f"phase {index}", steps, train=file, multi_segment_share=share)
        for index, (steps, file, share) in enumerate(phases)
    ]
)


def make(phases: list[PhaseConfig]) -> tuple[Config, dict[str, QuerySampler]]:
    config = Config()
    config.train.phases, config.train.prompts_per_step = phases, 3
    one, two = ((0.0, 1.0),), ((0.0, 1.0), (2.0, 3.0))
    queries = {
        file: [GroundingQuery(f"{file}/{i}", "/v.mp4", "event", one if i < 5 else two) for i in range(12)]
        for file in FILES
    }
    return config, build_samplers(config, queries, seed=0)


def run_plans(phases: list[PhaseConfig]) -> Iterator[StepPlan]:
    return plan_steps(*make(phases))


@given(phases=PHASES)
def test_every_step_is_planned_with_the_queries_of_its_phase(phases: list[PhaseConfig]) -> None:
    config, samplers = make(phases)
    plans = list(run_plans(phases))
    for plan, (step, phase, is_first) in zip(plans, phase_steps(phases), strict=True):
        assert (plan.step, plan.phase) == (step, phase)
        sampler = samplers[phase.train]
        if is_first:
            sampler.start_phase(config.multi_segment_share(plan.phase))
        assert plan.queries == sampler.draw(3)
        assert plan.sampler_states == {file: samplers[file].state() for file in FILES}


@given(phases=PHASES, last_trained=st.integers(0, 16))
def test_a_run_resumes_at_any_step_from_the_states_in_its_plan(phases: list[PhaseConfig], last_trained: int) -> None:
    plans = list(run_plans(phases))
    last_trained = min(last_trained, len(plans))
    config, samplers = make(phases)
    if last_trained:
        states = json.loads(json.dumps(plans[last_trained - 1].sampler_states))
        for file, sampler in samplers.items():
            sampler.restore(states[file])
    assert list(plan_steps(config, samplers, last_trained + 1)) == plans[last_trained:]


@given(phases=PHASES, count=st.integers(0, 20))
def test_looking_ahead_tells_of_each_plan_once_and_changes_none(phases: list[PhaseConfig], count: int) -> None:
    plans = list(run_plans(phases))
    pairs = list(lookahead(run_plans(phases), count))
    assert [present for present, _ in pairs] == plans
    told = [plan.step for _, new in pairs for plan in new]
    assert told == ([plan.step for plan in plans[1:]] if count else [])
    for index, (_, new) in enumerate(pairs):
        first_new = index + max(count, 1) if index else 1
        assert new == plans[first_new : index + count + 1]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_more_is_drawn_than_is_looked_at(count: int) -> None:
    drawn = list[int]()

    def watched() -> Iterator[StepPlan]:
        for plan in run_plans([PhaseConfig("one", 9, train=FILES[0], multi_segment_share=0.5)]):
            drawn.append(plan.step)
            yield plan

    for present, _ in islice(lookahead(watched(), count), 5):
        assert drawn == list(range(1, present.step + count + 1))


def test_a_plan_keeps_its_queries_and_states_while_later_ones_are_drawn() -> None:
    plans = run_plans([PhaseConfig("one", 2, train=FILES[0], multi_segment_share=0.5)])
    first = next(plans)
    before = json.dumps(first.sampler_states)
    next(plans)
    assert json.dumps(first.sampler_states) == before
    assert len(first.queries) == 3


def test_a_phase_without_the_queries_it_asks_for_is_refused_at_its_start() -> None:
    config, _ = make([PhaseConfig("one", 1, train=FILES[0], multi_segment_share=1.0)])
    only_single = QuerySampler([GroundingQuery("a/0", "/v.mp4", "event", ((0.0, 1.0),))], seed=0)
    with pytest.raises(DataError, match="several segments"):
        next(plan_steps(config, {FILES[0]: only_single}))

"""In which order training sees its queries: balanced, without repeats, the same at every run and resume."""

import hashlib
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from fractions import Fraction
from typing import TypedDict

from museg_ray.config.schema import Config
from museg_ray.config.validate import source_weight_faults
from museg_ray.data.curriculum import Curriculum, load_curriculum, pass_order
from museg_ray.errors import ConfigError, DataError
from museg_ray.types import GroundingQuery

QUERY_INPUTS = ("num_queries", "queries_hash")
ALL_SOURCES = "*"
"""Stands for the source of every query while no weights tell sources apart."""


class SamplerInputs(TypedDict):
    """What decides the sequence: two samplers with equal inputs draw the same."""

    num_queries: int
    queries_hash: str
    """Of all that a query holds, in the file's order."""
    seed: int
    source_weights: dict[str, float]
    """Of the sources that the queries have."""
    curriculum: str


class SamplerState(TypedDict):
    """Where a sampler stands in the sequence; JSON keeps it exactly."""

    inputs: SamplerInputs
    """A state goes on only with the inputs that it comes from."""
    num_single: dict[str, int]
    """Single-segment queries drawn so far in all phases, by source."""
    num_multi: dict[str, int]
    phase_drawn: int
    """Queries drawn in the present phase."""
    phase_multi: int
    """The multi-segment ones among them."""
    multi_segment_share: float | None
    """The present phase's; None before the first one."""


class QuerySampler:
    """Draws single- and multi-segment queries at the phase's ratio, within each kind the sources by their weights;
    each source of a kind passes through all its queries before it repeats one, also across phases.

    After d draws of a phase exactly ceil(d * multi_segment_share) were multi-segment queries; what earlier phases drew
    is not made up for. After d draws of a kind, in all phases, each source has its weight's share of d, rounded up or
    down. What comes next is a function of the inputs and of the counts in the state.
    """

    def __init__(
        self,
        queries: Sequence[GroundingQuery],
        seed: int,
        source_weights: Mapping[str, float] | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        """The first `start_phase` or `restore` comes before the first draw.

        Args:
            queries: of one annotation file.
            seed: of the random order.
            source_weights: how often each source is drawn, against the others; empty: all queries alike.
            curriculum: orders each pass; None: random order.

        Raises:
            ConfigError: a weight is negative or not finite, or all are 0.
            DataError: a source without a weight; or the curriculum failed for a query of the first pass.
        """
        weights = _weights_of(queries, source_weights or {})
        kinds: tuple[list[GroundingQuery], list[GroundingQuery]] = ([], [])
        for query in queries:
            kinds[len(query.segments) > 1].append(query)
        single, multi = (_sources(kind, (seed, i), weights, curriculum) for i, kind in enumerate(kinds))
        self._single, self._multi = _Kind(single), _Kind(multi)
        self._inputs = _inputs(queries, seed, weights, curriculum)
        self.multi_segment_share: float | None = None
        """The present phase's; None before the first one."""
        self._phase_drawn = 0
        self._phase_multi = 0

    def check_share(self, multi_segment_share: float) -> None:
        """Make sure that a phase could draw at this share (0 to 1).

        Raises:
            DataError: a kind that the share asks for has no queries.
        """
        for kind, name, other, is_asked in (
            (self._single, "one segment", "1", multi_segment_share < 1),
            (self._multi, "several segments", "0", multi_segment_share > 0),
        ):
            if is_asked and not kind.sources:
                raise _empty(name, other, multi_segment_share, self._inputs)

    def start_phase(self, multi_segment_share: float) -> None:
        """Draw at this share (0 to 1) from now on, counted from here.

        Raises:
            DataError: a kind that the share asks for has no queries; the sampler stays as it was.
        """
        self.check_share(multi_segment_share)
        self.multi_segment_share = multi_segment_share
        self._phase_drawn = self._phase_multi = 0

    def draw(self, n: int) -> list[GroundingQuery]:
        """The next n queries of the sequence.

        Raises:
            DataError: the curriculum failed for a query of the pass that begins.
        """
        return [self._draw_one() for _ in range(n)]

    def state(self) -> SamplerState:
        """What `restore` needs to continue after the last query drawn."""
        return {
            "inputs": self._inputs.copy(),
            "num_single": self._single.counts(),
            "num_multi": self._multi.counts(),
            "phase_drawn": self._phase_drawn,
            "phase_multi": self._phase_multi,
            "multi_segment_share": self.multi_segment_share,
        }

    def restore(self, state: SamplerState, accept_changed_data: bool = False) -> None:
        """Continue where the sampler that gave `state` stood, in the same phase.

        Args:
            accept_changed_data: the queries may be others; as many of each source count as drawn.

        Raises:
            DataError: the state belongs to other queries, weights, curriculum or seed; says which. The sampler stays
                as it was.
        """
        _check_inputs(state["inputs"], self._inputs, QUERY_INPUTS if accept_changed_data else ())
        self._single.set_counts(state["num_single"])
        self._multi.set_counts(state["num_multi"])
        self._phase_drawn = state["phase_drawn"]
        self._phase_multi = state["phase_multi"]
        self.multi_segment_share = state["multi_segment_share"]

    def _draw_one(self) -> GroundingQuery:
        assert self.multi_segment_share is not None, "start_phase comes before draw"
        multi_is_due = self._phase_multi < self.multi_segment_share * (self._phase_drawn + 1)
        query = (self._multi if multi_is_due else self._single).draw()
        self._phase_drawn += 1
        self._phase_multi += multi_is_due
        return query


class _Source:
    """Endless passes over its queries; pass and place follow from the number drawn."""

    def __init__(
        self, queries: list[GroundingQuery], seed: tuple[int, ...], weight: Fraction, curriculum: Curriculum | None
    ) -> None:
        self.num_drawn = 0
        self.weight = weight
        self._queries = queries
        self._seed = seed
        self._curriculum = curriculum
        self._begin_pass(0)  # now: a faulty curriculum shows before a run has begun

    def draw(self) -> GroundingQuery:
        epoch, place = divmod(self.num_drawn, len(self._queries))
        if epoch != self._epoch:
            self._begin_pass(epoch)
        self.num_drawn += 1
        return self._queries[self._order[place]]

    def _begin_pass(self, epoch: int) -> None:
        self._order = pass_order(self._queries, self._seed, epoch, self._curriculum)
        self._epoch = epoch


class _Kind:
    """The sources that have queries of one kind, in turn by weight.

    Of d draws a source with the share w gets w * d, rounded up or down. To take whichever is furthest behind would not
    keep to that: with seven sources one may fall more than 1 behind. As in scheduling, the k-th draw of a source has a
    window, from draw floor((k - 1) / w) + 1 to draw ceil(k / w), and of those whose window is open the one that closes
    first is drawn.
    """

    def __init__(self, sources: dict[str, _Source]) -> None:
        self.sources = sources
        total = sum((source.weight for source in sources.values()), Fraction(0))
        # Exact: the windows of rounded shares would drift.
        self._shares = {name: source.weight / total for name, source in sources.items()}

    def draw(self) -> GroundingQuery:
        position = 1 + sum(source.num_drawn for source in self.sources.values())
        open_now = [name for name, share in self._shares.items() if self.sources[name].num_drawn < share * position]
        return self.sources[min(open_now, key=self._last_position)].draw()

    def counts(self) -> dict[str, int]:
        return {name: source.num_drawn for name, source in self.sources.items()}

    def set_counts(self, counts: Mapping[str, int]) -> None:
        for name, source in self.sources.items():
            source.num_drawn = counts.get(name, 0)  # absent: a source that came with changed data

    def _last_position(self, name: str) -> int:
        """Where the window of the source's next draw closes."""
        return math.ceil((self.sources[name].num_drawn + 1) / self._shares[name])


def build_samplers(
    config: Config, queries_of_file: Mapping[str, Sequence[GroundingQuery]], seed: int
) -> dict[str, QuerySampler]:
    """A sampler for each annotation file, every phase's share tried: else a late phase would end the run after hours.

    Args:
        config: of the run.
        queries_of_file: by annotation file, as the phases name it: `Config.train_file`.
        seed: of the random order.

    Raises:
        ConfigError: `data.curriculum` cannot be imported.
        DataError: `data.source_weights` and the queries' sources do not fit; the curriculum failed for a query; or a
            phase asks for a kind of queries that its file has not.
    """
    weights, curriculum = config.data.source_weights, load_curriculum(config.data.curriculum)
    _check_known(weights, queries_of_file)
    samplers = {path: QuerySampler(queries, seed, weights, curriculum) for path, queries in queries_of_file.items()}
    for phase in config.train.phases:
        if phase.steps:
            samplers[config.train_file(phase)].check_share(config.multi_segment_share(phase))
    return samplers


def _weights_of(queries: Sequence[GroundingQuery], weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of the sources that the queries have; none where none are given."""
    for fault in source_weight_faults(weights):
        raise ConfigError(fault)
    sources = sorted({query.source for query in queries}) if weights else []
    unweighted = [source for source in sources if source not in weights]
    if unweighted:
        raise DataError(
            f"data.source_weights has no weight for {_listed(unweighted)}, the source of some queries; it has "
            f"{_listed(weights)}. Give each source a weight: 1 to draw it as often as another one of 1, 0 to leave it "
            "out."
        )
    return {source: float(weights[source]) for source in sources}


def _check_known(weights: Mapping[str, float], queries_of_file: Mapping[str, Sequence[GroundingQuery]]) -> None:
    known = {query.source for queries in queries_of_file.values() for query in queries}
    unknown = [source for source in weights if source not in known]
    if unknown:
        raise DataError(
            f"data.source_weights names {_listed(unknown)}, but no query comes from there; the sources are "
            f"{_listed(sorted(known))}. Correct the name, or remove it."
        )


def _sources(
    queries: list[GroundingQuery], seed: tuple[int, ...], weights: Mapping[str, float], curriculum: Curriculum | None
) -> dict[str, _Source]:
    """The queries of one kind by source, in the order of the names, without sources of weight 0."""
    if not weights:
        return {ALL_SOURCES: _Source(queries, seed, Fraction(1), curriculum)} if queries else {}
    by_source = defaultdict(list)
    for query in queries:
        if weights[query.source]:
            by_source[query.source].append(query)
    return {
        name: _Source(by_source[name], (*seed, _number(name)), Fraction(weights[name]), curriculum)
        for name in sorted(by_source)
    }


def _number(name: str) -> int:
    """Gives a source a random order of its own, which stays when other sources come or go."""
    return zlib.crc32(ascii(name).encode())


def _inputs(
    queries: Sequence[GroundingQuery], seed: int, weights: dict[str, float], curriculum: Curriculum | None
) -> SamplerInputs:
    content = json.dumps([astuple(query) for query in queries])
    return {
        "num_queries": len(queries),
        "queries_hash": hashlib.sha256(content.encode()).hexdigest()[:16],
        "seed": seed,
        "source_weights": weights,
        "curriculum": curriculum.path if curriculum else "",
    }


def _check_inputs(saved: SamplerInputs, present: SamplerInputs, accepted: Sequence[str]) -> None:
    was, now = dict(saved), dict(present)
    differing = [key for key in now if key not in accepted and was.get(key) != now[key]]
    changed = [f"{key} was {was.get(key)!r} and is {now[key]!r}" for key in differing]
    if changed:
        raise DataError(
            f"The saved place in the sequence of queries belongs to another sequence: {'; '.join(changed)}. Resume "
            "with the same annotation file (or accept another one by run.accept_changed_data=true), run.seed, "
            "data.source_weights and data.curriculum, or start a new run."
        )


def _empty(kind: str, remedy: str, share: float, inputs: SamplerInputs) -> DataError:
    left_out = [source for source, weight in inputs["source_weights"].items() if not weight]
    unless = f" (data.source_weights leaves out {_listed(left_out)})" if left_out else ""
    return DataError(
        f"The multi-segment share is {share}, but none of the {inputs['num_queries']} queries has {kind}{unless}. Set "
        f"data.multi_segment_share={remedy}, or train.phases[].multi_segment_share={remedy} where the phase has its "
        "own, or add such queries to the annotation file."
    )


def _listed(names: Sequence[str] | Mapping[str, float]) -> str:
    return ", ".join(map(repr, names))

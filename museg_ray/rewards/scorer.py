"""Scoring a batch of groups in one process, so that no single response can hold up or spoil the others."""

import faulthandler
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain, islice
from operator import attrgetter
from types import FrameType

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.rewards.answer import parse_response
from museg_ray.rewards.recipe import Recipe
from museg_ray.types import GroundingQuery, RewardParts

GroupRequest = tuple[Sequence[str], GroundingQuery, RewardWeights]
"""The texts of one group's responses, what they answer, and the weights of the phase."""

Outcome = RewardParts | str
"""What a response earned, or why it could not be scored."""

PART_BYTES = 96 * 1024
"""See `pack`."""

STDERR = 2
"""By number: Ray redirects the file object."""


_QUERY_FIELDS = attrgetter(*(field.name for field in fields(GroundingQuery)))
_WEIGHT_FIELDS = attrgetter(*(field.name for field in fields(RewardWeights)))


class _ResponseTimeout(BaseException):
    """Not an Exception, so that a reward of the user's that catches those does not swallow it."""


class BatchScorer:
    """Scores whole groups, response by response; one that takes too long is broken off. For the main thread.

    Signals do the timing, at no cost to responses that are quick. The first tick, after `response_timeout_s`, ends the
    batch: no further response is begun. The response in work has until the second tick, so one to two timeouts. Code
    that keeps the interpreter from taking signals, or swallows what they raise, is ended with its process after three,
    by a watchdog outside of the interpreter. So every call is over within three timeouts, whatever is in it.
    """

    def __init__(self, config: RewardConfig) -> None:
        """
        Raises:
            ConfigError: `rewards.custom` cannot be imported.
        """
        self._recipe = Recipe(config)
        self._timeout_s = config.response_timeout_s
        self._is_over = False
        """No further response may be begun."""
        self._in_work = False
        """A response is being scored, and may be broken off."""

    def score(self, groups: Sequence[GroupRequest]) -> list[list[Outcome]]:
        """The outcomes of every group's responses, in their order; the last ones are missing where time ran out."""
        outcomes: list[list[Outcome]] = [[] for _ in groups]
        with self._clock():
            try:
                for group, of_group in zip(groups, outcomes, strict=True):
                    self._score_group(group, of_group)
            except _ResponseTimeout:
                pass  # it struck beside a response: what is scored counts, and the rest has not been reached
        return outcomes

    def _score_group(self, group: GroupRequest, outcomes: list[Outcome]) -> None:
        texts, query, weights = group
        prepared = self._recipe.prepare(query, weights)
        for text in texts:
            if self._is_over:
                return
            try:
                self._in_work = True
                outcome: Outcome = prepared.score(parse_response(text))
            except _ResponseTimeout:
                outcome = f"not scored within rewards.response_timeout_s = {self._timeout_s:g} s"
            except Exception as error:  # of the user's reward; the pool decides what becomes of the response
                outcome = f"{type(error).__name__}: {error}"
            self._in_work = False
            outcomes.append(outcome)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, self._tick)
        self._is_over = self._in_work = False
        faulthandler.dump_traceback_later(3 * self._timeout_s, exit=True, file=STDERR)
        signal.setitimer(signal.ITIMER_REAL, self._timeout_s, self._timeout_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)

    def _tick(self, _signal: int, _frame: FrameType | None) -> None:
        if self._is_over and self._in_work:
            self._in_work = False
            raise _ResponseTimeout
        self._is_over = True


def pack(groups: Sequence[GroupRequest]) -> list[bytes]:
    """A request on the wire, as arguments of one call.

    Plain tuples: pickling records would cost a tenth of the scoring. In parts: Ray carries arguments of up to 100 KiB
    in the call itself; larger ones go through the object store, which costs the actor half a millisecond a call.
    """
    rows = [(tuple(texts), _QUERY_FIELDS(query), _WEIGHT_FIELDS(weights)) for texts, query, weights in groups]
    request = pickle.dumps(rows)
    return [request[start : start + PART_BYTES] for start in range(0, len(request), PART_BYTES)]


def unpack(parts: Sequence[bytes]) -> list[GroupRequest]:
    """What `pack` packed; groups of equal weights share them."""
    rows = pickle.loads(b"".join(parts))
    weights = {row[2]: RewardWeights(*row[2]) for row in rows}
    return [(texts, GroundingQuery(*query), weights[of_phase]) for texts, query, of_phase in rows]


def pack_outcomes(outcomes: Sequence[Sequence[Outcome]]) -> bytes:
    """A reply on the wire: all values in a row, and the reasons of those that have none by their place."""
    values: list[object] = []
    reasons = {}
    for place, outcome in enumerate(chain.from_iterable(outcomes)):
        if isinstance(outcome, str):
            reasons[place] = outcome
        else:
            values.extend(outcome)
    return pickle.dumps(([len(group) for group in outcomes], values, reasons))


def unpack_outcomes(reply: bytes) -> list[list[Outcome]]:
    """What `pack_outcomes` packed."""
    sizes, values, reasons = pickle.loads(reply)
    scored = map(RewardParts, *[iter(values)] * len(RewardParts._fields))
    flat = (reasons[place] if place in reasons else next(scored) for place in range(sum(sizes)))
    return [list(islice(flat, size)) for size in sizes]

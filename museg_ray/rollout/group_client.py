"""The requests of a group, sent to vLLM's engine process so that the clip's pixels cross to it once.

Written for vLLM 0.32. There a request for n = G responses becomes G requests, and each is sent with all the pixels.
Here a group adds its G requests itself. The first carries the pixels, the others none: the engine process gives them
those of the first, from the cache that vLLM's processor cache of type `lru` keeps on that side. That side's entry is
there when it is needed, however small the cache, because

- it holds any clip that the model's length admits (`clip_cache_bytes`), and vLLM refuses longer prompts before sending;
- requests reach it in the order sent: one socket, and one thread behind it that looks after the cache;
- a group is sent under a lock, so that no other clip comes between its requests;
- nothing else changes it: a request that was received holds its pixels by itself, and one that is aborted or finished
  does not touch the cache.

vLLM's own decision not to send pixels again rests on a mirror of that cache on this side, which drifts apart when a
request is refused or cancelled between the two; it is not used (`skip_mm_cache`), so each group sends its pixels.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


class CountingEncoder:
    """Stands in for the encoder of everything that is sent to the engine process, and counts the bytes."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.num_bytes = 0

    def encode(self, message: Any) -> Sequence[Any]:
        frames: Sequence[Any] = self._encoder.encode(message)
        self.num_bytes += sum(memoryview(frame).nbytes for frame in frames)
        return frames


@dataclass(frozen=True, slots=True)
class SentGroup:
    """The requests of a group that are under way."""

    request_ids: list[str]
    queues: list[Any]
    """Of their outputs."""


class GroupClient:
    """Sends groups to one engine, whose only client it is."""

    def __init__(self, llm: "AsyncLLM") -> None:
        self._llm = llm
        self._encoder = llm.engine_core.encoder = CountingEncoder(llm.engine_core.encoder)
        self._group_ids = count()
        self._sending = asyncio.Lock()

    @property
    def bytes_sent(self) -> int:
        """Bytes of all messages sent to the engine process."""
        return self._encoder.num_bytes

    async def send(self, prompt: dict[str, Any], params: Sequence["SamplingParams"]) -> "SentGroup":
        """Start a request of the prompt for each of `params`, which ask for one response (n = 1) and its final output.

        When it fails or is cancelled, what was sent is aborted.
        """
        group_id = next(self._group_ids)
        request_ids = [f"{group_id}-{index}" for index in range(len(params))]
        (engine_input,) = await self._llm.renderer.render_cmpl_async([prompt], skip_mm_cache=True)
        try:
            return SentGroup(request_ids, await self._add(engine_input, params, request_ids))
        except BaseException:
            await self._llm.abort(request_ids)
            raise

    async def receive(self, group: "SentGroup") -> list["RequestOutput"]:
        """One output a request. When it fails or is cancelled, the requests that are still running are aborted."""
        try:
            outputs = [await queue.get() for queue in group.queues]
        except BaseException:
            await self._llm.abort(group.request_ids)
            raise
        for output in outputs:
            _check_complete(output)
        return outputs

    async def _add(
        self, engine_input: dict[str, Any], params: Sequence["SamplingParams"], request_ids: Sequence[str]
    ) -> list[Any]:
        """Queues of the outputs, in the order of `params`."""
        without_pixels = {**engine_input, "mm_kwargs": {"video": [None]}}
        queues = []
        async with self._sending:
            for index, (request_id, request_params) in enumerate(zip(request_ids, params, strict=True)):
                request_input = without_pixels if index else engine_input
                queues.append(await self._llm.add_request(request_id, request_input, request_params))
        return queues


def _check_complete(output: "RequestOutput") -> None:
    """vLLM reports some failures of a request, such as pixels that are missing, as a response that ended early."""
    reason = output.outputs[0].finish_reason
    if reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended request {output.request_id} with {reason!r}")

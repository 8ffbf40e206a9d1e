"""vLLM without what this package does about pixels: what `museg bench` compares with. No run uses it."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from museg_ray.rollout.engine import RolloutEngine
from museg_ray.rollout.group_client import GroupClient, SentGroup

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput


class NaiveClient(GroupClient):
    """A group is one request for n = G responses whose clip has no name: vLLM hashes the pixels, and sends them with
    each response until its cache knows them."""

    async def send(self, prompt: dict[str, Any], params: Sequence["SamplingParams"]) -> SentGroup:
        unnamed = {key: value for key, value in prompt.items() if key != "multi_modal_uuids"}
        group_params = params[0].clone()
        group_params.n = len(params)  # response i has the seed + i, as in `params`
        request_id = str(next(self._group_ids))
        return SentGroup([request_id], [self._llm.generate(unnamed, group_params, request_id)])

    async def receive(self, group: SentGroup) -> list["RequestOutput"]:
        *_, last = [output async for output in group.queues[0]]
        return [_with_one_response(last, index) for index in range(len(last.outputs))]


class NaiveEngine(RolloutEngine):
    """A rollout engine with vLLM's default cache of processed pixels."""

    _client_class = NaiveClient
    _vllm_args: ClassVar[Mapping[str, Any]] = {"mm_processor_cache_gb": 4}


def _with_one_response(output: "RequestOutput", index: int) -> "RequestOutput":
    part = copy(output)
    part.outputs = [output.outputs[index]]
    return part

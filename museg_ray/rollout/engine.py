"""The rollout engine: groups of responses from vLLM, every token with the version of the weights that sampled it."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from museg_ray.clock import now_s
from museg_ray.config.schema import ModelConfig, RolloutConfig
from museg_ray.errors import RolloutError, UnfitQueryError, WeightSyncError
from museg_ray.fleet.errors import MemberLost
from museg_ray.model import qwen_vl
from museg_ray.model.prompt import prompt_length, response_opening, without_outer_marks
from museg_ray.rollout.gate import Gate
from museg_ray.rollout.group_client import GroupClient
from museg_ray.rollout.vllm_setup import start_vllm
from museg_ray.types import Clip, Group, Issue, Response, VersionSpan
from museg_ray.weights.channel import Confirmed
from museg_ray.weights.file import held
from museg_ray.weights.layout import VISION
from museg_ray.weights.tensors import frozen_parts

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


Result = TypeVar("Result")
ALIVE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the responses of one group are drawn."""

    group_size: int
    """Responses (G); 1 when greedy."""
    temperature: float
    """0 is greedy decoding; its log-probs are those of temperature 1."""
    max_completion_tokens: int

    def __post_init__(self) -> None:
        assert self.temperature > 0 or self.group_size == 1, "greedy responses of one group would all be the same"


class RolloutEngine:
    """One vLLM engine. All methods run on the event loop that `start` ran on.

    Weight versions are numbers that grow with each update; the weights of the model folder are version 0.
    """

    _client_class: ClassVar[type[GroupClient]] = GroupClient
    _vllm_args: ClassVar[Mapping[str, Any]] = {}
    """Engine arguments that differ from those of `vllm_setup`."""

    def __init__(
        self, llm: "AsyncLLM", tokenizer: PreTrainedTokenizerBase, spec: qwen_vl.VisionSpec, on_push: str = "continue"
    ) -> None:
        self._llm, self._on_push = llm, on_push
        self._client = self._client_class(llm)
        self._tokenizer, self._spec = tokenizer, spec
        self._end_id, self._opening = qwen_vl.end_token_id(tokenizer), response_opening(tokenizer)
        forbidden = qwen_vl.forbidden_token_ids(tokenizer, llm.model_config.get_vocab_size())
        self._logit_bias = dict.fromkeys(forbidden, qwen_vl.FORBIDDEN_LOGIT_BIAS)
        self._gate = Gate()
        self._running: set[asyncio.Task[list[RequestOutput]]] = set()
        self._version = self._vision_version = 0
        self._has_weights = True
        """False while an update is under way, and after one that failed half-way."""

    @classmethod
    async def start(cls, model_dir: Path, model: ModelConfig, rollout: RolloutConfig) -> "RolloutEngine":
        """Start the engine's process; blocks the event loop until it is up.

        The environment of `engine_environment` must be set.

        Raises:
            RolloutError: the engine did not start.
            ModelError: the folder has no usable tokenizer.
        """
        tokenizer, spec = qwen_vl.load_tokenizer(model_dir), qwen_vl.load_vision_spec(model_dir)
        try:
            # vLLM in no variable: an import error that it keeps holds this frame, so that it would outlive `close`.
            engine = cls(start_vllm(model_dir, model, rollout, **cls._vllm_args), tokenizer, spec, rollout.on_push)
            await engine._llm.update_weight_version("0")
        except Exception as error:  # vLLM's errors are many and cannot be pickled
            raise RolloutError(f"The rollout engine did not start on {model_dir}: {reason_of(error)}.") from None
        return engine

    @property
    def version(self) -> int:
        """Version of the weights that the engine samples from."""
        return self._version

    @property
    def bytes_sent(self) -> int:
        """Bytes of all messages sent to the engine's process so far; weights go by another way."""
        return self._client.bytes_sent

    def check_alive(self) -> None:
        """
        Raises:
            MemberLost: the engine's process is gone.
        """
        if self._llm.errored:
            raise MemberLost("the engine's process is gone")

    async def generate(self, issue: Issue, prompt_ids: Sequence[int], clip: Clip, sampling: Sampling) -> Group:
        """Sample the G responses to one issue. They share the pixels, sent to the engine's process once, one pass of
        the vision tower, and the prompt's keys and values (on a CPU in whole blocks of 128 tokens).

        Args:
            prompt_ids: the chat prompt with ONE video placeholder, from `chat_prompt_ids`.
            clip: its frames are taken as they are.

        Raises:
            UnfitQueryError: prompt, video and answer have no room in the model.
            RolloutError: vLLM refused the request or failed.
            WeightSyncError: the engine has no complete weights.
        """
        self._check_room(issue, prompt_ids, clip, sampling)
        while True:
            version, sampled = await self._begin(issue, prompt_ids, clip, sampling)
            try:
                outputs = await self._finish(sampled)
            except _Restarted:
                continue
            except Exception as error:  # vLLM's errors are many and cannot be pickled
                raise _not_sampled(issue, error) from None
            completions = [output.outputs[0] for output in outputs]
            return Group(
                issue=issue,
                clip_key=clip.key,
                clip_duration_s=clip.duration_s,
                prompt_ids=tuple(outputs[0].prompt_token_ids),
                responses=tuple(self._response(completion, version) for completion in completions),
                weight_version=version,
            )

    async def update_weights(self, version: int, file: Path) -> Confirmed:
        """Replace the weights by those of a weights file; frozen parts that it leaves out stay. Groups under way go on,
        start anew, or are waited for, as `rollout.on_push` says; what comes meanwhile waits.

        After a failed update the engine refuses to sample until another one succeeds.

        Args:
            version: above the present one: cached keys, values and video features are told apart by it.
            file: of this machine, see `Layout`.

        Returns:
            The version that the engine's process now reports, and how long each phase took.

        Raises:
            WeightsLostError: the file has other weights; the engine has those of before.
            WeightSyncError: the version is not new, or the update failed.
            MemberLost: the engine's process is gone.
        """
        async with self._gate.shut():
            if version <= self._version:
                raise WeightSyncError(f"Weights {version} were pushed to an engine that is at {self._version} already.")
            while self._running and self._on_push == "wait":
                await asyncio.wait(self._running)
            with held(file, version):
                self._has_weights = False
                try:
                    confirmed = await self._replace(version, file)
                except MemberLost:
                    raise
                except Exception as error:  # vLLM's errors are many and cannot be pickled
                    raise WeightSyncError(f"Weights {version} could not be loaded: {reason_of(error)}.") from None
            self._version, self._has_weights = version, True
        return confirmed

    def close(self) -> None:
        """End the engine's process; running requests fail."""
        self._llm.shutdown()
        del self._client, self._llm  # now, and not while the interpreter ends, where its destructor fails

    def _check_room(self, issue: Issue, prompt_ids: Sequence[int], clip: Clip, sampling: Sampling) -> None:
        limit, room = self._llm.model_config.max_model_len, sampling.max_completion_tokens
        text, video = prompt_length(self._tokenizer, prompt_ids, clip, self._spec)
        if (total := text + video + room) > limit:
            raise UnfitQueryError(
                f"Query {issue.query.query_id} about {issue.query.video} does not fit the model: {text} tokens of "
                f"text + {video} of video + {room} of room for the answer = {total}, and model.max_tokens is {limit}. "
                "Shorten the question, raise model.max_tokens, or lower video.max_frames or video.total_pixels."
            )

    async def _begin(
        self, issue: Issue, prompt_ids: Sequence[int], clip: Clip, sampling: Sampling
    ) -> "tuple[int, asyncio.Task[list[RequestOutput]]]":
        """Send the group; the version that it is begun with, and its outputs to come.

        Invariant: no weights are replaced between the version's being read and the requests' being sent. What is cached
        is told apart by it: keys, values or features of older weights never meet a request of newer ones.
        """
        async with self._gate.inside():
            if not self._has_weights:
                raise WeightSyncError(
                    f"Query {issue.query.query_id} cannot be sampled: the update that followed weights {self._version} "
                    "is not finished or failed; push new weights first."
                )
            params = [self._sampling_params(sampling, issue.seed, index) for index in range(sampling.group_size)]
            prompt = _vllm_prompt(prompt_ids, clip, self._version, self._vision_version, self._spec)
            try:
                sent = await self._client.send(prompt, params)
            except Exception as error:  # vLLM's errors are many and cannot be pickled
                raise _not_sampled(issue, error) from None
            sampled = asyncio.create_task(self._client.receive(sent))
            self._running.add(sampled)
            sampled.add_done_callback(self._running.discard)
            return self._version, sampled

    async def _finish(self, sampled: "asyncio.Task[list[RequestOutput]]") -> "list[RequestOutput]":
        """
        Raises:
            _Restarted: weights were pushed, and groups under way start anew.
        """
        try:
            return await asyncio.shield(sampled)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if sampled.cancelled() and not (task and task.cancelling()):
                raise _Restarted from None
            sampled.cancel()  # whoever wanted the group has given up
            await asyncio.gather(sampled, return_exceptions=True)
            raise

    async def _replace(self, version: int, file: Path) -> Confirmed:
        if self._running and self._on_push == "restart":
            await self._abort_running()
        is_running, times_s = bool(self._running), [now_s()]
        if is_running:
            await self._while_alive(self._llm.pause_generation(mode="keep", clear_cache=False))
        times_s.append(now_s())
        try:
            confirmed = await self._while_alive(self._transfer(version, file))
        except BaseException:
            await self._abort_running()  # they must not go on with weights that are half those of before
            raise
        finally:
            times_s.append(now_s())
            if is_running and not self._llm.errored:
                await self._while_alive(self._llm.resume_generation())
        times_s.append(now_s())
        return Confirmed(confirmed, *(end - start for start, end in pairwise(times_s)))

    async def _abort_running(self) -> None:
        """Their groups start anew, as soon as there are whole weights."""
        running = list(self._running)
        for sampled in running:
            sampled.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _while_alive(self, call: Awaitable[Result]) -> Result:
        """vLLM never answers a control call whose process dies meanwhile.

        Raises:
            MemberLost: it did.
        """
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=ALIVE_EVERY_S))[0]:
                self.check_alive()
            return task.result()
        finally:
            task.cancel()

    async def _transfer(self, version: int, file: Path) -> int:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest({"path": str(file)}))
        await self._llm.finish_weight_update(str(version))
        if not frozen_parts(file) >= VISION:
            self._vision_version = version
        return int(await self._llm.get_weight_version())

    def _sampling_params(self, sampling: Sampling, seed: int, index: int) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_completion_tokens,
            seed=seed * sampling.group_size + index,
            logit_bias=self._logit_bias,
            # The chat's end token alone, whatever the tokenizer calls its end of sequence.
            ignore_eos=True,
            stop_token_ids=[self._end_id],
            logprobs=0,  # of the sampled token and no other
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _response(self, completion: "CompletionOutput", version: int) -> Response:
        token_ids = tuple(completion.token_ids)
        assert len(completion.logprobs.logprobs) == len(token_ids), "one log-prob for each token"
        finished = token_ids[-1:] == (self._end_id,)
        visible_ids = token_ids[:-1] if finished else token_ids
        return Response(
            token_ids=token_ids,
            logprobs=np.array(completion.logprobs.logprobs, dtype=np.float32),
            text=self._opening
            + self._tokenizer.decode(visible_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            finished=finished,
            spans=version_spans(completion, version),
        )


class _Restarted(Exception):
    """The group starts anew, under weights that were pushed meanwhile."""


def _vllm_prompt(
    prompt_ids: Sequence[int], clip: Clip, version: int, vision_version: int, spec: qwen_vl.VisionSpec
) -> dict[str, Any]:
    metadata = {
        # Qwen2.5-VL: vLLM divides the temporal patch size by fps * len(frames_indices) / total_num_frames, so this is
        # the rate of the chosen frames and not of the file. Qwen3-VL: it writes frames_indices / fps as seconds, so
        # that times at one frame a second are exact at any rate, also a variable one.
        "fps": 1.0 if spec.writes_times else clip.sample_fps,
        "total_num_frames": len(clip.frames),
        "frames_indices": clip.times_s.tolist(),
        "duration": clip.duration_s,
        "video_backend": "museg_ray",
        "do_sample_frames": False,
    }
    return {
        "prompt_token_ids": without_outer_marks(prompt_ids, spec) if spec.writes_times else list(prompt_ids),
        "multi_modal_data": {"video": [(clip.frames, metadata)]},
        # vLLM then hashes this and not the pixels. Video features are kept under it: those of an older tower or merger
        # must not meet a request of another version.
        "multi_modal_uuids": {"video": [f"{clip.key}@{vision_version}"]},
        # Without do_resize False small frames are blown up to the processor's least size.
        "mm_processor_kwargs": {"do_resize": False, "do_sample_frames": False},
        # Keys and values of one version must not meet a request of another.
        "cache_salt": str(version),
    }


def version_spans(completion: "CompletionOutput", version: int) -> tuple[VersionSpan, ...]:
    """Which weights sampled which tokens; empty where all are of `version`, that the group was begun with.

    Raises:
        WeightSyncError: vLLM does not tell of every token, or tells of older weights: importance weights would compare
            with a policy that no token was sampled from.
    """
    spans = tuple(VersionSpan(int(span.version), span.end - span.start) for span in completion.weight_versions or ())
    num_tokens = len(completion.token_ids)
    if sum(span.num_tokens for span in spans) != num_tokens or any(span.version < version for span in spans):
        raise WeightSyncError(
            f"{num_tokens} tokens were begun with weights {version}, but vLLM sampled them with {list(spans)}."
        )
    return () if all(span.version == version for span in spans) else spans


def _not_sampled(issue: Issue, error: Exception) -> RolloutError:
    return RolloutError(f"Query {issue.query.query_id} could not be sampled: {reason_of(error)}.")


def reason_of(error: BaseException) -> str:
    """The innermost message: vLLM's outermost error is often an empty one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"

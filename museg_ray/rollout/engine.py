"""The rollout engine: groups of responses from vLLM, each group under exactly one version of the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from museg_ray.config.schema import ModelConfig, RolloutConfig
from museg_ray.errors import RolloutError, WeightSyncError
from museg_ray.model.prompt import without_outer_marks
from museg_ray.model.qwen_vl import (
    FORBIDDEN_LOGIT_BIAS,
    VisionSpec,
    end_token_id,
    forbidden_token_ids,
    load_tokenizer,
    load_vision_spec,
)
from museg_ray.rollout.group_client import GroupClient
from museg_ray.rollout.vllm_setup import start_vllm
from museg_ray.types import ByteArray, Clip, GroundingQuery, Response, ResponseGroup
from museg_ray.weights.blob import VISION, blob_file, frozen_parts

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the responses of one group are drawn."""

    group_size: int
    """Responses (G); 1 when greedy."""
    temperature: float
    """0 is greedy decoding; its log-probs are those of temperature 1."""
    max_completion_tokens: int
    seed: int
    """Same seed, prompt, clip and weights: same group. Different seeds share no random numbers."""

    def __post_init__(self) -> None:
        assert self.temperature > 0 or self.group_size == 1, "greedy responses of one group would all be the same"


class RolloutEngine:
    """One vLLM engine. All methods run on the event loop that `start` ran on.

    Weight versions are numbers that grow with each update; the weights of the model folder are version 0.
    """

    _client_class: ClassVar[type[GroupClient]] = GroupClient
    _vllm_args: ClassVar[Mapping[str, Any]] = {}
    """Engine arguments that differ from those of `vllm_setup`."""

    def __init__(self, llm: "AsyncLLM", tokenizer: PreTrainedTokenizerBase, spec: VisionSpec) -> None:
        self._llm = llm
        self._client = self._client_class(llm)
        self._tokenizer, self._spec = tokenizer, spec
        self._end_id = end_token_id(tokenizer)
        forbidden = forbidden_token_ids(tokenizer, llm.model_config.get_vocab_size())
        self._logit_bias = dict.fromkeys(forbidden, FORBIDDEN_LOGIT_BIAS)
        self._num_running = 0
        self._version = 0
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
        tokenizer, spec = load_tokenizer(model_dir), load_vision_spec(model_dir)
        try:
            # vLLM in no variable: an import error that it keeps holds this frame, so that it would outlive `close`.
            engine = cls(start_vllm(model_dir, model, rollout, **cls._vllm_args), tokenizer, spec)
            await engine._llm.update_weight_version("0")
        except Exception as error:  # vLLM's errors are many and cannot be pickled
            raise RolloutError(f"The rollout engine did not start on {model_dir}: {_reason(error)}.") from None
        return engine

    @property
    def version(self) -> int:
        """Version of the weights that the engine samples from."""
        return self._version

    @property
    def bytes_sent(self) -> int:
        """Bytes of all messages sent to the engine's process so far; weights go by another way."""
        return self._client.bytes_sent

    async def generate(
        self, query: GroundingQuery, prompt_ids: Sequence[int], clip: Clip, sampling: Sampling
    ) -> ResponseGroup:
        """Sample the G responses to one query. They share the pixels, sent to the engine's process once, one pass of
        the vision tower, and the prompt's keys and values (on a CPU in whole blocks of 128 tokens).

        Args:
            prompt_ids: the chat prompt with ONE video placeholder, from `chat_prompt_ids`.
            clip: its frames are taken as they are.

        Raises:
            RolloutError: vLLM refused the request or failed.
            WeightSyncError: the engine has no complete weights, or the weights changed while it sampled.
        """
        if not self._has_weights:
            raise WeightSyncError(
                f"Query {query.query_id} cannot be sampled: the update that followed weights {self._version} is not "
                "finished or failed; push new weights first."
            )
        version = self._version
        params = [self._sampling_params(sampling, index) for index in range(sampling.group_size)]
        prompt = _vllm_prompt(prompt_ids, clip, version, self._spec)
        self._num_running += 1
        try:
            outputs = await self._client.sample(prompt, params)
        except Exception as error:  # vLLM's errors are many and cannot be pickled
            raise RolloutError(f"Query {query.query_id} could not be sampled: {_reason(error)}.") from None
        finally:
            self._num_running -= 1
        completions = [output.outputs[0] for output in outputs]
        for completion in completions:
            _check_version(completion, version, query.query_id)
        return ResponseGroup(
            query=query,
            clip_key=clip.key,
            clip_duration_s=clip.duration_s,
            prompt_ids=tuple(outputs[0].prompt_token_ids),
            responses=tuple(self._response(completion) for completion in completions),
            weight_version=version,
        )

    async def update_weights(self, version: int, blob: ByteArray) -> int:
        """Replace the weights by those of a blob; frozen parts that it leaves out stay. Nothing may be generating.

        After a failed update the engine refuses to sample until another one succeeds.

        Args:
            version: above the present one: cached keys and values are told apart by it.
            blob: from `weights_to_blob`.

        Returns:
            The version that the engine's process now reports.

        Raises:
            WeightSyncError: groups are being sampled, the version is not new, or the update failed.
        """
        if self._num_running:
            raise WeightSyncError(
                f"Weights {version} were pushed while {self._num_running} groups were being sampled; wait for those."
            )
        if version <= self._version:
            raise WeightSyncError(f"Weights {version} were pushed to an engine that is at {self._version} already.")
        self._has_weights = False
        try:
            confirmed = await self._transfer(version, blob)
        except Exception as error:  # vLLM's errors are many and cannot be pickled
            raise WeightSyncError(f"Weights {version} could not be loaded: {_reason(error)}.") from None
        self._version, self._has_weights = version, True
        return confirmed

    def close(self) -> None:
        """End the engine's process; running requests fail."""
        self._llm.shutdown()
        del self._client, self._llm  # now, and not while the interpreter ends, where its destructor fails

    async def _transfer(self, version: int, blob: ByteArray) -> int:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        with blob_file(blob) as path:
            frozen = frozen_parts(path)
            await self._llm.start_weight_update()
            await self._llm.update_weights(WeightTransferUpdateRequest({"path": str(path)}))
            await self._llm.finish_weight_update(str(version))
        if not frozen >= VISION:
            # vLLM keeps video features over an update; these come from the old weights of tower or merger.
            await self._llm.reset_encoder_cache()
        return int(await self._llm.get_weight_version())

    def _sampling_params(self, sampling: Sampling, index: int) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_completion_tokens,
            seed=sampling.seed * sampling.group_size + index,
            logit_bias=self._logit_bias,
            # The chat's end token alone, whatever the tokenizer calls its end of sequence.
            ignore_eos=True,
            stop_token_ids=[self._end_id],
            logprobs=0,  # of the sampled token and no other
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _response(self, completion: "CompletionOutput") -> Response:
        token_ids = tuple(completion.token_ids)
        assert len(completion.logprobs.logprobs) == len(token_ids), "one log-prob for each token"
        finished = token_ids[-1:] == (self._end_id,)
        visible_ids = token_ids[:-1] if finished else token_ids
        return Response(
            token_ids=token_ids,
            logprobs=np.array(completion.logprobs.logprobs, dtype=np.float32),
            text=self._tokenizer.decode(visible_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            finished=finished,
        )


def _vllm_prompt(prompt_ids: Sequence[int], clip: Clip, version: int, spec: VisionSpec) -> dict[str, Any]:
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
        "multi_modal_uuids": {"video": [clip.key]},  # vLLM then hashes the key and not the pixels
        # Without do_resize False small frames are blown up to the processor's least size.
        "mm_processor_kwargs": {"do_resize": False, "do_sample_frames": False},
        # Keys and values of one version must not meet a request of another.
        "cache_salt": str(version),
    }


def _check_version(completion: "CompletionOutput", version: int, query_id: str) -> None:
    """A rollout never uses weights older than the version it is tagged with, nor newer ones: the learner's
    importance ratios would compare with a policy that no token was sampled from."""
    versions = {span.version for span in completion.weight_versions or ()}
    if versions - {str(version)} or (completion.token_ids and not versions):
        raise WeightSyncError(
            f"Query {query_id} was tagged with weights {version}, but vLLM sampled it with {sorted(versions)}."
        )


def _reason(error: BaseException) -> str:
    """The innermost message: vLLM's outermost error is often an empty one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"

"""The configuration tree. Every field has its unit and meaning under it; YAML files live in `configs/`.

`learning.py` holds the subtrees `algo`, `learner` and `checkpoint`.

`load.py` reads YAML and `key=value` overrides into `Config`. What a single value may be stands in its type, by
`rules.py`; `validate.py` holds the checks of what values must be to one another.
"""

import os
from dataclasses import dataclass, field
from typing import Annotated

from museg_ray.config.learning import AlgoConfig, CheckpointConfig, LearnerConfig
from museg_ray.config.rules import SHARE, Amount, Count, CountFrom1, Finite, Positive, Share, at_least, one_of


@dataclass
class RunConfig:
    dir: str = "runs"
    """Folder that holds run folders."""
    name: str = ""
    """Name of this run's folder; empty: the config's name and the time."""
    seed: Count = 0
    """Seeds query order and sampling. The corpus has a seed of its own."""
    resume: bool = False
    """True: a run folder `name` that is there already is gone on with, from its last checkpoint; one that is not is
    begun. So the same command starts a run and takes it up again."""
    restart: bool = False
    """True: a run in the folder `name` that would be refused, since it is there already or, with `resume`, has nothing
    to go on from, is moved aside as a whole to `name.aside`, and the run begins anew."""
    accept_changed_data: bool = False
    """True: a run is resumed although training or held-out queries, or files of the model's folder, are no longer those
    of the run so far. What was drawn up to the checkpoint stays drawn."""


@dataclass
class ModelConfig:
    path: str = "museg-tiny"
    """Hugging Face folder of a Qwen2.5-VL or Qwen3-VL, or `museg-tiny` for the one in the package."""
    dtype: Annotated[str, one_of("float32", "bfloat16")] = "bfloat16"
    """`float32` or `bfloat16`: weights and arithmetic of rollout and learner."""
    max_tokens: int = 4096
    """Prompt and completion together, in tokens; the engine's model length."""


@dataclass
class SyntheticConfig:
    """The rendered corpus of the demo. `num_train_videos: 0` means the run brings its own annotations."""

    dir: str = "data/synthetic"
    """Where the corpora lie; one subfolder for each combination of settings, rendered when absent."""
    num_train_videos: int = 0
    num_heldout_videos: int = 0
    seed: int = 0


@dataclass
class DataConfig:
    train: str = ""
    """Queries to train on: MUSEG's .jsonl, or the .parquet of `museg data import`; set by itself when the corpus is
    synthetic."""
    heldout: str = ""
    """Queries for evaluation before and after, .jsonl or .parquet; shares no video with `train`."""
    video_root: str = ""
    """Folder or URL that relative video paths start from; empty: the root that a .parquet's import used, or a .jsonl's
    folder."""
    multi_segment_share: Share = 0.5
    """Share of drawn queries whose ground truth has several segments, 0 to 1."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """How often each source is drawn, against the others, e.g. `{charades: 1, hacs: 2}`; 0 leaves it out.
    Empty: every query as often as any other."""
    curriculum: str = ""
    """Import path of a difficulty of your own, e.g. `my_package.difficulty`; see docs/data.md. Empty: random order."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass
class VideoConfig:
    fps: Positive = 2.0
    """Frames a second to select."""
    max_frames: Annotated[int, at_least(4)] = 448
    """At most this many frames a clip; longer videos are sampled more thinly."""
    min_pixels: int = 12544
    """Least pixels a frame (16 * 28 * 28)."""
    max_pixels: int = 602112
    """Most pixels a frame (768 * 28 * 28)."""
    total_pixels: CountFrom1 = 2809856
    """Pixel budget of a clip over its frame pairs (3584 * 28 * 28): bounds the video tokens."""
    size_multiple: CountFrom1 = 28
    """Height and width of frames are multiples of it, pixels: patch size x merge size of the model, 28 for Qwen2.5-VL
    and 32 for Qwen3-VL."""
    pair_tokens: Count = 0
    """Tokens a frame pair that the model's prompt has beside those of the pixels. They count in `total_pixels`, and
    fewer frames are selected where there is no room for all. 0 for Qwen2.5-VL; 11 for Qwen3-VL, which writes each
    pair's time."""
    sampling: Annotated[str, one_of("time", "qwen_vl_utils")] = "time"
    """Which frames: `time` (evenly spread in time) or `qwen_vl_utils` (the very frames of qwen-vl-utils 0.0.14, evenly
    spread by number, whose times are off by up to half a sampling period)."""
    decoder: Annotated[str, one_of("pyav", "decord")] = "pyav"
    """`pyav` or `decord`, which gives the same frames of ordinary files, refuses the kinds that it is known to read
    wrongly, and tells of less damage (docs/video.md)."""
    store_dir: str = "data/frames"
    """Folder of prepared clips, shared by all processes that see it. Each machine has its own, or all share one."""
    store_gib: Positive = 20.0
    """Most that the prepared clips take on disk; the longest unused leave first. A clip is at most 17 MiB at MUSEG's
    settings."""
    download_gib: Positive = 20.0
    """Most that the local copies of remote videos take on disk, beside the clips."""
    store_mode: Annotated[str, one_of("private", "group", "shared")] = "private"
    """Who may use what is made in `store_dir`, whatever the umask: `private` (its owner alone: folders 0700, files
    0600), `group` (also the folder's group: 2770, 0660) or `shared` (everyone: 0777, 0666). What is there already keeps
    its mode."""
    steps_ahead: Count = 2
    """Optimiser steps whose clips are prepared before they are needed."""
    ahead_gib: Amount = 2.0
    """Most that clips prepared ahead, and not yet used, take."""
    num_actors: CountFrom1 = 1
    """Clip preparation actors."""
    num_cpus: Amount = 1.0
    """CPUs each preparation actor reserves in Ray."""
    deadline_s: Positive = 60.0
    """A video that takes longer to read is given up; its reader is killed and replaced. Another process that reads it
    at the time is waited for as long before."""
    deadline_per_video_s: Amount = 0.2
    """Seconds added to the deadline for each second that the video lasts."""
    reader_videos: CountFrom1 = 200
    """A reader process is replaced after so many videos: decoders leak."""
    reader_gib: Positive = 2.0
    """A reader process that holds more memory is replaced; in the middle of a video, at twice as much, killed."""


@dataclass
class AutoscaleConfig:
    """Between how many members a crew sizes itself; `max: 0`: it does not."""

    min: int = 1
    max: int = 0


@dataclass
class RolloutConfig:
    num_actors: CountFrom1 = 1
    """At the start; `museg scale` and `autoscale` change it while the run goes on."""
    autoscale: AutoscaleConfig = field(default_factory=AutoscaleConfig)
    """More actors while the learner waits for groups, fewer while complete groups wait for the learner."""
    num_cpus: Amount = 1.0
    """CPUs each rollout actor reserves in Ray."""
    num_gpus: float = 0.0
    """GPUs each rollout actor reserves in Ray; 0 on a CPU-only machine."""
    num_threads: int = 0
    """Compute threads of each engine on a CPU; 0: the engine's own choice."""
    group_size: Annotated[int, at_least(2)] = 8
    """Responses a query (G)."""
    temperature: float = 0.9
    """Above 0, at most 2."""
    max_completion_tokens: int = 1024
    """Longest completion in tokens."""
    max_num_seqs: int = 64
    """Sequences an engine decodes at once."""
    kv_cache_gib: float = 1.0
    """Key-value cache of an engine on a CPU, GiB."""
    gpu_memory_utilization: float = 0.85
    """Share of a GPU's memory for the engine."""
    enforce_eager: bool = False
    """True skips graph capture: slower steps, faster start."""
    start_timeout_s: float = 600.0
    """An engine that is not ready so long after its process is up is started anew; the second time in a row, before all
    have served or while none does, it ends the run."""
    request_timeout_s: float = 1800.0
    """An actor that has not done a group so long after it took it is taken for stuck and replaced."""
    on_push: Annotated[str, one_of("continue", "restart", "wait")] = "continue"
    """What becomes of groups under way when weights are pushed (`train.max_staleness` above 0): they `continue` under
    the new weights with the keys and values of the old ones, they `restart` from their prompt, or the push has to
    `wait` for them while new groups are held back."""


@dataclass
class WeightsConfig:
    """How weights get from the learner to the engines."""

    dir: str = ""
    """Folder on a fast disk of every machine for the files that ranks write and engines map, two of the policy's size;
    empty: in the machine's memory."""
    timeout_s: float = 600.0
    """Of each phase of a push: a rank that has not written so long after it was asked, or an engine that has not
    loaded, is taken for stuck and replaced."""


@dataclass
class FleetConfig:
    """How actors that are lost are replaced: those of rollouts, rewards and clips, each crew by itself."""

    max_restarts: Count = 8
    """A crew that loses more members within `restart_window_s` ends the run with the reasons."""
    restart_window_s: Positive = 600.0
    backoff_s: Amount = 1.0
    """Pause before the second restart of a window; it doubles with each, up to a minute. The first has none."""
    ping_every_s: Positive = 1.0
    """How often each member is asked whether it lives."""
    ping_timeout_s: Positive = 30.0
    """A member that does not answer for so long is taken for stuck and replaced."""
    place_timeout_s: Positive = 3600.0
    """A run begins once the cluster has room for one member of each crew and all learner ranks at once; one that finds
    none for so long ends. Further members join whenever there is room."""


@dataclass
class BrevityConfig:
    """Shape of the reward `brevity`: 1 up to `free_chars` characters, 0 from `max_chars` on, linear between."""

    free_chars: int = 2000
    max_chars: int = 6000


@dataclass
class RewardConfig:
    num_actors: CountFrom1 = 1
    num_cpus: Amount = 1.0
    """CPUs each reward actor reserves in Ray."""
    global_matching: Annotated[str, one_of("iou", "f1")] = "iou"
    """r_G: `iou` of the covered time (the paper) or its `f1` (the published code's measure)."""
    local_matching: Annotated[str, one_of("sequential", "maximum", "none")] = "sequential"
    """r_L: `sequential` (the paper), `maximum` (best assignment by NGIoU) or `none` (r_M is then r_G)."""
    timestamp: Annotated[str, one_of("all", "fraction")] = "all"
    """r_T: `all` times of the answer must be cited (1 or 0), or the cited `fraction` of them counts."""
    wasserstein_beta: Positive = 3.0
    """Steepness of the reward `wasserstein`: exp(-beta W1 / covered seconds)."""
    brevity: BrevityConfig = field(default_factory=BrevityConfig)
    custom: str = ""
    """Import path of a reward of your own, e.g. `my_package.my_reward`; see docs/rewards.md for its signature."""
    response_timeout_s: float = 10.0
    """A response that is not scored by then is retried once by itself, then quarantined."""


FURTHER_REWARDS = ("tiou", "recall", "wasserstein", "brevity", "custom")
"""The rewards beyond the paper's, as `RewardWeights` names them."""


@dataclass
class RewardWeights:
    """Weights of the reward's parts in one phase. A further reward (from `tiou` on) is computed where it has one."""

    matching: Finite = 1.0
    """r_M, how well the segments match."""
    timestamp: Finite = 0.0
    """r_T, the reasoning cites the times of the answer."""
    format: Finite = 1.0
    """r_F, one think block, then one valid answer block."""
    tiou: Finite = 0.0
    """Plain temporal IoU of the covered time, alone."""
    recall: Finite = 0.0
    """R1@t as steps: a third each for IoU of at least 0.3, 0.5 and 0.7."""
    wasserstein: Finite = 0.0
    """Soft distance on the time axis."""
    brevity: Finite = 0.0
    """Shape by `rewards.brevity`."""
    custom: Finite = 0.0
    """The reward that `rewards.custom` names."""


@dataclass
class PhaseConfig:
    """One stretch of training with its own reward, prompt and data (paper section 4.3)."""

    name: str = ""
    steps: Count = 0
    """Optimiser steps."""
    prompt: str = "{question}"
    """User message; `{question}` is replaced."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    train: str = ""
    """Queries of this phase, .jsonl or .parquet; empty: `data.train`."""
    multi_segment_share: Annotated[float | None, SHARE] = None
    """Share of this phase's queries with several true segments; null: `data.multi_segment_share`."""
    fresh_optimizer: bool = False
    """Forget the optimiser's moments at the start of this phase."""
    fresh_schedule: bool = False
    """Start the learning-rate schedule anew: warm-up again, then over this phase and those after it that go on."""
    fresh_reference: bool = False
    """Take the policy at the start of this phase as the new KL reference."""


@dataclass
class TrainConfig:
    prompts_per_step: CountFrom1 = 14
    """Queries, so groups, of one optimiser step."""
    phases: list[PhaseConfig] = field(default_factory=list)
    max_staleness: Count = 0
    """How many updates older than the learner's weights a trained token's may be (k). 0: rollouts and learner take
    turns (the paper); 1: they overlap; more: longer queues between them. Above 0 `algo.correction` must be on."""
    refill: Annotated[str, one_of("none", "zero_variance")] = "none"
    """`zero_variance`: a group whose rewards are all equal teaches nothing; it is left out, and its place in the step
    is given to another query. `none`: it stays in the update."""
    max_refills: Count = 8
    """Most places of a step that are given away so."""
    max_logprob_gap: float = 0.08
    """The run fails when the mean gap between rollout and learner log-probs of a step exceeds this (nats), over the
    responses that were sampled from the learner's own weights. In float32 it stays under 1e-5: set 1e-3 there. In
    bfloat16 0.005 to 0.03 is expected, and smaller faults than this limit are left to the alarm `gap_grows`."""


@dataclass
class AlarmConfig:
    """When a run warns that it goes wrong.

    What is compared is a mean over the last `window_steps` steps of a phase that have the number: a step without a
    multi-segment query has no share of single-segment answers, and one with a single query cannot tell videos apart.
    """

    window_steps: Count = 20
    """Steps of a window; no alarm is raised before a phase has so many. 0 turns all alarms off."""
    max_single_segment_share: Share = 0.9
    """Share of the answers to multi-segment queries that name one segment."""
    min_timestamp: Amount = 0.05
    """Mean r_T, in phases that weigh it."""
    matching_drop: Amount = 0.05
    """Fall of the mean r_M below its mean over the last window of the phase before."""
    min_reward_std: Amount = 0.05
    """Standard deviation of the total reward within a group; on the scale of the phase's weights."""
    max_truncated_share: Share = 0.2
    """Share of the responses cut by the length limit."""
    format_drop: Amount = 0.1
    """Fall of the mean r_F below its best window so far."""
    max_same_answer_share: Share = 0.5
    """Share of a step's valid answers that are one and the same, given for different videos."""
    max_full_length_share: Share = 0.5
    """Share of valid answers that cover at least 90 % of a video whose truth does not."""
    max_gap_factor: Amount = 5.0
    """A step's mean log-prob gap over the median of those before it in the window."""
    min_gap: Amount = 1e-4
    """Nats; a smaller gap is no alarm, whatever it was before: in float32 it is rounding."""
    max_skipped_updates: Amount = 0.0
    """Updates of a step that were skipped because loss or gradient was not finite. Looked at in every single step."""


@dataclass
class EvaluationConfig:
    num_queries: int = 0
    """Held-out queries, spread over the file; 0: all."""
    prompt: str = ""
    """User message of the evaluation; empty: the last phase's. See `Config.evaluation_prompt`."""
    max_completion_tokens: int = 512


@dataclass
class Config:
    """The whole tree."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.train.phases)

    def train_file(self, phase: PhaseConfig) -> str:
        """The annotation file that a phase draws its queries from."""
        path = phase.train or self.data.train
        return os.path.normpath(path) if path else ""

    def multi_segment_share(self, phase: PhaseConfig) -> float:
        """Share of multi-segment queries among those that a phase draws."""
        share = phase.multi_segment_share
        return self.data.multi_segment_share if share is None else share

    @property
    def evaluation_prompt(self) -> str:
        """What evaluation and `museg ground` ask: `evaluation.prompt`, else the last phase's, else the question."""
        phases = self.train.phases
        return self.evaluation.prompt or (phases[-1].prompt if phases else "{question}")

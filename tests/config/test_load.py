import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from museg_ray.config.load import load_config, save_config
from museg_ray.errors import ConfigError
from museg_ray.video.frames import choose_num_frames, clip_size

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load_config(path).total_steps > 0


def test_museg_7b_has_the_papers_numbers() -> None:
    config = load_config(CONFIGS / "museg_7b.yaml")
    assert (config.rollout.group_size, config.train.prompts_per_step) == (8, 14)
    assert (config.learner.learning_rate, config.algo.beta, config.rollout.temperature) == (1.5e-6, 0.04, 0.9)
    assert (config.video.max_frames, config.video.total_pixels) == (448, 3584 * 28 * 28)
    assert [phase.steps for phase in config.train.phases] == [400, 500]
    assert [phase.weights.timestamp for phase in config.train.phases] == [1.0, 0.0]


def test_museg_7b_corrects_for_engines_that_round_differently_and_waits_for_slow_storage() -> None:
    config = load_config(CONFIGS / "museg_7b.yaml")
    assert config.algo.correction == "truncate"
    assert config.rollout.start_timeout_s > 5 * 16.6e9 / 100e6


def test_museg_7b_has_room_for_qwen3_with_what_its_comment_sets() -> None:
    path = CONFIGS / "museg_7b.yaml"
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("#   video.size_multiple=32")]
    config = load_config(path, line[1:].split())
    video = config.video
    assert choose_num_frames(1000.0, 30_000, video) == 448
    most_tokens = video.total_pixels // video.size_multiple**2
    height, width = clip_size(1080, 1920, 448, video)
    assert 224 * (height * width // 32**2 + video.pair_tokens) <= most_tokens
    assert config.model.max_tokens - config.rollout.max_completion_tokens - most_tokens > 1000, "for the question"
    assert most_tokens + config.rollout.max_completion_tokens > 8192


def test_an_override_wins_over_the_file() -> None:
    assert load_config(CONFIGS / "demo.yaml", ["rollout.num_actors=5"]).rollout.num_actors == 5


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("rollout: {num_actor: 2}\n")
    with pytest.raises(ConfigError, match=r"typo\.yaml: unknown key 'rollout\.num_actor'\. Did you mean 'num_actors'"):
        load_config(file)


def test_an_unknown_key_inside_a_phase_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("train: {phases: [{step: 3}]}\n")
    with pytest.raises(ConfigError, match=r"train\.phases\[0\]\.step"):
        load_config(file)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learner.learning_rate=fast", "learner.learning_rate"),
        ("model.dtype=float16", "'float32', 'bfloat16'"),
        ("rollout.group_size=1", "must be at least 2"),
        ("data.multi_segment_share=1.5", "between 0 and 1"),
        ("rollout.max_completion_tokens=512", "leaves no room"),
        ("train.phases=[]", "train.phases is empty"),
        ("rollout.num_actors", "not of the form key=value"),
        ("alarms.window_steps=-1", "alarms.window_steps is -1; it must be at least 0"),
        ("alarms.min_timestamp=.nan", "alarms.min_timestamp is nan"),
        ("alarms.matching_drop=-5", "alarms.matching_drop is -5"),
        ("rewards.num_cpus=-1", "rewards.num_cpus is -1"),
        ("rewards.response_timeout_s=.inf", "rewards.response_timeout_s is inf"),
        ("train.phases=[{steps: 0}]", "0 steps together"),
        ("alarms.max_truncated_share=20", "alarms.max_truncated_share is 20"),
        ("rewards.local=none", "unknown key 'rewards.local'. Did you mean 'local_matching'"),
        ("rewards.global_matching=giou", "'iou', 'f1'"),
        ("rewards.timestamp=any", "'all', 'fraction'"),
        ("rewards.custom=my.reward", "no phase weighs it; set weights.custom"),
        ("rewards.response_timeout_s=0", "must lie between 0.01"),
        ("rewards.brevity.free_chars=9000", "free_chars < max_chars"),
        ("train.phases=[{steps: 1, weights: {custom: 1}}]", "rewards.custom is empty"),
        ("train.phases=[{steps: 1, weights: {matching: 0, format: 0}}]", r"phases\[0\]\.weights are all 0"),
        ("train.phases=[{steps: 1, weights: {matching: .nan}}]", r"phases\[0\]\.weights\.matching is nan"),
        ("train.phases=[{steps: 1, multi_segment_share: 2}]", r"phases\[0\]\.multi_segment_share is 2"),
        ("train.phases=[{name: a, steps: 1}, {name: a, steps: 1}]", r"phases\[0\]\.name 'a' is not its alone"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(CONFIGS / "demo.yaml", [override])


TEXTS = [
    "1.10",
    "1e5",
    "007",
    "no",
    "null",
    "~",
    "0x1F",
    "1_000",
    "2026-01-01",
    "1:30",
    ".inf",
    "${oops} {question}",
    "x=y",
]


@pytest.mark.parametrize("text", TEXTS)
def test_invariant_a_text_is_kept_as_it_is_written(text: str, tmp_path: Path) -> None:
    """In a file and as an override, within a list, and written and read back."""
    file = tmp_path / "texts.yaml"
    phases = f"[{{name: {text if '{' not in text else repr(text)}, steps: 1, prompt: '{{question}} {text}'}}]"
    file.write_text(f"run: {{dir: '{text}'}}\ntrain: {{phases: {phases}}}\nevaluation:\n  prompt: {text}\n")
    loaded = load_config(file, [f"run.name={text}"])
    save_config(loaded, file)
    for config in (loaded, load_config(file)):
        (phase,) = config.train.phases
        assert [config.run.name, config.run.dir, config.evaluation.prompt, phase.name] == [text] * 4
        assert phase.prompt == f"{{question}} {text}"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.seed=007", 7),
        ("run.seed='7'", 7),
        ("run.name=", ""),
        ("run.name='a #b'", "a #b"),
        ("run.name=a #b", "a #b"),
        ("run.name=#b", "#b"),
        ("evaluation.prompt=Find\n\n{question}", "Find\n\n{question}"),
        ("evaluation.prompt='{question}'", "{question}"),
        ("run.resume=true", True),
        ("run.resume=off", False),
        ("learner.learning_rate=1e-6", 1e-6),
        ("learner.learning_rate=3", 3.0),
        ("learner.vision_learning_rate=null", None),
        ("learner.vision_learning_rate=1E-6", 1e-6),
        ("learner.adam_betas=[0.5, 1e-1]", (0.5, 0.1)),
        ("data.source_weights={charades: 1, hacs: 2}", {"charades": 1.0, "hacs": 2.0}),
        ("data.source_weights.charades=2", {"charades": 2.0}),
    ],
)
def test_every_other_value_is_what_its_field_holds(override: str, value: object) -> None:
    config: Any = load_config(CONFIGS / "demo.yaml", [override])
    section, name = override.partition("=")[0].split(".")[:2]
    found = getattr(getattr(config, section), name)
    assert (found, type(found)) == (value, type(value))


def test_a_phase_takes_over_what_another_one_has(tmp_path: Path) -> None:
    file = tmp_path / "alike.yaml"
    file.write_text("train: {phases: [&one {name: a, steps: 2, weights: {timestamp: 1}}, {<<: *one, name: b}]}\n")
    first, second = load_config(file).train.phases
    assert first != second == replace(first, name="b")


def test_a_phase_has_its_own_data_or_that_of_the_run() -> None:
    phases = "train.phases=[{name: a, steps: 1}, {name: b, steps: 1, train: b.jsonl, multi_segment_share: 0.25}]"
    config = load_config(CONFIGS / "demo.yaml", [phases, "data.train=a.jsonl", "data.multi_segment_share=0.5"])
    assert [config.train_file(phase) for phase in config.train.phases] == ["a.jsonl", "b.jsonl"]
    assert [config.multi_segment_share(phase) for phase in config.train.phases] == [0.5, 0.25]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_config("nowhere.yaml")


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("rollout: [1, 2\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        load_config(file)


def test_a_saved_config_loads_equal(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo.yaml", ["run.seed=7"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def refusal_of(content: str | bytes, tmp_path: Path) -> str:
    file = tmp_path / "hostile.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=r"hostile\.yaml") as refused:
        load_config(file)
    assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_that_is_not_utf8_is_refused(encoding: str, tmp_path: Path) -> None:
    assert "is not UTF-8 text" in refusal_of("run: {name: café}".encode(encoding), tmp_path)


def test_a_byte_order_mark_is_none_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "marked.yaml"
    file.write_text((CONFIGS / "demo.yaml").read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert load_config(file) == load_config(CONFIGS / "demo.yaml")


@pytest.mark.parametrize("depth", [60, 5_000, 500_000])
@pytest.mark.parametrize("opened", ["[", "{a: ", "- "])
def test_a_file_that_is_nested_deeply_is_refused_before_the_loader_recurses(
    depth: int, opened: str, tmp_path: Path
) -> None:
    assert "nested more than 50 deep" in refusal_of((opened * depth)[: 1 << 20], tmp_path)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("run: {name: %s}", "run.name is a list; expected a text"),
        ("train: {phases: %s}", "phases[0] must hold key: value pairs, found a list"),
        ("data: {source_weights: {a: %s}}", "source_weights.a is a list; expected a number"),
        ("a: %s", "unknown key 'a'"),
    ],
)
def test_aliases_that_multiply_are_refused(field: str, says: str, tmp_path: Path) -> None:
    levels = [f"&{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise("abcdefghi")]
    assert says in refusal_of(field % f"[&a [x, x], {', '.join(levels)}]", tmp_path)


def test_a_file_of_50_mb_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    with file.open("wb") as sparse:
        sparse.truncate(50_000_000)
    with pytest.raises(ConfigError, match=r"long\.yaml has 50,000,000 bytes, of at most 1,048,576"):
        load_config(file)


@pytest.mark.parametrize("content", ["run: {name: a\0b}", 'run: {name: "a\\0b"}'])
def test_a_nul_is_refused_as_itself_and_as_an_escape(content: str, tmp_path: Path) -> None:
    assert "#x0000" in (text := refusal_of(content, tmp_path)) or "no NUL in it" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("3", "must hold key: value pairs"),
        (f"run: {{seed: {'9' * 5000}}}", "…'; expected a whole number"),
        ("run: {seed: 0.5}", "run.seed is '0.5'; expected a whole number"),
        ("run: {seed: null}", "run.seed is 'null'; expected a whole number"),
        ("run: {resume: 2}", "run.resume is '2'; expected true or false"),
        ("run: {name: {question}}", "run.name is key: value pairs; expected a text"),
        ("run: 3", "run must hold key: value pairs, found '3'"),
        ("train: {phases: {name: a}}", "train.phases is key: value pairs; expected a list"),
        ("learner: {adam_betas: [0.9]}", "learner.adam_betas is a list; expected a list of two"),
        ("learner: {adam_betas: [0.9, high]}", "learner.adam_betas is 'high'; expected a number"),
        ("data: {source_weights: [1]}", "data.source_weights is a list; expected key: value pairs"),
        ("run: {seed: 1, name: a, seed: 2}", "the key 'seed' is there twice"),
        ("run: {<<: [1]}", "<< takes one map"),
    ],
)
def test_a_value_that_nothing_can_hold_is_refused(content: str, says: str, tmp_path: Path) -> None:
    assert says in refusal_of(content, tmp_path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe that nobody writes to would hold the command for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"{path}: It is no regular file"):
            load_config(path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run.name=\udcff", "surrogates not allowed"),
        ("run.name=" + "[" * 5_000, "nested more than 50 deep"),
        ("run.name=" + "[" * 100_000, "nested more than 50 deep"),
        ("a." * 5_000 + "b=3", "unknown key 'a'"),
        ("run.name=a\0b", "control characters"),
        ("evaluation.prompt={question}", "evaluation.prompt is key: value pairs; expected a text .*in quotes"),
    ],
)
def test_a_hostile_override_is_refused_and_quoted_in_part(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        load_config(CONFIGS / "demo.yaml", [override])
    assert len(str(refused.value)) < 400

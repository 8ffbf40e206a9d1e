"""A Hugging Face folder out of a checkpoint, without the run that wrote it: no Ray, no DeepSpeed, no GPU."""

from pathlib import Path

import torch

from museg_ray.config.load import MODEL_CONFIG_FILE, save_config
from museg_ray.config.schema import Config
from museg_ray.errors import CheckpointError, ResourceError
from museg_ray.model.qwen_vl import load_policy, resolve_model_path, save_policy
from museg_ray.model.shards import Shards


def export_checkpoint(learner_dir: Path, config: Config, out_dir: Path) -> int:
    """Write what stock transformers and stock vLLM load: weights in `model.dtype`, tokenizer and processor files, and
    the run's configuration beside them. Adapters are merged.

    Args:
        learner_dir: `learner` folder of a checkpoint that was verified.
        config: the checkpoint's; names the model folder that holds what was not trained.
        out_dir: new or empty; appears whole or not at all.

    Returns:
        Bytes written.

    Raises:
        CheckpointError: its weights are not those of the model folder, by name or shape.
        ModelError: the model folder cannot be used.
        ResourceError: `out_dir` holds something, or cannot be written.
    """
    out_dir = out_dir.absolute()
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ResourceError(f"{out_dir} is there and not empty; an export never overwrites. Choose another folder.")
    model_dir = resolve_model_path(config.model.path)
    model = load_policy(model_dir, getattr(torch, config.model.dtype))
    shards = Shards(learner_dir)
    trained = {name: shards.tensor("weights", name) for name in shards.names("weights")}
    base = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    if config.learner.lora.rank > 0:
        from museg_ray.model.lora import merge_adapters  # peft is needed for adapters alone

        weights = dict(merge_adapters(base, trained, config.learner.lora))
    else:
        weights = _replaced(dict(base), trained, learner_dir)
    try:
        save_policy(model, model_dir, out_dir, weights)
        save_config(config, out_dir / MODEL_CONFIG_FILE)
    except OSError as error:
        raise ResourceError(f"{out_dir} cannot be written: {error.strerror or error}.") from error
    return sum(path.stat().st_size for path in out_dir.iterdir())


def _replaced(
    weights: dict[str, torch.Tensor], trained: dict[str, torch.Tensor], learner_dir: Path
) -> dict[str, torch.Tensor]:
    """The model's weights with the trained ones in their place, in the model's dtype."""
    for name, tensor in trained.items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{learner_dir} holds {name} {list(tensor.shape)}, which the model folder of its run has not. Is it "
                "still the folder that the run began with (model.path in the checkpoint's config.yaml)?"
            )
        weights[name] = tensor.to(weights[name].dtype)
    return weights

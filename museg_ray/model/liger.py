"""Optional fused kernels of liger-kernel in the learner's copy of a model (GPU)."""

from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from museg_ray.errors import ConfigError

_KERNELS = {"qwen2_5_vl": "apply_liger_kernel_to_qwen2_5_vl", "qwen3_vl": "apply_liger_kernel_to_qwen3_vl"}


def use_liger(model: PreTrainedModel) -> None:
    """Replace norms and gated layers by fused ones, in place. Nothing else: rotary positions and the loss are ours.

    Written for liger-kernel 0.8.

    Raises:
        ConfigError: there is no GPU, or liger-kernel is not installed.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "learner.liger is true, but the learner has no GPU, where alone its kernels run; set it to false."
        )
    if find_spec("liger_kernel") is None:
        raise ConfigError(
            "learner.liger is true, but liger-kernel is not installed; install the extra `liger` of museg_ray, or set "
            "it to false."
        )
    from liger_kernel import transformers as liger  # type: ignore[import-not-found]  # optional

    apply = getattr(liger, _KERNELS[model.config.model_type])
    apply(rope=False, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=True, swiglu=True, model=model)

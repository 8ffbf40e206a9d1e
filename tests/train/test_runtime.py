import pytest

from museg_ray.config.learning import LearnerConfig
from museg_ray.config.schema import Config, RolloutConfig
from museg_ray.errors import ResourceError
from museg_ray.train.runtime import check_capacity


def test_a_cluster_that_is_too_small_is_refused_with_the_arithmetic() -> None:
    config = Config(rollout=RolloutConfig(num_actors=4, num_gpus=1), learner=LearnerConfig(num_gpus=2))
    with pytest.raises(ResourceError, match=r"reserves 6 GPUs \(4 rollout actors x 1 \+ 1 learner ranks x 2\).*has 4"):
        check_capacity(config, {"CPU": 64, "GPU": 4})


def test_a_cluster_that_is_large_enough_passes() -> None:
    check_capacity(Config(rollout=RolloutConfig(num_actors=4)), {"CPU": 64})

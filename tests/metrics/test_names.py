from museg_ray.config.schema import FURTHER_REWARDS
from museg_ray.metrics import names


def test_every_name_is_in_the_table_with_unit_and_meaning():
    constants = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
    assert constants | set(names.PUSH_PHASES_S.values()) == set(names.METRICS)
    assert all(metric.unit and metric.meaning for metric in names.METRICS.values())


def test_every_alarm_has_one_metric_of_its_own():
    assert len(set(names.ALARMS)) == 9
    assert set(names.ALARMS) == {name for name in names.METRICS if name.startswith("alarm/")}


def test_every_further_reward_has_a_metric():
    assert {f"reward/{name}" for name in FURTHER_REWARDS} <= set(names.METRICS)

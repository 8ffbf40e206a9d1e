import pytest

from museg_ray.data.fit import fit_to_file
from museg_ray.errors import Unfit, UnfitQueryError
from museg_ray.types import GroundingQuery, Segment


def query(*segments: Segment, duration_s: float | None = None) -> GroundingQuery:
    return GroundingQuery("a/1", "v/a.mp4", "q", segments, duration_s)


def test_a_truth_within_its_file_stays() -> None:
    assert fit_to_file(query((1, 2), (3, 5)), 5.0) == (query((1, 2), (3, 5)), [])
    assert fit_to_file(query((1, 5.0000001)), 5.0) == (query((1, 5.0000001)), []), "what floats leave"


def test_a_truth_that_runs_over_the_end_of_its_file_is_cut_and_told() -> None:
    fitted, (finding,) = fit_to_file(query((1, 2), (4, 6)), 5.0)
    assert fitted == query((1, 2), (4, 5))
    assert (finding.rule, finding.amount_s) == ("beyond_file", 1.0)


@pytest.mark.parametrize(
    ("segments", "duration_s", "fault"),
    [
        (((20.0, 28.0),), 28.8, Unfit.BEYOND_FILE),
        (((1.0, 2.0), (6.0, 7.0)), None, Unfit.BEYOND_FILE),
        (((4.9, 6.0),), None, Unfit.BEYOND_FILE),
        (((1230.0, 3000.0),), None, Unfit.OTHER_UNIT),
    ],
)
def test_invariant_a_truth_that_its_file_does_not_have_is_never_trained_on(
    segments: tuple[Segment, ...], duration_s: float | None, fault: Unfit
) -> None:
    with pytest.raises(UnfitQueryError, match=rf"Query a/1 does not fit v/a\.mp4: {fault}: ") as caught:
        fit_to_file(query(*segments, duration_s=duration_s), 5.0)
    assert caught.value.fault == fault


def test_a_length_of_another_file_is_told() -> None:
    fitted, (finding,) = fit_to_file(query((0.5, 1.5), duration_s=2.0), 5.0)
    assert fitted == query((0.5, 1.5), duration_s=2.0)
    assert (finding.rule, finding.amount_s) == ("other_length", 3.0)

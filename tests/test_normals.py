import pytest

from synth.foreground import MAX_FIT_IMAGES
from synth.normals import spread


@pytest.mark.parametrize("count", [1, 5, 16, 17, 31, 47, 400])
def test_a_few_images_are_taken_from_the_whole_range(count: int) -> None:
    few = spread(count)
    assert len(few) == len(set(few)) == min(count, MAX_FIT_IMAGES)
    gaps = [b - a for a, b in zip(few, [*few[1:], count], strict=True)]
    assert few[0] == 0
    assert max(gaps) - min(gaps) <= 1

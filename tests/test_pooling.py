import torch
from numpy.lib.stride_tricks import sliding_window_view

from detect.pooling import image_scores, rejected_windows


def test_the_image_score_is_the_best_window() -> None:
    maps = torch.zeros(2, 256, 320)
    maps[0, 100:116, 50:66] = 0.7
    maps[1, 0, 0] = 1.0
    torch.testing.assert_close(image_scores(maps), torch.tensor([0.7, 1 / 256]))
    assert image_scores(maps[:, :8, :8]).tolist() == [0.0, 1.0], "one pixel at 8 x 8"


def test_windows_are_averaged_as_numpy_does() -> None:
    maps = torch.rand(3, 20, 31, generator=torch.Generator().manual_seed(0))
    for side in (1, 4, 20):
        means = sliding_window_view(maps.numpy(), (side, side), axis=(1, 2)).mean((3, 4))
        expected = torch.from_numpy(means.max((1, 2)))
        torch.testing.assert_close(image_scores(maps, side), expected)


def test_marked_is_the_union_of_the_windows_above_the_threshold() -> None:
    maps = torch.rand(2, 12, 15, generator=torch.Generator().manual_seed(1))
    threshold = float(image_scores(maps, 3)[0]) - 0.1
    expected = torch.zeros(12, 15, dtype=torch.bool)
    for y in range(10):
        for x in range(13):
            if maps[0, y : y + 3, x : x + 3].mean() > threshold:
                expected[y : y + 3, x : x + 3] = True
    assert torch.equal(rejected_windows(maps, threshold, 3)[0], expected)
    assert expected.any()
    assert not expected.all()
    nothing_above = rejected_windows(maps, 9.0, 3)
    assert nothing_above.sum((1, 2)).tolist() == [9, 9], "the best window"

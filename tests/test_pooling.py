import torch

from detect.pooling import image_scores


def test_the_image_score_is_the_best_window() -> None:
    maps = torch.zeros(2, 256, 320)
    maps[0, 100:116, 50:66] = 0.7
    maps[1, 0, 0] = 1.0
    torch.testing.assert_close(image_scores(maps), torch.tensor([0.7, 1 / 256]))
    assert image_scores(maps[:, :8, :8]).tolist() == [0.0, 1.0], "one pixel at 8 x 8"

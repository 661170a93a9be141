"""The picture of the first views: what the network saw, in its place."""

import torch

from simsiam.run.pictures import view_grid
from simsiam.settings.tree import Views


def test_views_of_an_image_stand_in_a_column_small_ones_last_and_in_the_middle() -> None:
    views = Views(mean=(0.1, 0.2, 0.3), std=(0.2, 0.25, 0.5))
    levels = torch.randint(256, (5, 3, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (views.mean, views.std))
    made = (levels / 255 - mean) / std
    grid = view_grid((made[:2], made[2:, :, :, :5, :5]), views)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 2 + 5 * (8 + 2), 2 + 3 * (8 + 2))
    for view in range(5):
        for image in range(3):
            cell = grid[:, 2 + 10 * view :, 2 + 10 * image :][:, :8, :8]
            if view < 2:
                assert torch.equal(cell, levels[view, image])
                continue
            assert torch.equal(cell[:, 1:6, 1:6], levels[view, image, :, :5, :5])
            cell[:, 1:6, 1:6] = 255
            assert (cell == 255).all()
    assert torch.equal(view_grid((made[:2],), views, columns=2), view_grid((made[:2, :2],), views))

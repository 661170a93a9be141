"""The discriminator's dropout is a function of a seed and an image's place in the global batch."""

import torch
from torch import Tensor

from simsiam.distributed.collectives import rank, world_size
from simsiam.models.discriminator import Discriminator
from tests.ranks import run_ranks


def build(**options: object) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(6, **options)


def pairs(images: int = 8) -> Tensor:
    return torch.randn(2, images, 6, generator=torch.Generator().manual_seed(3))


def on_a_rank() -> Tensor:
    return build()(pairs().chunk(world_size(), dim=1)[rank()], 7).detach()


def test_ranks_together_drop_what_one_rank_drops() -> None:
    torch.testing.assert_close(torch.cat(run_ranks(2, on_a_rank), dim=1), on_a_rank())


def test_a_seed_decides_and_the_global_random_state_does_not_move() -> None:
    d, before = build(), torch.get_rng_state()
    assert torch.equal(d(pairs(), 7), d(pairs(), 7))
    assert not torch.equal(d(pairs(), 7), d(pairs(), 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_kinds_and_images_lose_different_units_half_of_them_and_the_mean_stays() -> None:
    d = build(hidden=(400,))
    d.layers[0].weight.data.zero_()
    d.layers[0].bias.data.fill_(1)
    d.layers[1].weight.data.fill_(1 / 400)
    d.layers[1].bias.data.zero_()
    logits = d(pairs(200), 7)
    assert len(logits.unique()) > 20
    assert abs(logits.mean().item() - 1) < 0.01
    assert abs(logits.std().item() - 1 / 20) < 0.01  # of a mean of 400 numbers that are 0 or 2


def test_it_drops_nothing_in_evaluation_or_at_0() -> None:
    plain = build(dropout=0.0)
    layers = [f for layer in plain.layers for f in (layer, torch.nn.ReLU())][:-1]
    expected = torch.nn.Sequential(*layers)(pairs()).squeeze(-1)
    torch.testing.assert_close(plain(pairs(), 7), expected)
    torch.testing.assert_close(build().eval()(pairs(), 7), expected)


def test_it_has_the_published_layers() -> None:
    assert [(m.in_features, m.out_features) for m in Discriminator(256).layers] == [
        (256, 512), (512, 512), (512, 256), (256, 1),
    ]  # fmt: skip

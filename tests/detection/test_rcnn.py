"""The detectors compute what Detectron2's do, on our encoders.

Beside what is tested here, models that Detectron2's source (commit 02b5c4e) built were once given the same weights,
images and samples: they had our losses to 1e-4 and our detections to 0.01 pixels (C4, C4 with masks, FPN with masks).
"""

import copy
import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from simsiam.detection.precise_bn import update_batchnorm_statistics
from simsiam.detection.proposals import Anchors
from simsiam.detection.rcnn import build_detector
from simsiam.detection.regions import RegionPooler, box_losses, mask_targets
from simsiam.detection.resize import paste_masks, resized_shape
from simsiam.errors import UserError
from simsiam.models.batchnorm import per_view_batchnorm
from simsiam.models.encoders import build_encoder

SMALL = {"min_size": 96, "max_size": 160, "region_batch": 16, "post_nms": (60, 20)}


def small(head: str, mask: bool, **settings):
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", zero_init_residual=False)
    return build_detector(encoder, 3, head=head, mask=mask, **{**SMALL, **settings})


def scene(height: int, width: int, boxes: list[list[float]]) -> tuple[Tensor, dict[str, Tensor]]:
    """A random image, and objects that fill their boxes, of the classes 1, 2, ..."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)] = 1
    labels = torch.arange(1, len(boxes) + 1)
    target = {"boxes": torch.tensor(boxes).reshape(-1, 4).float(), "labels": labels, "masks": masks}
    return torch.rand(3, height, width), target


def scenes() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(1)
    both = scene(96, 128, [[5, 8, 70, 60], [60, 30, 120, 90]]), scene(96, 128, [[20.5, 10, 60, 90.5]])
    return [image for image, _ in both], [target for _, target in both]


@pytest.mark.parametrize(
    ("head", "proposals", "kept"), [("c4", (12000, 6000), (2000, 1000)), ("fpn", (2000, 1000), (1000, 1000))]
)
def test_the_numbers_are_detectron2s(head: str, proposals: tuple[int, int], kept: tuple[int, int]):
    """Its config/defaults.py, and RPN's in configs/Base-RCNN-{C4,FPN}.yaml."""
    built = build_detector(build_encoder("resnet18"), 3, head=head, mask=False)
    rpn, regions, resize = built.rpn, built.roi_heads, built.transform
    matches = [
        (matcher.low_threshold, matcher.high_threshold) for matcher in (rpn.proposal_matcher, regions.proposal_matcher)
    ]
    assert matches == [(0.3, 0.7), (0.5, 0.5)]
    samples = [(s.batch_size_per_image, s.positive_fraction) for s in (rpn.fg_bg_sampler, regions.fg_bg_sampler)]
    assert samples == [(256, 0.5), (512, 0.25)]
    assert (rpn.nms_thresh, regions.nms_thresh) == (0.7, 0.5)
    assert (regions.score_thresh, regions.detections_per_img) == (0.05, 100)
    assert regions.box_coder.weights == (10.0, 10.0, 5.0, 5.0)
    for training, before, after in zip((True, False), proposals, kept):
        built.train(training)
        assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (before, after)
    assert (tuple(resize.image_mean), tuple(resize.image_std)) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_without_the_extra_norm_nothing_new_normalises(head: str):
    norms = [
        sum(isinstance(part, torch.nn.BatchNorm2d) for part in small(head, False, extra_norm=extra).modules())
        for extra in (True, False)
    ]
    assert norms[1] == sum(isinstance(part, torch.nn.BatchNorm2d) for part in build_encoder("resnet18").modules())
    assert norms[0] > norms[1]


def test_c4_feature_is_the_encoders_own():
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", zero_init_residual=False).eval()
    detector = build_detector(encoder, 20, head="c4", mask=False).eval()
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(x))))
        plain = encoder.layer3(encoder.layer2(encoder.layer1(plain)))
        feature = detector.backbone(x)
        crop = torch.randn(2, 1024, 14, 14)
        after = detector.roi_heads.box_head.layer4(crop)
        torch.testing.assert_close(after, encoder.layer4(crop), rtol=0, atol=1e-5)
    assert feature.shape == (1, 1024, 6, 8)
    assert after.shape == (2, 2048, 7, 7)
    torch.testing.assert_close(feature, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_the_encoders_weights_are_in_the_detector_and_stay_in_the_encoder(head):
    encoder = build_encoder("resnet18").eval().requires_grad_(False)
    before = copy.deepcopy(encoder.state_dict())
    detector = build_detector(encoder, 3, head=head, mask=False, **SMALL)
    held = detector.state_dict()
    prefixes = ("backbone.", "backbone.body.", "roi_heads.box_head.")
    for key, tensor in before.items():
        assert any(torch.equal(held[p + key], tensor) for p in prefixes if p + key in held), key
    other = build_detector(build_encoder("resnet18"), 3, head=head, mask=False, **SMALL)
    x = torch.rand(1, 3, 96, 128)
    one, two = (d.eval().backbone(x) for d in (detector, other))
    one, two = (f if head == "c4" else f["0"] for f in (one, two))
    assert (one - two).abs().max() > 1e-3
    with torch.no_grad():
        detector.train().backbone.requires_grad_(True)(x)
        for parameter in detector.parameters():
            parameter.add_(1)
    assert all(torch.equal(encoder.state_dict()[key], tensor) for key, tensor in before.items())
    assert not encoder.training


def test_anchors_agree_with_a_hand_computation():
    anchors = Anchors([(32, 64)])(ImageList(torch.zeros(1, 3, 32, 48), [(32, 48)]), [torch.zeros(1, 8, 2, 3).half()])[0]
    assert anchors.shape == (2 * 3 * 6, 4)
    assert anchors.dtype == torch.float32
    # At ratio 1/2 an anchor of 32 is 32 sqrt(2) wide and 32 / sqrt(2) high; sizes come one after the other.
    w, h = 16 * math.sqrt(2), 16 / math.sqrt(2)
    expected = torch.tensor([[-w, -h, w, h], [-16, -16, 16, 16], [-h, -w, h, w], [-2 * w, -2 * h, 2 * w, 2 * h]])
    torch.testing.assert_close(anchors[:4], expected)
    # The second row of cells, its third column: centre at 32, 16 pixels.
    torch.testing.assert_close(anchors[5 * 6 + 1], torch.tensor([16.0, 0.0, 48.0, 32.0]))


def test_box_coding_agrees_with_a_hand_computation():
    coder = small("c4", False).roi_heads.box_coder
    proposal, truth = torch.tensor([[10.0, 20.0, 50.0, 100.0]]), torch.tensor([[20.0, 30.0, 40.0, 190.0]])
    # Centres (30, 60) and (30, 110), sizes 40 x 80 and 20 x 160; weights 10, 10, 5, 5.
    expected = torch.tensor([[0.0, 10 * 50 / 80, 5 * math.log(1 / 2), 5 * math.log(2)]])
    torch.testing.assert_close(coder.encode([truth], [proposal])[0], expected)
    torch.testing.assert_close(coder.decode(expected, [proposal])[:, 0], truth)


def test_boxes_of_regions_are_fitted_by_plain_l1():
    logits = torch.zeros(4, 3)
    deltas = torch.zeros(4, 12)
    deltas[1, 8:12] = torch.tensor([0.05, -0.5, 0.0, 2.0])  # class 2 of a region of class 2
    deltas[1, 4:8] = 9  # another class's box does not count
    deltas[0] = 9  # nor does a background region's
    labels, targets = [torch.tensor([0, 2]), torch.tensor([0, 0])], [torch.zeros(2, 4), torch.zeros(2, 4)]
    cross_entropy, boxes = box_losses(logits, deltas, labels, targets)
    assert boxes.item() == pytest.approx((0.05 + 0.5 + 2.0) / 4)
    assert cross_entropy.item() == pytest.approx(math.log(3))


def test_proposals_are_fitted_by_plain_l1_over_a_full_sample():
    rpn = small("c4", False).rpn
    labels = [torch.tensor([1.0, 0.0, -1.0])]
    deltas = torch.tensor([[0.05, 0.0, -0.5, 2.0], [9.0] * 4, [9.0] * 4])
    objectness, boxes = rpn.compute_loss(torch.zeros(3, 1), deltas, labels, [torch.zeros(3, 4)])
    assert boxes.item() == pytest.approx((0.05 + 0.5 + 2.0) / 256)
    assert objectness.item() == pytest.approx(2 * math.log(2) / 256)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_detector_trains_and_detects(head, mask):
    detector = small(head, mask)
    images, targets = scenes()
    losses = detector(images, targets)
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"} | (
        {"loss_mask"} if mask else set()
    )
    assert set(losses) == names
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()] == []
    detector.eval()
    with torch.inference_mode():
        found = detector([images[0], torch.rand(3, 50, 70)])
    for detections, (height, width) in zip(found, ((96, 128), (50, 70))):
        n = len(detections["boxes"])
        assert 0 < n <= 100
        assert detections["boxes"].shape == (n, 4)
        x1, y1, x2, y2 = detections["boxes"].unbind(1)
        assert (x1 >= 0).all() and (y1 >= 0).all()  # noqa: PT018
        assert (x2 <= width + 1e-3).all() and (y2 <= height + 1e-3).all()  # noqa: PT018
        assert (x1 < x2).all() and (y1 < y2).all()  # noqa: PT018
        assert ((detections["scores"] > 0.05) & (detections["scores"] <= 1)).all()
        assert set(detections["labels"].tolist()) <= {1, 2, 3}
        assert ("masks" in detections) == mask
        if mask:
            assert detections["masks"].shape == (n, 1, height, width)
            assert ((detections["masks"] >= 0) & (detections["masks"] <= 1)).all()


@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_images_of_extreme_shape_train_and_detect(head):
    detector = small(head, True, region_batch=8, post_nms=(20, 5))
    both = [
        scene(1, 128, [[10, 0, 60, 1]]),
        scene(3000, 20, [[2, 100, 15, 900]]),
        scene(5, 10_000, [[4000, 1, 6000, 4]]),
        scene(1, 1, []),
    ]
    images, targets = [image for image, _ in both], [target for _, target in both]
    assert all(loss.isfinite() for loss in detector(images, targets).values())
    detector.eval()
    with torch.inference_mode():
        for image, detections in zip(images, detector(images)):
            assert detections["masks"].shape[2:] == image.shape[1:]


def test_an_image_without_pixels_is_refused():
    with pytest.raises(UserError, match="0 x 7 pixels"):
        small("c4", False).eval()([torch.rand(3, 7, 0)])


@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_images_without_objects_and_without_detections(head):
    detector = small(head, True, score_threshold=0.999)
    images, _ = scenes()
    losses = detector(images, [scene(96, 128, [])[1]] * 2)
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    # DistributedDataParallel waits for the gradient of every parameter.
    assert all(p.grad is not None for p in detector.parameters())
    with torch.inference_mode():
        found = detector.eval()(images)
    assert [d["masks"].shape for d in found] == [(0, 1, 96, 128)] * 2


@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_16_bits_leave_boxes_and_losses_in_float32(head):
    # Few and small regions: where a CPU has no instructions for it, bfloat16 is a hundred times slower than float32.
    few = {"min_size": 48, "max_size": 64, "region_batch": 4, "region_side": 2, "post_nms": (8, 2)}
    detector = small(head, True, **few)
    images, targets = scenes()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        losses = detector(images, targets)
        found = detector.eval()(images[:1])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(d["boxes"].dtype == d["scores"].dtype == torch.float32 for d in found)


def test_batchnorm_over_ranks_fits_and_exact_statistics_can_be_taken():
    detector = small("c4", False)
    synced = per_view_batchnorm(copy.deepcopy(detector), 1)
    images, targets = scenes()
    torch.manual_seed(2)
    plain = detector(images, targets)
    torch.manual_seed(2)
    for name, loss in synced(images, targets).items():
        torch.testing.assert_close(loss, plain[name], rtol=1e-3, atol=1e-4)
    update_batchnorm_statistics(synced.eval(), [(images, targets)], 1)
    assert not any(module.training for module in synced.modules())
    conv1 = synced.backbone.conv1(synced.transform(images)[0].tensors)
    torch.testing.assert_close(synced.backbone.bn1.running_mean, conv1.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_training_draws_its_sizes_and_evaluation_takes_the_last():
    transform = small("c4", False, min_size=(64, 80, 96)).transform
    image = torch.rand(3, 96, 128)
    torch.manual_seed(0)
    assert {transform.resize(image)[0].shape[1] for _ in range(30)} == {64, 80, 96}
    assert {transform.eval().resize(image)[0].shape[1:] for _ in range(5)} == {(96, 128)}


def test_sizes_are_rounded_and_never_zero():
    assert resized_shape(375, 500, 800, 1333) == (800, 1067)
    assert resized_shape(480, 640, 800, 1333) == (800, 1067)
    assert resized_shape(3000, 20, 800, 1333) == (1333, 9)
    assert resized_shape(1, 10_000, 800, 1333) == (1, 1333)


def test_regions_go_to_the_map_of_their_size():
    pooler = RegionPooler(7, (4, 8, 16, 32))
    sides = (10.0, 111.0, 112.0, 224.0, 447.0, 448.0, 2000.0)
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in sides])
    assert pooler._levels(boxes).tolist() == [0, 0, 1, 2, 2, 3, 3]
    maps = {str(i): torch.full((1, 1, 2000 // s, 2000 // s), float(i)) for i, s in enumerate((4, 8, 16, 32))}
    shuffled = boxes[[3, 0, 5, 2]] * 0.99 + 2
    crops = pooler(maps, [shuffled], [(2000, 2000)])
    assert crops.shape == (4, 1, 7, 7)
    assert crops.mean((1, 2, 3)).tolist() == [1, 0, 2, 0]


def test_a_crop_reads_the_pixels_under_its_box():
    # With half-pixel alignment a box of 14 cells, cut to 14, is those cells themselves.
    features = torch.arange(20.0 * 20).view(1, 1, 20, 20)
    crop = RegionPooler(14, (16,))({"0": features}, [torch.tensor([[48.0, 32.0, 272.0, 256.0]])], [(320, 320)])
    torch.testing.assert_close(crop[0, 0], features[0, 0, 2:16, 3:17])


def test_masks_go_into_boxes_and_back():
    mask = torch.zeros(2, 40, 60)
    mask[1, 10:20, 30:50] = 1
    cut = mask_targets(mask, torch.tensor([[30.0, 0.0, 50.0, 20.0]]), torch.tensor([1]), 20)
    assert torch.equal(cut[0], torch.cat([torch.zeros(10, 20), torch.ones(10, 20)]))
    pasted = paste_masks(cut[:, None], torch.tensor([[30.0, 0.0, 50.0, 20.0]]), (40, 60))
    assert pasted.shape == (1, 1, 40, 60)
    torch.testing.assert_close(pasted[0, 0], mask[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar_resnet18", "resnet20", "timm:resnet18"])
def test_encoders_of_another_kind_are_refused(name):
    with pytest.raises(UserError, match=f"The encoder {name} cannot become a detector"):
        build_detector(build_encoder(name), 3, head="c4", mask=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"head": "c5"}, "no detector head 'c5'"), ({"num_classes": 0}, "0 classes"),
     ({"head": "fpn", "anchor_sizes": (32, 64)}, "2 anchor sizes")],
)  # fmt: skip
def test_settings_that_make_no_detector_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build_detector(build_encoder("resnet18"), **{"num_classes": 3, "head": "c4", "mask": False, **settings})

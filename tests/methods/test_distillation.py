"""Distillation is the fork's formula, its teacher never moves, and its student is what is measured and handed out."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from simsiam import load_encoder
from simsiam.errors import UserError
from simsiam.export.write import encoder_hash, write_encoder
from simsiam.methods.distillation import Distilled, SimSiamKD, SimSiamKDAnchor, frozen_teacher
from simsiam.methods.registry import build_method, resolve_method
from simsiam.models.encoders import build_encoder
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain, Views
from simsiam.settings.view_recipes import check_view_recipes, view_recipes
from tests.methods.stepping import assert_same, go_on, outcome, resumed, some_batches, start
from tests.methods.test_simsiam import reference, tiny_encoder
from tests.ranks import run_ranks

SMALL = {"dim": 6, "projector_hidden": 16, "predictor_hidden": 4}
VIEWS = {SimSiamKD: 2, SimSiamKDAnchor: 3}
STUDENTS = {
    "cifar10": ("cifar_resnet18", "cifar_resnet18"),
    "cifar100-r56-r20": ("resnet56", "resnet20"),
    "cifar100-r110-r20": ("resnet110", "resnet20"),
}

both = pytest.mark.parametrize("kind", [SimSiamKD, SimSiamKDAnchor])


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet8 that has been trained, as far as anyone can see."""
    path = tmp_path_factory.mktemp("teacher") / "encoder.safetensors"
    torch.manual_seed(7)
    encoder = build_encoder("resnet8", zero_init_residual=False)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    write_encoder(encoder, path, metadata={})
    return path


def build(kind: type[Distilled], teacher: Path | str, name: str = "") -> Distilled:
    torch.manual_seed(1)
    return kind(tiny_encoder(), teacher=str(teacher), teacher_encoder=name, **SMALL)


def by_loops(model: Distilled, x1: Tensor, x2: Tensor, x3: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The loss and l2, a forward for each view, image by image."""

    def distance(p: Tensor, z: Tensor) -> Tensor:
        cosines = [(a @ b) / a.square().sum().sqrt() / b.square().sum().sqrt() for a, b in zip(p, z.detach())]
        return -sum(cosines) / len(cosines)

    f_s, f_t, h = model.encoder, model.teacher, model.predictor
    if x3 is None:
        z1, z2 = (model.projector(model.embed(f_s(x))) for x in (x1, x2))
        t1, t2 = (model.projector(f_t(x)) for x in (x1, x2))
    else:
        z1, z2 = (model.projector(f_s(x)) for x in (x1, x2))
        t1 = t2 = f_t(x3)
    p1, p2 = h(z1), h(z2)
    l2 = ((p1 - t1).square().mean() + (p2 - t2).square().mean()) / 2
    return distance(p1, t1) / 2 + distance(p2, t2) / 2, l2.detach()


@both
def test_loss_gradients_and_statistics_are_those_of_the_formula(kind: type[Distilled], teacher_file: Path) -> None:
    ours = build(kind, teacher_file)
    exact = reference(ours)
    (views,) = some_batches(1, (VIEWS[kind], 8))[0]
    output = ours(views.float())
    output.loss.backward()
    expected, l2 = by_loops(exact, *views)
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert output.scalars["l2"].item() == pytest.approx(l2.item(), rel=1e-5)
    assert not output.scalars["l2"].requires_grad
    for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        if name.startswith("teacher."):
            assert p.grad is q.grad is None, name
        else:
            assert (p.grad - q.grad).abs().max() < 1e-5 * max(1, q.grad.abs().max()), name
    for (name, b), c in zip(ours.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(b.double(), c.double(), atol=1e-5, rtol=1e-5, msg=name)
    assert output.projections.shape == (2, len(views[0]), SMALL["dim"])  # the student's, of both views


@both
def test_the_teacher_stands_still_whatever_is_done_to_the_method(kind: type[Distilled], teacher_file: Path) -> None:
    held = load_file(teacher_file)
    state = start(build(kind, teacher_file), weight_decay=0.1)
    model = state.module
    model.eval()
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    assert all(module.training for name, module in model.named_modules() if not name.startswith("teacher"))
    student = [p.clone() for p in model.encoder.parameters()]
    go_on(state, [tuple(v.float() for v in views) for views in some_batches(3, (VIEWS[kind], 8))])
    saved = state.tensors()
    for name, tensor in held.items():
        assert torch.equal(saved[f"model.teacher.{name}"], tensor), name
    assert not any(name.startswith("optimizer.teacher.") for name in saved)
    assert not any(torch.equal(old, new) for old, new in zip(student, model.encoder.parameters(), strict=True))

    groups = model.parameter_groups()
    trained = [p for name, p in model.named_parameters() if not name.startswith("teacher.")]
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, trained))
    assert list(map(id, groups["predictor"])) == list(map(id, model.predictor.parameters()))


@both
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_make_the_steps_of_one(kind: type[Distilled], ranks: int, teacher_file: Path) -> None:
    batches = some_batches(3, (VIEWS[kind], 8))
    alone = _outcome(kind, teacher_file, batches)
    for together in run_ranks(ranks, _outcome, kind, teacher_file, batches):
        assert_same(together, alone, atol=1e-5)


def _outcome(kind: type[Distilled], teacher: Path, batches: list[tuple[Tensor, ...]]) -> tuple:
    return outcome(lambda: build(kind, teacher), batches)


@both
def test_a_run_goes_on_bit_equal_with_the_teacher_it_began_with(kind: type[Distilled], teacher_file: Path) -> None:
    """Also where its file is gone by then, and its name is all that is known."""
    batches = [tuple(v.float() for v in views) for views in some_batches(6, (VIEWS[kind], 8))]
    straight = start(build(kind, teacher_file))
    go_on(straight, batches)
    built = iter([build(kind, teacher_file), build(kind, "random", "resnet8")])
    for name, tensor in resumed(lambda: next(built), batches, 3).items():
        assert torch.equal(tensor, straight.tensors()[name]), name


# Made files of the CRD release: names and shapes as RepDistiller's models have them, one by one.


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def _resnet(blocks: list[int], stem: int, widths: list[int], bottleneck: bool) -> dict[str, tuple[int, ...]]:
    shortcut, classifier = ("shortcut", "linear") if bottleneck else ("downsample", "fc")
    shapes, before = {"conv1.weight": (stem, 3, 3, 3), **_norm("bn1", stem)}, stem
    for stage, (number, width) in enumerate(zip(blocks, widths, strict=True), start=1):
        out = width * (4 if bottleneck else 1)
        for block in range(number):
            at = f"layer{stage}.{block}"
            convs = [(width, before, 1), (width, width, 3), (out, width, 1)] if bottleneck else []
            for n, (to, of, side) in enumerate(convs or [(width, before, 3), (width, width, 3)], start=1):
                shapes |= {f"{at}.conv{n}.weight": (to, of, side, side), **_norm(f"{at}.bn{n}", to)}
            if before != out or (stage > 1 and block == 0):
                shapes |= {f"{at}.{shortcut}.0.weight": (out, before, 1, 1), **_norm(f"{at}.{shortcut}.1", out)}
            before = out
    return {**shapes, f"{classifier}.weight": (100, before), f"{classifier}.bias": (100,)}


CRD = {
    "resnet20": _resnet([3] * 3, 16, [16, 32, 64], bottleneck=False),
    "resnet56": _resnet([9] * 3, 16, [16, 32, 64], bottleneck=False),
    "resnet110": _resnet([18] * 3, 16, [16, 32, 64], bottleneck=False),
    "ResNet50": _resnet([3, 4, 6, 3], 64, [64, 128, 256, 512], bottleneck=True),
    "resnet32x4": _resnet([5] * 3, 32, [64, 128, 256], bottleneck=False),
    "wrn_40_2": {"conv1.weight": (16, 3, 3, 3), **_norm("block1.layer.0.bn1", 16), **_norm("bn1", 128),
                 "block1.layer.0.conv1.weight": (32, 16, 3, 3), "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
                 "fc.weight": (100, 128), "fc.bias": (100,)},
    "vgg13": {"block0.0.weight": (64, 3, 3, 3), "block0.0.bias": (64,), **_norm("block0.1", 64),
              "classifier.weight": (100, 512), "classifier.bias": (100,)},
}  # fmt: skip


def crd_file(folder: Path, name: str, **beside: object) -> tuple[Path, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, shape in CRD[name].items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        tensor = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        state[key] = tensor.abs() + 0.5 if key.endswith("running_var") else tensor
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(3)
    optimizer = {"state": {}, "param_groups": [{"lr": 5e-5, "params": [0]}]}
    path = folder / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": state, "accuracy": torch.tensor([72.0]), "optimizer": optimizer, **beside}, path)
    return path, state


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Features of a CRD ResNet from its tensors: 3x3 stem, no pooling, stride in the first 3x3 of layers 2 up."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = norm(conv(x, "conv1"), "bn1").relu()
    for at in dict.fromkeys(".".join(key.split(".")[:2]) for key in state if key.startswith("layer")):
        convs = sum(key.startswith(f"{at}.conv") for key in state)
        strided = 2 if at.endswith(".0") and at != "layer1.0" else 1
        y = x
        for n in range(1, convs + 1):
            y = norm(conv(y, f"{at}.conv{n}", strided if n == convs - 1 else 1), f"{at}.bn{n}")
            y = y.relu() if n < convs else y
        for shortcut in ("downsample", "shortcut"):
            if f"{at}.{shortcut}.0.weight" in state:
                x = norm(conv(x, f"{at}.{shortcut}.0", strided), f"{at}.{shortcut}.1")
        x = (x + y).relu()
    return x.mean((2, 3))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "ours"),
    [("resnet20", "resnet20"), ("resnet56", "resnet56"), ("resnet110", "resnet110"), ("ResNet50", "cifar_resnet50")],
)
def test_a_checkpoint_of_the_crd_release_is_a_teacher(name: str, ours: str, tmp_path: Path) -> None:
    path, state = crd_file(tmp_path, name)
    teacher = frozen_teacher(str(path))
    assert teacher.encoder_name == ours
    assert not teacher.training
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    expected = by_hand(state, images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(teacher(images), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["resnet32x4", "wrn_40_2", "vgg13"])
def test_another_network_of_the_release_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    path, _ = crd_file(tmp_path, name)
    with pytest.raises(UserError) as told:
        frozen_teacher(str(path))
    assert str(path) in str(told.value)
    assert "resnet56, resnet110 and ResNet50 load" in str(told.value)
    assert " --encoder" not in str(told.value)  # that is the student's
    assert "\n" not in str(told.value)


def test_a_file_with_a_python_object_is_not_unpickled(tmp_path: Path) -> None:
    path, _ = crd_file(tmp_path, "resnet20", opt=argparse.Namespace(model="resnet20"))
    with pytest.raises(UserError, match="argparse.Namespace"):
        frozen_teacher(str(path))


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({}, "needs the option 'teacher'"),
        ({"teacher": "no/such/run"}, "no teacher 'no/such/run'; train one by `simsiam teacher`"),
        ({"teacher": "random"}, "--method.teacher-encoder"),
    ],
)
def test_without_a_teacher_it_says_where_to_get_one(section: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build_method({"name": "simsiam-kd", **section}, tiny_encoder())


@pytest.mark.parametrize("kind", ["simsiam-kd", "simsiam-kd-anchor"])
@pytest.mark.parametrize("pair", STUDENTS)
def test_recipes_are_the_forks(kind: str, pair: str) -> None:
    settings = parse(Pretrain, [], recipe=f"{kind}-{pair}", prog="pretrain.py")
    teacher, student = STUDENTS[pair]
    section = resolve_method(settings.method)
    assert (section["name"], settings.encoder) == (kind, student)
    assert section["teacher"] == f"runs/teacher-{settings.data}-{teacher}"
    assert (section["projector_layers"], section["dim"]) == (2, 2048)
    optim = settings.optim
    assert (optim.lr, optim.weight_decay, optim.warmup_epochs, optim.predictor_lr) == (0.03, 5e-4, 10, "constant")
    assert (settings.batch_size, settings.epochs, settings.knn.k) == (512, 800, 200)

    num_views = 3 if kind.endswith("anchor") else 2
    check_view_recipes(settings, num_views, takes_small_views=False)
    of_student, anchor = (recipes := view_recipes(settings, 0, num_views))[:2], recipes[2:]
    assert all((v.scale, v.jitter, v.gray, v.blur, v.flip) == ((0.2, 1.0), 0.8, 0.2, 0.0, 0.5) for v in of_student)
    assert all((v.scale, v.jitter, v.gray, v.blur, v.flip) == ((0.2, 1.0), 0.0, 0.0, 0.0, 0.5) for v in anchor)
    assert all(v.solarize == Views.solarize == 0 for v in recipes)


def test_the_student_is_measured_exported_and_classified(
    call: Callable[..., int], teacher_file: Path, tmp_path: Path
) -> None:
    digits = ("--data", "digits", "--views.size", 8, "--views.resize", 8, "--workers", 0, "--hide-progress")
    sizes = ("--method.dim", 32, "--method.projector_hidden", 32, "--method.predictor_hidden", 16)
    method = ("--method", "simsiam-kd-anchor", "--method.teacher", teacher_file, *sizes)
    branches = ("--branches", "[{}, {}, {jitter: 0.0, gray: 0.0}]", "--encoder", "resnet8")
    short = ("--recipe", "quickstart", "--batch-size", 32, "--max-steps", 2, "--log-every", 1, "--checkpoint.keep", 1)
    student = tmp_path / "student"
    assert call("pretrain.py", *short, *digits, *method, *branches, "--out", student) == 0
    held, written = load_encoder(student / "checkpoints/step_00000002"), load_encoder(student)
    assert encoder_hash(held) == encoder_hash(written) != encoder_hash(load_encoder(teacher_file))
    summary = json.loads((student / "summary.json").read_text())
    assert 0 < summary["knn"] <= 100

    probe = ("--recipe", "lincls-quickstart", *digits, "--batch-size", 128, "--max-steps", 1, "--pretrained", student)
    assert call("lincls.py", *probe, "--out", tmp_path / "linear") == 0
    linear = json.loads((tmp_path / "linear/summary.json").read_text())
    assert linear["encoder_sha256"] == encoder_hash(written)

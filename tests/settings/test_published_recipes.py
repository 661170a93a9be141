"""Recipes have the numbers of their sources, which docs/recipes.md names; a slip in one would train for a week."""

import inspect
from typing import Any

import pytest

from simsiam.methods.registry import method_class
from simsiam.settings.detect import Detect
from simsiam.settings.parse import parse, recipe_names
from simsiam.settings.tree import FineTune, Linear, Pretrain

# The views of MoCo v2, which SimSiam's paper and code take over (appendix A).
MOCO_V2 = {
    "size": 224, "scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3), "jitter": 0.8, "brightness": 0.4, "contrast": 0.4,
    "saturation": 0.4, "hue": 0.1, "gray": 0.2, "blur": 0.5, "blur_sigma": (0.1, 2.0), "solarize": 0.0, "flip": 0.5,
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip
# SimCLR's at strength 1, and BYOL's (their appendices A and B).
SIMCLR = MOCO_V2 | {"scale": (0.08, 1.0), "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
BYOL = MOCO_V2 | {"scale": (0.08, 1.0), "saturation": 0.2, "blur": 1.0}
PLAIN_CROP = MOCO_V2 | {"scale": (0.08, 1.0), "jitter": 0.0, "gray": 0.0, "blur": 0.0}

SGD = {"name": "sgd", "momentum": 0.9, "schedule": "cosine", "per": "epoch", "warmup_epochs": 0, "exclude_1d": False}
LARS = {"name": "lars", "momentum": 0.9, "trust_coefficient": 0.001, "schedule": "cosine"}
SIMSIAM = {"name": "simsiam", "dim": 2048, "projector_layers": 3, "predictor_hidden": 512}
SIMSIAM |= {"batchnorm": "output", "output_affine": False, "stop_gradient": True, "symmetry": "symmetric"}
SIMSIAM |= {"predictor": "trained", "similarity": "cosine"}


def simsiam(epochs: int, batch: int, lr: float = 0.05, decay: float = 1e-4, **optim: Any) -> dict[str, Any]:
    sgd = SGD | {"lr": lr, "weight_decay": decay, "predictor_lr": "constant"} | optim
    return {"epochs": epochs, "batch_size": batch, "encoder": "resnet50", "zero_init_residual": True,
            "views": MOCO_V2, "optim": sgd, "method": SIMSIAM}  # fmt: skip


PRETRAIN: dict[str, dict[str, Any]] = {
    "imagenet-r50-100ep": simsiam(100, 512),  # paper, section 3 and appendix A; official code with --fix-pred-lr
    "imagenet-r50-100ep-256": simsiam(100, 256),
    "imagenet-r50-200ep": simsiam(200, 256),
    "imagenet-r50-400ep": simsiam(400, 256),
    "imagenet-r50-800ep": simsiam(800, 256),
    "imagenet-r50-large-batch": simsiam(100, 2048, warmup_epochs=10),  # section 4.3
    "imagenet-r50-transfer": simsiam(200, 256, lr=0.5, decay=1e-5),  # section 6.1
    "cifar10-r18": {  # appendix D
        "epochs": 800, "batch_size": 512, "encoder": "cifar_resnet18", "data": "cifar10",
        "views": {"size": 32, "blur": 0.0, "scale": (0.2, 1.0), "jitter": 0.8, "brightness": 0.4, "hue": 0.1,
                  "gray": 0.2},
        "optim": SGD | {"lr": 0.03, "weight_decay": 5e-4, "predictor_lr": "constant"},
        "method": SIMSIAM | {"projector_layers": 2, "projector_hidden": 2048},
    },
    "simclr-imagenet-100ep": {  # appendix C: base rate 0.3, batch 4096, three layers; the rest is SimCLR's
        "epochs": 100, "batch_size": 4096, "views": SIMCLR, "zero_init_residual": True,
        "optim": LARS | {"lr": 0.3, "weight_decay": 1e-6, "exclude_1d": True, "warmup_epochs": 10, "per": "step"},
        "method": {"dim": 128, "projector_layers": 3, "projector_hidden": 2048, "temperature": 0.1,
                   "stop_gradient": False},
    },
    "moco-v2-imagenet-100ep": {  # MoCo v2's code at 7397dfe, with the symmetric loss of appendix C
        "epochs": 100, "batch_size": 256, "views": MOCO_V2, "zero_init_residual": False,
        "optim": SGD | {"lr": 0.03, "weight_decay": 1e-4},
        "method": {"dim": 128, "projector_layers": 2, "projector_hidden": 2048, "queue_size": 65536, "momentum": 0.999,
                   "temperature": 0.2, "symmetric": True, "batchnorm": "shuffled", "bn_groups": 8},
    },
    "byol-imagenet-100ep": {  # table 4, footnote 6 of appendix C: 0.45, 1e-6, momentum 0.99 at 100 epochs
        "epochs": 100, "batch_size": 4096, "views": BYOL, "zero_init_residual": True,
        "branches": [{"blur": 1.0, "solarize": 0.0}, {"blur": 0.1, "solarize": 0.2}],
        "optim": LARS | {"lr": 0.45, "weight_decay": 1e-6, "exclude_1d": True, "warmup_epochs": 10, "per": "step"},
        "method": {"dim": 256, "projector_hidden": 4096, "predictor_hidden": 4096, "momentum": 0.99},
    },
    "swav-imagenet-100ep": {  # the official recipe of 400 epochs: 4.8 and 0.0048 at batch 4096 are 0.3 and 3e-4 at 256
        "epochs": 100, "batch_size": 4096, "views": SIMCLR, "zero_init_residual": False,
        "optim": LARS | {"lr": 0.3, "final_lr": 3e-4, "weight_decay": 1e-6, "warmup_epochs": 10, "per": "step",
                         "exclude_1d": False},
        "method": {"dim": 128, "projector_layers": 3, "projector_hidden": 2048, "prototypes": 3000, "temperature": 0.1,
                   "epsilon": 0.05, "iterations": 3, "freeze_steps": 313, "queue": 0},
    },
}  # fmt: skip

CIFAR = PRETRAIN["cifar10-r18"]
# The same data, views and schedule, so that methods compare (docs/recipes.md).
for name, method in {
    "simclr-cifar10": {"dim": 128, "projector_layers": 2, "projector_hidden": 512, "temperature": 0.5},
    # The authors' demo: features times one matrix, 4,096 keys, momentum 0.99, temperature 0.1.
    "moco-cifar10": {"dim": 128, "projector_layers": 1, "queue_size": 4096, "momentum": 0.99, "temperature": 0.1},
    "byol-cifar10": {"dim": 256, "projector_hidden": 1024, "predictor_hidden": 1024, "momentum": 0.99},
    "swav-cifar10": {"dim": 128, "projector_hidden": 512, "prototypes": 512},
}.items():
    PRETRAIN[name] = CIFAR | {"optim": SGD | {"lr": 0.03, "weight_decay": 5e-4}, "method": method}
PRETRAIN["moco-cifar10"] |= {"views": CIFAR["views"] | {"scale": (0.08, 1.0)}}  # as the demo crops
PRETRAIN["cifar10-r18-moco-warmup"] = CIFAR
PRETRAIN["cifar100-r18"] = CIFAR | {"data": "cifar100"}
PRETRAIN["stl10-r18"] = CIFAR | {"data": "stl10", "encoder": "resnet18", "views": {}}

# hanseungwook/SimSiam: configs of branch main, and those of the branches that the relatives are named for.
BRANCH = SGD | {"lr": 0.03, "weight_decay": 5e-4, "per": "step", "warmup_epochs": 10, "predictor_lr": "constant"}
HEADS = {"dim": 2048, "projector_layers": 2, "projector_hidden": 2048, "predictor_hidden": 512, "output_affine": True}
OF_BRANCH = {"epochs": 800, "batch_size": 512, "zero_init_residual": False, "optim": BRANCH, "method": HEADS}
for kind in ("simsiam-kd", "simsiam-kd-anchor"):
    PRETRAIN[f"{kind}-cifar10"] = OF_BRANCH | {"encoder": "cifar_resnet18"}
    for teacher in ("r56", "r110"):
        PRETRAIN[f"{kind}-cifar100-{teacher}-r20"] = OF_BRANCH | {"encoder": "resnet20", "data": "cifar100"}
PRETRAIN["no-sg-cifar10"] = OF_BRANCH
# Twice the epochs, of which each network moves in every other step.
PRETRAIN["no-sg-alt-cifar10"] = OF_BRANCH | {
    "epochs": 1600, "optim": BRANCH | {"warmup_epochs": 20, "predictor_lr": "cosine"},
}  # fmt: skip
ADAM = {"name": "adam", "lr": 2.5e-4, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant"}  # 5e-4 at 512
for name, method in {
    "adv": {"dropout": 0.5, "discriminator_epochs": 10.0, "encoder_every": 5},
    "adv-mmd": {"sigmas": [1.0, 10.0, 100.0, 1000.0], "ridge": 1e-3},
    "joint": {"dropout": 0.5, "cosine_weight": 1.0, "logistic_weight": 10.0, "predict": False},
    "e2e-baseline": {"dropout": 0.5, "level": "z"},
}.items():
    PRETRAIN[f"{name}-cifar10"] = OF_BRANCH | {"optim": ADAM, "method": {"name": name, "dim": 128} | method}

LINEAR: dict[str, dict[str, Any]] = {
    "lincls-imagenet": {  # main_lincls.py --lars: 90 epochs, 4096, base rate 0.1, no decay
        "epochs": 90, "batch_size": 4096, "views": PLAIN_CROP,
        "optim": LARS | {"lr": 0.1, "weight_decay": 0.0, "per": "epoch", "warmup_epochs": 0},
    },
    "lincls-imagenet-sgd": {  # appendix A
        "epochs": 90, "batch_size": 256, "views": PLAIN_CROP, "optim": SGD | {"lr": 30.0, "weight_decay": 0.0},
    },
    "lincls-cifar10": {"epochs": 100, "batch_size": 256, "optim": SGD | {"lr": 30.0, "weight_decay": 0.0}},
    "lincls-cifar100": {"epochs": 100, "batch_size": 256, "optim": SGD | {"lr": 30.0, "weight_decay": 0.0}},
}  # fmt: skip


def few_labels(lr: float, head_lr: float, subset: str, batchnorm: str, steps: bool = False) -> dict[str, Any]:
    falls = {"schedule": "steps", "milestones": (12, 16), "decay": 0.2} if steps else {"schedule": "cosine"}
    optim = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0, "lr": lr, "head_lr": head_lr, **falls}
    return {
        "epochs": 20,
        "batch_size": 256,
        "subset": subset,
        "batchnorm": batchnorm,
        "views": PLAIN_CROP,
        "optim": optim,
    }


FINE_TUNE: dict[str, dict[str, Any]] = {
    "semisup-1pct-barlowtwins": few_labels(0.005, 0.5, "1pct", "per_rank"),
    "semisup-1pct-vicreg": few_labels(0.03, 0.08, "1pct", "per_rank"),
    "semisup-10pct-vicreg": few_labels(0.01, 0.1, "10pct", "per_rank"),
    "semisup-1pct-swav": few_labels(0.02, 5.0, "1pct", "synced", steps=True),
    "semisup-10pct-swav": few_labels(0.01, 0.2, "10pct", "synced", steps=True),
}


# CRD's schedule (RepDistiller's train_teacher.py; 0.05 at batch 64 is 0.2 at 256).
CRD = {"name": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "steps", "decay": 0.1}
for name, encoder in {
    "cifar10-r18": "cifar_resnet18",
    "cifar100-r56": "resnet56",
    "cifar100-r110": "resnet110",
}.items():
    FINE_TUNE[f"teacher-{name}"] = {
        "epochs": 240, "batch_size": 64, "encoder": encoder, "pretrained": "random",
        "optim": CRD | {"milestones": (150, 180, 210)},
    }  # fmt: skip


def detection(steps: int, falls: tuple[int, int], shortest: int, warmup: int, **more: Any) -> dict[str, Any]:
    optim = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4, "norm_weight_decay": 0.0, "decay": 0.1}
    optim |= {"warmup_steps": warmup, "warmup_factor": 0.001, "milestones": falls}
    sizes = {"train": tuple(range(shortest, 801, 32)), "test": 800, "longest": 1333, "anchor_batch": 256}
    sizes |= {"anchors": (32, 64, 128, 256, 512), "region_batch": 512}
    return {"iterations": steps, "batch_size": 16, "flip": 0.5, "precise_bn": 200, "extra_norm": True,
            "proposal_loss": 1.0, "sizes": sizes, "optim": optim, **more}  # fmt: skip


COCO = {"mask": True, "train_sets": ("coco_2017_train",), "test_set": "coco_2017_val"}
DETECT: dict[str, dict[str, Any]] = {  # MoCo's detection/configs at 7397dfe and Detectron2's defaults
    "voc07": detection(9000, (6750, 8250), 480, 100, head="c4", mask=False, train_sets=("voc_2007_trainval",)),
    "voc0712": detection(
        24000, (18000, 22000), 480, 100, head="c4", mask=False, train_sets=("voc_2007_trainval", "voc_2012_trainval"),
        test_set="voc_2007_test",
    ),
    "coco-1x": detection(90000, (60000, 80000), 640, 1000, head="c4", **COCO),
    "coco-2x": detection(180000, (120000, 160000), 640, 1000, head="c4", **COCO),
    "coco-fpn-1x": detection(90000, (60000, 80000), 640, 1000, head="fpn", **COCO),
}  # fmt: skip

ALL = [
    (kind, name, published)
    for kind, recipes in ((Pretrain, PRETRAIN), (Linear, LINEAR), (FineTune, FINE_TUNE), (Detect, DETECT))
    for name, published in recipes.items()
]


def set_in(settings: Any, key: str) -> Any:
    """A setting, or an option of the method that is at its default."""
    if not isinstance(settings, dict):
        return getattr(settings, key)
    if key in settings:
        return settings[key]
    return inspect.signature(method_class(settings["name"]).__init__).parameters[key].default


def differing(settings: Any, published: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is other than published: setting -> (ours, theirs)."""
    found = {}
    for key, theirs in published.items():
        ours = set_in(settings, key)
        if isinstance(theirs, dict):
            found |= {f"{key}.{inner}": pair for inner, pair in differing(ours, theirs).items()}
        elif ours != (pytest.approx(theirs) if isinstance(theirs, float) else theirs):
            found[key] = (ours, theirs)
    return found


OURS = {  # nobody has published numbers for these
    *("quickstart", "shapes-r18", "shapes-voc", "lincls-quickstart", "semisup-quickstart", "teacher-quickstart"),
    *("semisup-1pct", "semisup-10pct", "semisup-cifar10-1pct", "semisup-cifar10-10pct"),
    *("transfer-linear", "transfer-finetune", "transfer-few-shot"),
}


def test_every_recipe_is_of_a_source_or_ours() -> None:
    assert {name for _, name, _ in ALL} | OURS == set(recipe_names())
    assert not {name for _, name, _ in ALL} & OURS


@pytest.mark.parametrize(("kind", "name", "published"), ALL, ids=[name for _, name, _ in ALL])
def test_a_recipe_is_as_published(kind: type, name: str, published: dict[str, Any]) -> None:
    assert differing(parse(kind, ["--recipe", name], recipe=name, prog="test"), published) == {}


def test_a_slip_is_noticed() -> None:
    slip = parse(Pretrain, ["--optim.weight_decay", "1e-3"], recipe="imagenet-r50-100ep", prog="test")
    assert differing(slip, PRETRAIN["imagenet-r50-100ep"]) == {"optim.weight_decay": (1e-3, 1e-4)}

"""Run folders without runs, for those who read them."""

import json

from PIL import Image

AP = {"AP50": 81.5, "AP": 55.123, "AP75": 61.0}


def pretraining(
    folder,
    *,
    steps=40,
    every=2,
    state="completed",
    command="pretrain.py --recipe cifar10-r18",
    collapses_at=1000000,
    **config,
):
    """A run folder as pretrain.py leaves it; an epoch has 10 steps."""
    folder.mkdir(parents=True)
    config = {"data": "cifar10", "seed": 1, "encoder": "cifar_resnet18", "method": {"name": "simsiam"}, **config}
    config = {"knn": {"k": 200, "temperature": 0.1}, "out": f"runs/{folder.name}", **config}
    (folder / "config.yaml").write_text(f"# {command}\n# python 3.11.7\n{json.dumps(config)}\n")
    lines = [{"step": 0, "knn": 30.0}]
    for step in range(every, steps + 1, every):
        verdict = {"verdict": "ok", "reason": ""}
        if step >= collapses_at:
            verdict = {"verdict": "collapsed", "reason": "std is low"}
        measures = {"std": 0.98, "effective_rank": 40.0 + step, **verdict}
        rates = {"lr": 0.06 * (1 - step / steps), "lr/encoder": 0.06, "pairs_per_second": 1000.0 + step}
        lines.append({"step": step, "epoch": round(step / 10, 4), "loss": -step / steps, **measures, **rates})
        if step % 10 == 0:
            lines.append({"step": step, "knn": 30.0 + step})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / state).touch()
    if state != "in-progress":
        figures = {"loss": -1.0, "knn": 30.0 + steps, "verdict": "ok", "pairs_per_second": 1020.0, "seconds": 7200.0}
        (folder / "summary.json").write_text(json.dumps({"step": steps, "state": state, "reason": "", **figures}))
    return folder


def gallery(folder, **facts):
    """What a report keeps in a run folder: of eight images in two classes, two with three neighbours each."""
    facts = {
        "encoder_sha256": "abc",
        "step": "40",
        "data": "/data/pets",
        "split": "val",
        "chosen_of": 37,
        "classes": ["cat", "dog"],
        "labels": [0, 0, 0, 0, 1, 1, 1, 1],
        "rows": [[0, 1, 4, 2], [5, 4, 6, 7]],
        "same": 0.75,
        "maps": {name: [[n / 7, n % 2] for n in range(8)] for name in ("PCA", "t-SNE")},
        "kept": 0.5,
        **facts,
    }
    (folder / "gallery.json").write_text(json.dumps(facts))
    Image.new("RGB", (4 * 32, 2 * 32), "teal").save(folder / "neighbours.jpg")


def detection(folder, *, trials=1, masks=False, state="completed", **config):
    """A run folder as transfer/detect.py leaves it; with several trials, OUT and its trials/1 and so on."""
    folder.mkdir(parents=True)
    config = {"data": "/data/voc", "seed": 0, "pretrained": "runs/r50", "encoder": "", "trials": trials, **config}
    config = {"train_sets": ["voc_2007_trainval", "voc_2012_trainval"], "test_set": "voc_2007_test", **config}
    config = {"head": "c4", "mask": masks, "iterations": 24000, **config}
    (folder / "config.yaml").write_text(f"# detect.py --recipe voc0712\n{json.dumps(config)}\n")
    figures = {f"{kind}{name}": value for kind in ("", "mask_")[: 1 + masks] for name, value in AP.items()}
    if trials == 1:
        losses = {
            "loss": 0.8,
            "loss_classifier": 0.3,
            "loss_box_reg": 0.2,
            "lr/detector": 0.02,
            "pairs_per_second": 40.0,
        }
        lines = [{"step": step, "epoch": step / 10, **losses} for step in (10, 20)]
        lines += [{"step": 20, **figures}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        figures |= {f"{name}_std": 0.2 for name in figures} | {"trials": trials}
        for number in range(1, trials + 1):
            detection(folder / "trials" / str(number), masks=masks)
    (folder / state).touch()
    if state != "in-progress":
        (folder / "summary.json").write_text(json.dumps({"state": state, "encoder_sha256": "abc", **figures}))
    return folder


def classification(folder, *, top1=80.0, **config):
    """A run folder as lincls.py leaves it."""
    folder.mkdir(parents=True)
    config = {"data": "cifar10", "seed": 0, "pretrained": "runs/r18", "encoder": "", "batchnorm": False, **config}
    (folder / "config.yaml").write_text(f"# lincls.py -c my/lincls-cifar10.yaml\n{json.dumps(config)}\n")
    lines = [{"step": 5, "epoch": 1.0, "loss": 2.0, "lr/head": 30.0}, {"step": 5, "top1": top1, "top5": 99.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = {"loss": 2.0, "top1": top1, "top5": 99.0, "encoder_sha256": "abc", "seconds": 36.0}
    (folder / "summary.json").write_text(json.dumps({"state": "completed", **figures}))
    (folder / "completed").touch()
    return folder

"""The README's commands in its order, as a newcomer types them, each made small: exit code and seconds.

    python benchmarks/walk.py [--folder build/walk] [--only WORD] [--append]

What the README calls IMAGENET, PHOTOGRAPHS, VOC, ENCODER and so on is a folder of that name with made-up images, or
what an earlier command left; eight GPUs are two ranks. The last column has what makes a command small.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from benchmarks.report import ROOT, Report, parser
from simsiam.data.sources.scenes import make_scenes

# Beginning of a command -> why it is not run.
NOT_HERE = {"make ": "a fresh machine", "sbatch ": "Slurm; tests/test_launch_preemption.py has stand-ins"}
_FEW = "--batch-size 16 --max-steps 4 --workers 0 --hide-progress --views.size 32 --views.resize 32"
_SCENES = (
    "--batch-size 2 --iterations 4 --workers 0 --precise-bn 2 --sizes.train [48,64] --sizes.test 64 --sizes.longest 96 "
    "--sizes.region_batch 8 --sizes.post_nms [20,8] --hide-progress"
)
# Pattern of a command -> what makes it small; all that fit, in this order, and the last word on a setting holds.
_SMALLER = {
    r"(pretrain|lincls|semisup|classify)\.py (?!.*(--help|--debug|--evaluate-only|few-shot))": _FEW,
    r"few-shot": "--workers 0 --hide-progress --views.size 32 --views.resize 32",
    r"(pretrain|lincls|semisup)\.py .*cifar10|data flowers102": "--data IMAGENET",
    r"pretrain\.py (?!.*(--help|--debug))": "--knn-every 0 --encoder resnet8",
    r"pretrain\.py --data": "--encoder resnet18",  # whose stem Detectron2 knows
    r"pretrain\.py .*(recipe (cifar10|moco|simsiam-kd)|--data)": "--method.projector_hidden 32 --method.dim 32",
    r"semisup\.py (?!.*--evaluate-only)": "--subset 0.5 --batch-size 8 --sweep ''",
    r"^simsiam tables": "--rows none --settings --data digits --epochs 1 --knn-every 0 --views.size 8 --views.resize 8",
    r"^simsiam teacher": f"--data IMAGENET --encoder resnet8 --recipe teacher-cifar10-r18 --settings {_FEW}",
    r"^simsiam protocol": f"--ranks 1 --settings --subset 0.5 --epochs 1 --sweep '' {_FEW} --max-steps 0",
    r"^simsiam shapes": "--train 24 --val 8",
    r"^simsiam show-views": "--sample 12",
    r"detect\.py ": _SCENES,
    r"detect\.py .*voc0712": "--trials 2",
}  # fmt: skip


def main() -> None:
    options = parser(__doc__, rounds=1)
    options.add_argument("--folder", type=Path, default=ROOT / "build/walk", help="made anew (default %(default)s)")
    options.add_argument("--only", default="", help="commands with this in them, in the folder as it is")
    arguments = options.parse_args()
    here = arguments.folder.resolve()
    if not (arguments.only and here.exists()):
        shutil.rmtree(here, ignore_errors=True)
        stand_ins(here)
    failed, rows, total = [], [], 0.0
    with Report("The README's commands, in order", arguments, torch.device("cpu")) as report:
        for line in commands():
            if line.startswith(tuple(NOT_HERE)) or arguments.only not in line:
                continue
            code, seconds, said = run(line, here)
            total += seconds
            print(f"{seconds:6.1f} s  {'' if code == 0 else f'FAILED ({code})  '}{line}", flush=True)
            rows.append((f"`{line}`", code, f"{seconds:.1f}", shlex.join(added(line))))
            if code:
                failed.append(f"{shlex.join(smaller(line))}\n{said[-3000:]}")
        report.table(("command", "exit code", "seconds", "with"), rows)
        report.say(f"{len(rows)} commands in {total:.0f} s; {len(failed)} failed.")
    if failed:
        sys.exit("\n\n".join(failed))


def commands() -> list[str]:
    """The lines of the README's blocks that begin with a program, without what comments say."""
    text = (ROOT / "README.md").read_text()
    blocks = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if not kind]
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.partition("  #")[0].rstrip() for line in lines if line]


def smaller(line: str) -> list[str]:
    """The words of a command as it runs here: on two ranks for eight, with what makes it small at the end."""
    return [word for word in shlex.split(line.replace("=8 ", "=2 ")) if word != "--download"] + added(line)


def added(line: str) -> list[str]:
    """What makes a command small."""
    return [word for fits, more in _SMALLER.items() if re.search(fits, line) for word in shlex.split(more)]


def run(line: str, here: Path) -> tuple[int, float, str]:
    """Exit code, seconds and output of a command in the folder of the walk."""
    encoder = here / "ENCODER"
    if "ENCODER" in line and not encoder.exists():
        shutil.copytree(here / "runs/imagenet-r50-100ep", encoder)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**{k: v for k, v in os.environ.items() if k not in ("DATA", "LOG")}, "PATH": programs}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # two ranks, whatever number of GPUs
    began = time.perf_counter()
    done = subprocess.run(
        smaller(line), cwd=here, env=environment, check=False, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, time.perf_counter() - began, done.stdout


def stand_ins(here: Path) -> None:
    """What a newcomer has before the first command: a clone's scripts, images and scenes, a method of their own."""
    here.mkdir(parents=True)
    for name in ("pretrain.py", "lincls.py", "semisup.py", "transfer"):
        (here / name).symlink_to(ROOT / name)
    pixels = np.random.Generator(np.random.Philox(0))
    for place in ("IMAGENET/train/{}", "IMAGENET/val/{}", "PHOTOGRAPHS"):
        for kind in ("a", "b"):
            folder = here / place.format(kind)
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(24 if "train" in place else 6):
                image = Image.fromarray(pixels.integers(0, 256, (40, 48, 3), np.uint8))
                image.save(folder / f"{kind}{number}.jpg")
    (here / "FOLDER").symlink_to("IMAGENET")
    make_scenes(here / "VOC", "voc", train=12, val=4)
    shutil.copytree(here / "VOC/VOC2007", here / "VOC/VOC2012")
    make_scenes(here / "COCO", "coco", train=12, val=4)
    text = (ROOT / "docs/methods.md").read_text()
    (here / "barlow.py").write_text(re.search(r"^```python\n(.*?class BarlowTwins.*?)^```", text, re.M | re.S)[1])


if __name__ == "__main__":
    main()

"""launch/: jobs for Slurm, run here with stand-ins for what they would start."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simsiam.__main__ import main
from simsiam.commands import teacher
from simsiam.settings.parse import parse, recipe_names
from simsiam.settings.tree import Linear, Pretrain
from tests.conftest import ROOT, clean_environment

SCRIPTS = sorted((ROOT / "launch").glob("*.slurm"))
DISTILLATIONS = [name for name in recipe_names() if name.startswith("simsiam-kd-")]


def submit(tmp_path: Path, script: str, *words: str, fails: bool = False) -> tuple[list[list[str]], int, str]:
    """The commands that a job starts, its exit status and what it says."""
    for program in ("torchrun", "python"):
        stand_in = tmp_path / "bin" / program
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/bin/bash\n(IFS=$\'\\t\'; echo "{program}\t$*") >> "$CALLS"\nexit {int(fails)}\n')
        stand_in.chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    places = {"CALLS": str(calls), "LOG": "logs", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", ROOT / "launch" / script, *words],
        cwd=tmp_path, env={**clean_environment(), **places, "SLURM_SUBMIT_DIR": str(ROOT)}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    return [line.split("\t") for line in calls.read_text().splitlines()], done.returncode, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell_and_name_recipes_that_there_are(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    named = set(re.findall(r"(?:simsiam-kd|lincls|semisup|teacher)-[a-z0-9-]*[a-z0-9]", script.read_text()))
    assert named - {"simsiam-kd-anchor"} <= set(recipe_names())


def test_all_six_distillations_have_recipes() -> None:
    pairs = ("cifar10", "cifar100-r56-r20", "cifar100-r110-r20")
    assert sorted(DISTILLATIONS) == sorted(f"simsiam-kd-{kind}{pair}" for kind in ("", "anchor-") for pair in pairs)


@pytest.mark.parametrize("recipe", DISTILLATIONS)
def test_a_distillation_takes_the_teachers_folder_and_hands_its_own_on(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, status, said = submit(tmp_path, "distillation.slurm", recipe, "--max-steps", "5")
    assert (status, said) == (0, "")
    (*run, script), (*again, second) = [(*call[: call.index(f"{name}.py") + 1], call[call.index(f"{name}.py") + 1 :])
                                        for call, name in zip(calls, ("pretrain", "lincls"), strict=True)]  # fmt: skip
    assert run == ["torchrun", "--standalone", "--nproc_per_node=4", "pretrain.py"]
    assert again[:-1] == run[:-1]
    student = parse(Pretrain, script, recipe="quickstart", prog="pretrain.py")
    linear = parse(Linear, second, recipe="lincls-imagenet", prog="lincls.py")
    own = parse(Pretrain, [], recipe=recipe, prog="pretrain.py")
    assert (student.encoder, student.optim, student.branches) == (own.encoder, own.optim, own.branches)
    assert (student.out, student.max_steps) == (f"logs/{recipe}", 5)
    assert (linear.pretrained, linear.out, linear.data) == (student.out, f"logs/{recipe}-linear", student.data)
    assert (linear.views.mean, linear.views.std) == (student.views.mean, student.views.std)

    # The job of its teacher, and the folder that this one fills.
    encoder = own.method["teacher"].removeprefix(f"runs/teacher-{own.data}-")
    ((program, *words),), status, said = submit(tmp_path, "teacher.slurm", own.data, encoder, "--epochs", "7")
    assert (program, words[:3], status, said) == ("python", ["-m", "simsiam", "teacher"], 0, "")
    ran = []

    def run_script(script: str, *words: str, ranks: int) -> None:
        ran.extend(words)
        raise SystemExit(0)

    monkeypatch.setattr(teacher, "run_script", run_script)
    monkeypatch.setattr(sys, "argv", ["simsiam", *words[2:]])
    monkeypatch.setenv("LOG", "logs")
    with pytest.raises(SystemExit):
        main()
    assert ran[-2:] == ["--out", student.method["teacher"]]
    assert ran[ran.index("--epochs") + 1] == "7"


def test_another_teacher_may_be_given(tmp_path: Path) -> None:
    crd = ("--method.teacher", "ckpt_epoch_240.pth")
    (call, _), _, _ = submit(tmp_path, "distillation.slurm", "simsiam-kd-cifar100-r56-r20", *crd)
    settings = parse(Pretrain, call[call.index("pretrain.py") + 1 :], recipe="quickstart", prog="pretrain.py")
    assert settings.method["teacher"] == "ckpt_epoch_240.pth"


def test_nothing_runs_for_a_wrong_recipe_and_nothing_after_a_failure(tmp_path: Path) -> None:
    calls, status, said = submit(tmp_path, "distillation.slurm", "simsiam-kd-cifar")
    assert (calls, status) == ([], 2)
    assert said.startswith("error: simsiam-kd-cifar is none of")
    calls, status, said = submit(tmp_path, "distillation.slurm")
    assert (calls, status) == ([], 1)
    assert "give a recipe, such as simsiam-kd-cifar100-r56-r20" in said
    calls, status, _ = submit(tmp_path, "distillation.slurm", "simsiam-kd-cifar10", fails=True)
    assert (len(calls), status) == (1, 1)
    assert submit(tmp_path, "teacher.slurm", "cifar100")[:2] == ([], 1)

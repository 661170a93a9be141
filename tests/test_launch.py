"""launch/: jobs for Slurm, ssh and pods, run here with stand-ins for what they would start."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config

from simsiam.__main__ import main
from simsiam.commands import teacher
from simsiam.settings.parse import parse, recipe_names
from simsiam.settings.tree import FineTune, Linear, Pretrain
from tests.conftest import ROOT, clean_environment

SLURM = ROOT / "launch/slurm"
DISTILLATIONS = [name for name in recipe_names() if name.startswith("simsiam-kd-")]
# A beginning of several names, and data with an encoder behind it.
NO_RECIPES = {"simsiam-kd-anchor", "cifar10-cifar", "cifar100-resnet56", "cifar100-resnet110"}
KIND = {"pretrain.py": Pretrain, "lincls.py": Linear, "semisup.py": FineTune}

# Each notes its words in $CALLS. torchrun does $DOES, in which $OUT is the run folder.
STAND_INS = {
    "torchrun": 'words=$*; OUT=${words##*--out }; OUT=${OUT%% *}; eval "${DOES:-}"',
    "srun": """
nodes=1 pids=()
while [[ $1 == --* ]]; do [[ $1 != --nodes=* ]] || nodes=${1#*=}; shift; done
for ((node = 0; node < nodes; node++)); do
    SLURM_NODEID=$node SLURMD_NODENAME=node$((7 + node)) "$@" & pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"' USR1
for pid in "${pids[@]}"; do
    status=0; wait "$pid" || status=$?
    while kill -0 "$pid" 2>/dev/null; do status=0; wait "$pid" || status=$?; done
    ((status <= ${worst:=0})) || worst=$status
done
exit "$worst"
""",
    "scontrol": '[[ $1 == requeue ]] && exit "${REFUSES:-0}"; tr , "\\n" <<<"$3"',
    "squeue": 'echo "${STATE:-RUNNING}"',
    # With a shell that greets.
    "ssh": 'while [[ $1 != -- ]]; do shift; done; echo "12 users"; exec bash -c "$3"',
}
ALLOCATION = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "node7,node8",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_SUBMIT_DIR": str(ROOT),
    "LOG": "logs",
}


@dataclass(frozen=True)
class Done:
    """How a job ended, what it said, and the programs that it started with their words."""

    status: int
    said: str
    calls: list[list[str]]

    def of(self, program: str) -> list[list[str]]:
        return [words for name, *words in self.calls if name == program]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """The environment of a job on stand-ins, which note their calls in tmp_path/calls."""
    for program, does in STAND_INS.items():
        stand_in = tmp_path / "bin" / program
        stand_in.parent.mkdir(exist_ok=True)
        noted = '(IFS=$\'\\t\'; echo "${0##*/}\t$*") >> "$CALLS"'
        stand_in.write_text(f"#!/bin/bash\n{noted}\n{does}\n")
        stand_in.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {**clean_environment(), "CALLS": str(tmp_path / "calls"), "PATH": path, **more}


def run_script(tmp_path: Path, script: str, *words: str, **more: str) -> Done:
    """A script of launch/, run to its end."""
    env = environment(tmp_path, **more)
    Path(env["CALLS"]).write_text("")
    done = subprocess.run(
        ["bash", ROOT / "launch" / script, *words],
        cwd=tmp_path, env=env, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    calls = [line.split("\t") for line in Path(env["CALLS"]).read_text().splitlines()]
    return Done(done.returncode, done.stdout + done.stderr, calls)


def settings_of(words: list[str]) -> Pretrain | Linear | FineTune:
    script, *arguments = words
    return parse(KIND[script], arguments, recipe="", prog=script)


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., Done]:
    """`submit("pretrain.sbatch", *words, **variables)` runs a batch script as Slurm would."""
    return lambda script, *words, **more: run_script(tmp_path, f"slurm/{script}", *words, **{**ALLOCATION, **more})


@pytest.mark.parametrize("script", sorted(SLURM.glob("*.sbatch")), ids=lambda path: path.name)
def test_batch_scripts_name_recipes_that_there_are(script: Path) -> None:
    families = "|".join({"simsiam-kd", *(name.partition("-")[0] for name in recipe_names())})
    named = set(re.findall(rf"(?<![\w.-])(?:{families})-[a-z0-9-]*[a-z0-9]", script.read_text()))
    assert named
    assert named - NO_RECIPES <= set(recipe_names())


def test_all_six_distillations_have_recipes() -> None:
    pairs = ("cifar10", "cifar100-r56-r20", "cifar100-r110-r20")
    assert sorted(DISTILLATIONS) == sorted(f"simsiam-kd-{kind}{pair}" for kind in ("", "anchor-") for pair in pairs)


@pytest.mark.parametrize("recipe", DISTILLATIONS)
def test_a_distillation_takes_the_teachers_folder_and_hands_its_own_on(
    submit: Callable[..., Done], recipe: str
) -> None:
    done = submit("distillation.sbatch", recipe, "--max-steps", "5")
    assert (done.status, done.said) == (0, "")
    student, linear = map(settings_of, done.of("torchrun"))
    own = parse(Pretrain, [], recipe=recipe, prog="pretrain.py")
    assert (student.encoder, student.optim, student.branches) == (own.encoder, own.optim, own.branches)
    assert (student.out, student.max_steps, student.world_size) == (f"logs/{recipe}", 5, 4)
    assert (linear.pretrained, linear.out, linear.data) == (student.out, f"logs/{recipe}-linear", student.data)
    assert (linear.views.mean, linear.views.std) == (student.views.mean, student.views.std)
    encoder = own.method["teacher"].removeprefix(f"runs/teacher-{own.data}-")
    (words,) = submit("teacher.sbatch", own.data, encoder).of("torchrun")
    assert settings_of(words).out == student.method["teacher"]


@pytest.mark.parametrize(
    ("data", "encoder"),
    [
        *((data, encoder) for data, recipes in teacher._RECIPES.items() for encoder in recipes),
        ("cifar100:/x", "resnet20"),
    ],
)
def test_the_job_of_a_teacher_runs_what_the_command_runs(
    submit: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, data: str, encoder: str
) -> None:
    ran: list[str] = []

    def instead(*words: str, ranks: int) -> None:
        ran.extend(words)
        raise SystemExit(0)

    monkeypatch.setattr(teacher, "run_script", instead)
    words = ["--data", data, "--encoder", encoder, "--settings", "--epochs", "7"]
    monkeypatch.setattr(sys, "argv", ["simsiam", "teacher", *words])
    monkeypatch.setenv("LOG", "logs")
    with pytest.raises(SystemExit):
        main()
    (words,) = submit("teacher.sbatch", data, encoder, "--epochs", "7", SLURM_GPUS_ON_NODE="1").of("torchrun")
    assert settings_of(words) == replace(settings_of(ran), world_size=1)


def test_another_teacher_may_be_given(submit: Callable[..., Done]) -> None:
    crd = ("--method.teacher", "ckpt_epoch_240.pth")
    student = settings_of(submit("distillation.sbatch", "simsiam-kd-cifar100-r56-r20", *crd).of("torchrun")[0])
    assert student.method["teacher"] == "ckpt_epoch_240.pth"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("distillation.sbatch", "simsiam-kd-cifar"), 2, "error: simsiam-kd-cifar is none of"),
        (("distillation.sbatch",), 1, "give a recipe, such as simsiam-kd-cifar100-r56-r20"),
        (("teacher.sbatch", "cifar100"), 1, "give the encoder behind the data"),
        (("teacher.sbatch", "stl10", "resnet20"), 2, "error: there is no teacher's recipe for stl10"),
        (("pretrain.sbatch",), 1, "give a recipe"),
        (("pretrain.sbatch", "cifar10-r18", "--out", "x"), 2, "error: --out follows from the recipe"),
        (("pretrain.sbatch", "cifar10-r18", "--out=x"), 2, "error: --out follows from the recipe"),
    ],
)
def test_nothing_runs_for_wrong_words(submit: Callable[..., Done], words: tuple, status: int, said: str) -> None:
    done = submit(*words)
    assert (done.status, done.calls) == (status, [])
    assert said in done.said


def test_each_node_runs_one_torchrun_that_knows_its_part(submit: Callable[..., Done], tmp_path: Path) -> None:
    shows = 'env | grep -E "^(PET_|NCCL_|TORCH_)" > "$SEEN/$PET_NODE_RANK"'
    done = submit(
        "pretrain.sbatch", "imagenet-r50-100ep", "--data", "a b", "--optim.lr", "0.1",
        DOES=shows, SEEN=str(tmp_path), SLURM_JOB_NUM_NODES="2", NCCL_SOCKET_IFNAME="ib0",
    )  # fmt: skip
    assert (done.status, done.said) == (0, "")
    one, other = done.of("torchrun")
    assert one == other
    settings = settings_of(one)
    assert (settings.data, settings.out, settings.optim.lr) == ("a b", "logs/imagenet-r50-100ep", 0.1)
    assert (settings.world_size, settings.seed) == (8, 0)
    seen = [dict(line.split("=", 1) for line in (tmp_path / str(n)).read_text().splitlines()) for n in range(2)]
    assert [node.pop("PET_RDZV_CONF") for node in seen] == [f"is_host={host},read_timeout=300" for host in (1, 0)]
    assert [node.pop("PET_NODE_RANK") for node in seen] == ["0", "1"]
    assert [node.pop("PET_LOCAL_ADDR") for node in seen] == ["node7", "node8"]
    assert seen[0] == seen[1] == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_MASTER_ADDR": "node7",
        "PET_MASTER_PORT": "10077",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "node7:10077",
        "PET_RDZV_ID": "77",
        "PET_MAX_RESTARTS": "3",
        "PET_SHUTDOWN_TIMEOUT": "150",
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "NCCL_DEBUG": "WARN",
        "NCCL_SOCKET_IFNAME": "ib0",
    }  # fmt: skip


def test_torchrun_reads_what_node_sh_gives_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.run import get_args_parser

    script = (ROOT / "launch/node.sh").read_text()
    known = vars(get_args_parser().parse_args(["pretrain.py"]))
    names = {name.lower() for name in re.findall(r"\bPET_([A-Z_]+)=", script)}
    assert names - set(known) <= {"shutdown_timeout"}, "new in torch 2.13; any other must be known"
    for name in names & set(known):
        monkeypatch.setenv(f"PET_{name.upper()}", "7")
    read = vars(get_args_parser().parse_args(["pretrain.py"]))
    assert {name for name in names if str(read.get(name, "7")) != "7"} == set()


@pytest.mark.parametrize(
    ("visible", "ranks", "device"),
    [
        (None, 3, "cuda"), ("5", 1, "cuda"), ("0,2", 2, "cuda"), ("GPU-a,GPU-b,MIG-c,GPU-d", 4, "cuda"),
        ("", 1, "auto"), ("-1", 1, "auto"), ("NoDevFiles", 1, "auto"),
    ],
)  # fmt: skip
def test_a_node_has_a_rank_for_each_gpu_that_it_may_use_and_never_falls_back_to_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, ranks: int, device: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    env = environment(tmp_path)
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/bash\nprintf 'GPU %s: H100\\n  MIG 1g: x\\n' 0 1 2\n")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    given["PATH"] = env["PATH"]
    (words,) = run_script(tmp_path, "node.sh", "pretrain.py", "--recipe", "quickstart", **given).of("torchrun")
    assert (settings_of(words).world_size, settings_of(words).device) == (ranks, device)
    given["PET_NPROC_PER_NODE"] = "0" if ranks == 1 else "2"  # what SkyPilot says of a machine without a GPU
    (words,) = run_script(tmp_path, "node.sh", "pretrain.py", "--recipe", "quickstart", "--device", "cpu", **given).of(
        "torchrun"
    )
    assert (settings_of(words).world_size, settings_of(words).device) == (min(ranks, 2), "cpu")


def test_a_node_adds_to_the_rendezvous_what_it_is_given(tmp_path: Path) -> None:
    shows = 'echo "$PET_RDZV_CONF $PET_LOCAL_ADDR"'
    nodes = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "node7", "PET_NPROC_PER_NODE": "1"}
    given = {"PET_RDZV_CONF": "join_timeout=9,read_timeout=7", "PET_LOCAL_ADDR": "node8"}
    done = run_script(tmp_path, "node.sh", "x.py", DOES=shows, **nodes, **given)
    assert done.said == "is_host=0,read_timeout=300,join_timeout=9,read_timeout=7 node8\n"
    given = done.said.split()[0]
    assert _parse_rendezvous_config(given) == {"is_host": "0", "read_timeout": "7", "join_timeout": "9"}
    assert run_script(tmp_path, "node.sh", "x.py", DOES=shows, PET_NPROC_PER_NODE="1").said == " localhost\n"


@pytest.mark.parametrize(
    ("task", "recipes", "recipe", "seed", "out"),
    [
        ("0", "cifar10-r18", "cifar10-r18", 0, "logs/cifar10-r18-seed0"),
        ("4", "cifar10-r18", "cifar10-r18", 4, "logs/cifar10-r18-seed4"),
        ("1", "cifar10-r18,simclr-cifar10", "simclr-cifar10", 0, "logs/simclr-cifar10-seed0"),
        ("4", "cifar10-r18,simclr-cifar10", "cifar10-r18", 2, "logs/cifar10-r18-seed2"),
    ],
)
def test_the_tasks_of_an_array_go_through_recipes_and_seeds(
    submit: Callable[..., Done], task: str, recipes: str, recipe: str, seed: int, out: str
) -> None:
    (words,) = submit("pretrain.sbatch", recipes, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID=task).of("torchrun")
    settings = settings_of(words)
    assert (words[words.index("--recipe") + 1], settings.seed, settings.out) == (recipe, seed, out)

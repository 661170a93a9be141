"""launch/: what no cluster is at hand for, by the tools that know its format, and against the trainer's own parser."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from simsiam.settings.tree import Pretrain
from tests.conftest import ROOT
from tests.test_launch import run_script, settings_of

LAUNCH = ROOT / "launch"
KUBERNETES = sorted(LAUNCH.glob("kubernetes/*.yaml"))
NATIVE = {"Service", "Job", "NetworkPolicy"}


def tool(name: str) -> str:
    """A program that pip installed beside Python, or that is on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


def documents(path: Path) -> dict[str, dict[str, Any]]:
    """kind -> object of a file of Kubernetes."""
    return {one["kind"]: one for one in yaml.safe_load_all(path.read_text())}


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """File and template of every pod."""
    for path in KUBERNETES:
        held = documents(path)
        if "Job" in held:
            yield path.stem, held["Job"]["spec"]["template"]
        if "PyTorchJob" in held:
            for role in held["PyTorchJob"]["spec"]["pytorchReplicaSpecs"].values():
                yield path.stem, role["template"]
        if "TrainingRuntime" in held:
            (job,) = held["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
            yield path.stem, job["template"]["spec"]["template"]


def test_shellcheck_finds_nothing() -> None:
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("slurm/*")]
    assert len(scripts) == 8
    done = subprocess.run([tool("shellcheck"), "-x", "-P", ROOT, *scripts], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([tool("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_image_takes_what_is_there_loads_nothing_else_and_is_not_root() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    sources = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert all(any(ROOT.glob(source)) for source in sources)
    let_in = [line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    assert {source.split("/")[0] for source in sources} == set(let_in)
    user = next(words for run in steps if run[0] == "RUN" and "useradd" in run[1] for words in [run[1].split()])
    assert steps[-1] == ["USER", user[user.index("--uid") + 1]]
    assert not {name for name, _ in steps} & {"ADD"}
    assert "http" not in " ".join(rest for _, rest in steps)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_native_objects_fit_the_schema(path: Path) -> None:
    for kind, held in documents(path).items():
        if kind in NATIVE:
            kubernetes_validate.validate(held, "1.31", strict=True)


@pytest.mark.parametrize(("name", "template"), list(pod_templates()))
def test_pods_fit_the_schema_and_run_as_an_ordinary_user(name: str, template: dict[str, Any]) -> None:
    spec = template["spec"]
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "PodTemplate", "template": template}, "1.31", strict=True)
    assert spec["securityContext"]["runAsNonRoot"]
    assert f"--uid {spec['securityContext']['runAsUser']} " in (LAUNCH / "Dockerfile").read_text()
    (container,) = spec["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert not spec["automountServiceAccountToken"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}
    # Kubernetes waits for torchrun, which waits for the ranks.
    assert spec["terminationGracePeriodSeconds"] > 150
    assert "PET_SHUTDOWN_TIMEOUT:-150" in (LAUNCH / "node.sh").read_text()


def test_the_network_policy_is_for_all_pods_and_lets_nobody_else_in() -> None:
    spec = documents(LAUNCH / "kubernetes/network-policy.yaml")["NetworkPolicy"]["spec"]
    assert {name for name, _ in pod_templates()} == {path.stem for path in KUBERNETES} - {"network-policy"}
    for _, template in pod_templates():
        assert template["metadata"]["labels"] == spec["podSelector"]["matchLabels"]
    assert spec["ingress"] == [{"from": [{"podSelector": spec["podSelector"]}]}]
    assert "Ingress" in spec["policyTypes"]


def test_the_indexed_job_has_as_many_pods_as_nodes_and_they_find_the_first() -> None:
    held = documents(LAUNCH / "kubernetes/indexed-job.yaml")
    service, spec = held["Service"], held["Job"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert env["PET_NNODES"] == str(spec["completions"]) == str(spec["parallelism"])
    assert env["PET_NPROC_PER_NODE"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert env["PET_MASTER_ADDR"] == f"{held['Job']['metadata']['name']}-0.{service['metadata']['name']}"
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert spec["template"]["metadata"]["labels"] == service["spec"]["selector"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    assert settings_of(container["args"]).out.startswith("/runs/")


def test_the_train_job_and_its_runtime_fit_the_api() -> None:
    held = documents(LAUNCH / "kubernetes/trainjob.yaml")
    kinds = {"TrainJob": models.TrainerV1alpha1TrainJob, "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime}
    assert set(held) == set(kinds)
    for kind, model in kinds.items():
        # What the API does not know is dropped on the way.
        assert without_none(model.from_dict(held[kind]).to_dict()) == held[kind]
    trainer, runtime = held["TrainJob"]["spec"]["trainer"], held["TrainingRuntime"]
    assert held["TrainJob"]["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert (job["name"], container["name"]) == ("node", "node")  # where Trainer puts torchrun's variables
    assert trainer["numProcPerNode"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert settings_of(trainer["args"]).out.startswith("/runs/")


def test_the_pytorch_job_has_the_fields_of_its_operator() -> None:
    spec = documents(LAUNCH / "kubernetes/pytorchjob.yaml")["PyTorchJob"]["spec"]
    assert set(spec) == {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"}
    assert set(spec["runPolicy"]) <= {"backoffLimit", "cleanPodPolicy", "activeDeadlineSeconds", "schedulingPolicy"}
    assert set(spec["pytorchReplicaSpecs"]) == {"Master", "Worker"}
    for role in spec["pytorchReplicaSpecs"].values():
        assert set(role) == {"replicas", "restartPolicy", "template"}
        assert role["restartPolicy"] == "OnFailure"  # ExitCode would take 75 for a failure for good
        (container,) = role["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"  # by this name the operator finds it
        assert spec["nprocPerNode"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
        assert settings_of(container["args"]).out.startswith("/runs/")


def test_the_skypilot_job_runs_its_part_of_the_run(tmp_path: Path) -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) == {"name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}
    assert set(task["resources"]) == {"accelerators", "use_spot", "disk_size", "job_recovery"}
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    for part in ("setup", "run"):
        shell = "#!/bin/bash\n" + task[part]
        done = subprocess.run(
            [tool("shellcheck"), "--exclude=SC1090,SC1091", "-"],
            input=shell,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").touch()
    script = tmp_path / "run.sh"
    script.write_text(f"cd {shlex.quote(str(ROOT))}\n{task['run']}")
    variables = {
        "HOME": str(tmp_path), "BUCKET": "ours", "RECIPE": task["envs"]["RECIPE"], "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_TASK_ID": "task", "DOES": 'echo "$PET_RDZV_ENDPOINT $PET_RDZV_CONF $PET_LOCAL_ADDR"',
    }  # fmt: skip
    done = run_script(tmp_path, str(script), **variables)
    assert (done.status, done.said) == (0, "10.0.0.1:29400 is_host=0,read_timeout=300 10.0.0.2\n")
    (words,) = done.of("torchrun")
    settings = settings_of(words)
    assert isinstance(settings, Pretrain)
    assert (settings.world_size, settings.data) == (16, "s3://ours/imagenet")
    ((folder, mount),) = task["file_mounts"].items()
    assert settings.out.startswith(folder)
    assert mount["source"] == "s3://${BUCKET}"  # SkyPilot mounts whole buckets alone


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(one) for key, one in value.items() if one is not None}
    return [without_none(one) for one in value] if isinstance(value, list) else value

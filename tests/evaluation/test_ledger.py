"""results.jsonl keeps what it was given, survives crashes and other writers, and finds what need not be done again."""

import json
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from simsiam.data.index import Index, Strings
from simsiam.data.sources.arrays import ArrayImages
from simsiam.data.sources.folder import FolderImages
from simsiam.distributed.runtime import Runtime
from simsiam.errors import UserError
from simsiam.evaluation.ledger import (
    Result,
    append,
    config_hash,
    find,
    hardware,
    knn_cell,
    list_hash,
    read,
    utc_now,
    versions,
)
from simsiam.settings.parse import parse
from simsiam.settings.tree import Dali, Linear, Optim, Pretrain

RESULT = Result(
    protocol="linear",
    recipe="lincls-imagenet",
    encoder="runs/größe",
    encoder_name="resnet50",
    encoder_sha256="e" * 64,
    config_sha256="c" * 64,
    data="/data/imagenet",
    data_sha256="d" * 64,
    seed=3,
    top1=68.1,
    top5=88.25,
    figures={"k=200,T=0.1": 57.4, "val_images": 50_000},
    hardware="8 x NVIDIA H100",
    world_size=8,
    versions={"torch": "2.11.0"},
    hours=1.5,
    finished="2026-01-31T09:30:00+00:00",
    run="runs/lincls",
)
FOUND_BY = ("protocol", "config_sha256", "encoder_sha256", "data_sha256", "seed")
KEYS = {key: getattr(RESULT, key) for key in FOUND_BY}


def test_a_result_comes_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    append(path, RESULT)
    append(path, replace(RESULT, seed=4))
    assert read(path) == [RESULT, replace(RESULT, seed=4)]
    assert path.read_text().count("\n") == 2


def test_no_file_is_no_results(tmp_path):
    assert read(tmp_path / "none.jsonl") == []
    assert find(tmp_path / "none.jsonl", **KEYS) is None


def test_what_is_not_finite_is_null_and_the_line_is_json_that_anybody_reads(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, replace(RESULT, top5=float("nan"), figures={"loss": float("inf"), "sweep": [1.0, float("nan")]}))
    line = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert line["top5"] is None
    assert line["figures"] == {"loss": None, "sweep": [1.0, None]}
    assert read(path)[0].top1 == 68.1


def test_after_a_line_that_a_crash_cut_off_a_new_line_begins(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    append(path, RESULT)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    append(path, replace(RESULT, seed=5))
    assert path.read_bytes().startswith(whole + whole[:40] + b"\n")
    assert [r.seed for r in read(path)] == [3, 5]
    assert "1 of 3 lines are damaged" in caplog.text


def test_a_whole_last_line_without_its_newline_counts(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    append(path, RESULT)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    append(path, RESULT)
    assert read(path) == [RESULT, RESULT]
    assert not caplog.text


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"{", b"[1]", b"3", b'{"protocol": "knn"}', b'{"protocol": "knn", "encoder": "e", "top1": "high"}',
     b'{"protocol": "knn", "encoder": "e", "figures": 3}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_line_is_left_out_and_counted(tmp_path, caplog, line):
    path = tmp_path / "results.jsonl"
    append(path, RESULT)
    path.write_bytes(line + b"\n\n" + path.read_bytes())
    assert read(path) == [RESULT]
    assert f"{path}: 1 of 2 lines are damaged and left out" in caplog.text


def test_keys_of_a_later_version_are_ignored_and_missing_ones_take_their_default(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    path.write_text('{"protocol": "knn", "encoder": "e", "top1": 57, "colour": "red", "hours": null}\n')
    assert read(path) == [Result(protocol="knn", encoder="e", top1=57)]
    assert not caplog.text


def test_many_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    writers = [
        threading.Thread(target=lambda w=w: [append(path, replace(RESULT, seed=100 * w + n)) for n in range(20)])
        for w in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(r.seed for r in read(path)) == [100 * w + n for w in range(8) for n in range(20)]


def test_find_takes_the_newest_that_agrees_in_everything(tmp_path):
    path = tmp_path / "results.jsonl"
    for top1 in (1.0, 2.0):
        append(path, replace(RESULT, top1=top1))
    for change in ({"seed": 9}, {"protocol": "knn"}, *({key: "x"} for key in KEYS if key.endswith("256"))):
        append(path, replace(RESULT, top1=3.0, **change))
        assert find(path, **{**KEYS, **change}).top1 == 3.0
    assert find(path, **KEYS).top1 == 2.0
    assert find(path, **{**KEYS, "seed": 8}) is None


def test_a_file_that_cannot_be_written_or_read_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for use in (lambda path: append(path, RESULT), read):
        with pytest.raises(UserError, match="cannot be"):
            use(tmp_path / "file" / "results.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        append(tmp_path, RESULT)


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda file, line: len(line) - 1)
    with pytest.raises(UserError, match="No space left"):
        append(tmp_path / "results.jsonl", RESULT)


# Hashes.


def test_settings_that_change_no_result_change_no_hash():
    base = Linear(data="a", out="a", pretrained="a")
    other = Linear(
        data="b", out="b", pretrained="b", workers=1, loader="dali", device="cpu", download=True, hide_progress=True,
        log_every=1, resume="never", dali=Dali(threads=3), debug=True, evaluate_only=True, hang_timeout=60,
        max_wall_time="1:00:00", world_size=2, skip_preflight=True, allow_change=["seed"], val_every=3,
    )  # fmt: skip
    assert config_hash(base) == config_hash(other)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 3}, {"subset": "1pct"}, {"batch_size": 8}, {"optim": Optim(lr=1)}, {"max_steps": 1}],
)
def test_settings_that_change_a_result_change_the_hash(change):
    assert config_hash(Linear(**change)) != config_hash(Linear())


def test_a_recipe_read_back_from_its_own_yaml_has_the_same_hash(tmp_path):
    import yaml

    from simsiam.distributed.runtime import Runtime
    from simsiam.run.folder import RunFolder

    settings = parse(Pretrain, [], recipe="quickstart", prog="pretrain.py")
    folder = RunFolder(str(tmp_path))
    with folder.opened(settings, Runtime(0, 1, 0, torch.device("cpu"))):
        folder.begin(settings)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["optim"]["lr"] == settings.optim.lr
    again = parse(Pretrain, ["-c", str(tmp_path / "config.yaml")], recipe="quickstart", prog="pretrain.py")
    assert config_hash(again) == config_hash(settings)
    assert config_hash(Linear(optim=Optim(lr=20))) == config_hash(Linear(optim=Optim(lr=20.0)))


def folder_of(names, labels):
    return FolderImages("/nowhere", index=Index(Strings.of(names), np.array(labels), ("a", "b")))


def test_the_hash_of_a_list_is_of_names_labels_and_order():
    base = list_hash(folder_of(["a/1.png", "b/2.png"], [0, 1]))
    assert base == list_hash(folder_of(["a/1.png", "b/2.png"], np.array([0, 1], np.int32)))
    others = [
        folder_of(["b/2.png", "a/1.png"], [1, 0]),
        folder_of(["a/1.png", "b/2.png"], [0, 0]),
        folder_of(["a/1.pngb", "/2.png"], [0, 1]),
        folder_of(["a/1.png\nb/2.png"], [0]),
        folder_of(["a/1.png"], [0]),
    ]
    assert len({base, *map(list_hash, others)}) == 6
    arrays = ArrayImages(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), "ab", "toy/train")
    assert list_hash(arrays) == list_hash(folder_of(["toy/train/0", "toy/train/1"], [0, 1]))


def test_the_hash_of_imagenet_is_quick():
    count = 1_281_167
    images = folder_of([f"n{i // 1300:08}/n{i // 1300:08}_{i}.JPEG" for i in range(count)], np.arange(count) // 1300)
    began = time.process_time()
    assert len(list_hash(images)) == 64
    assert time.process_time() - began < 4  # 1.2 s on the slow machine that it was written on


# Where and with what.


def test_hardware_names_the_processor_or_the_gpus(monkeypatch):
    told = hardware(Runtime(0, 2, 0, torch.device("cpu")))
    assert told.startswith("CPU, ")
    assert f"{len(os.sched_getaffinity(0))} cores, " in told
    assert not told.endswith(", ")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert hardware(Runtime(0, 8, 0, torch.device("cuda", 0))) == "8 x NVIDIA H100"


def test_versions_time_and_the_name_of_a_cell():
    assert set(versions()) == {"torch", "torchvision", "simsiam"}
    assert json.loads(json.dumps(versions())) == versions()
    assert utc_now().endswith("+00:00")
    assert (knn_cell(200, 0.1), knn_cell(20, 0.07)) == ("k=200,T=0.1", "k=20,T=0.07")

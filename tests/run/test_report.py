"""A report finds every result once and keeps others' numbers apart."""

import re

import pytest

from simsiam.errors import UserError
from simsiam.evaluation.ledger import Result, append
from simsiam.run.report import gather, markdown, published_table, results_table, sweep_table
from tests.run.fakes import classification, pretraining


def rows(table):
    return [dict(zip(table.headers, row)) for row in table.rows]


# Finding.


def test_it_finds_ledgers_and_runs_up_to_three_levels_down(tmp_path):
    pretraining(tmp_path / "one" / "two" / "deep")
    pretraining(tmp_path / "one" / "two" / "three" / "too-deep")
    pretraining(tmp_path / "one" / "two" / "deep" / "checkpoints")
    append(tmp_path / "one" / "results.jsonl", Result(protocol="knn", encoder="elsewhere", top1=50.0))
    found = gather([str(tmp_path)])
    assert list(found.runs) == ["deep"]
    assert [r.encoder for r in found.results] == ["elsewhere", "runs/deep"]


def test_paths_given_twice_and_copies_of_a_ledger_count_once(tmp_path):
    run = pretraining(tmp_path / "runs" / "a")
    for name in ("results.jsonl", "copy/results.jsonl"):
        append(tmp_path / name, Result(protocol="knn", encoder="elsewhere", top1=50.0, figures={"val_images": 3}))
    found = gather([str(tmp_path), str(run), str(run / "metrics.jsonl"), str(tmp_path / "results.jsonl")])
    assert len(found.runs) == 1
    assert len(found.results) == 2


def test_a_link_to_a_run_is_that_run(tmp_path):
    run = pretraining(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "latest").symlink_to(run)
    assert list(gather([str(tmp_path)]).runs) == ["a"]


def test_the_cells_of_a_sweep_are_no_results(tmp_path):
    run = classification(tmp_path / "run", batchnorm="synced", subset="1pct")
    cell = classification(run / "sweep" / "lr=1", top1=99.0, batchnorm="synced", subset="1pct")
    assert [r.top1 for r in gather([str(tmp_path)]).results] == [80.0]
    found = gather([str(cell)])
    assert (found.results, list(found.runs)) == ([], ["lr=1"])
    classification(tmp_path / "sweep" / "named-so-by-the-user" / "b")
    assert len(gather([str(tmp_path)]).results) == 2


def test_runs_of_one_name_are_told_apart(tmp_path):
    for day in ("monday", "friday"):
        pretraining(tmp_path / day / "r18")
    assert list(gather([str(tmp_path)]).runs) == ["friday/r18", "monday/r18"]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "results.jsonl").write_text("rubbish\n{}\n")])
def test_nothing_is_one_sentence(tmp_path, make):
    make(tmp_path)
    with pytest.raises(UserError, match="neither a result nor a run in"):
        gather([str(tmp_path)])
    with pytest.raises(UserError, match="neither"):
        gather([])
    with pytest.raises(UserError, match="does not exist"):
        gather([str(tmp_path / "none")])


# Results.


def test_a_completed_run_without_a_ledger_is_a_result(tmp_path):
    pretraining(tmp_path / "r18")
    classification(tmp_path / "lin")
    table = rows(results_table(gather([str(tmp_path)]).results))
    assert [(r["encoder"], r["protocol"], r["recipe"], r["top-1"], r["top-5"], r["hours"]) for r in table] == [
        ("runs/r18", "linear", "lincls-cifar10", "80.00", "99.00", "0.01"),
        ("runs/r18 (cifar_resnet18)", "knn", "cifar10-r18", "70.00", "", "2.00"),
    ]
    assert [r["kNN (k=200,T=0.1)"] for r in table] == ["", "70.00"]


@pytest.mark.parametrize("state", ["failed", "in-progress"])
def test_a_run_that_did_not_complete_is_no_result(tmp_path, state):
    pretraining(tmp_path / "r18", state=state)
    found = gather([str(tmp_path)])
    assert found.results == []
    assert found.runs["r18"].state == state


@pytest.mark.parametrize(
    ("config", "protocol"),
    [
        ({"pretrained": "random"}, "random-linear"),
        ({"batchnorm": True}, "linear"),
        ({"cache_features": True}, "linear, cached features"),
        ({"batchnorm": "synced", "subset": "1pct"}, "1pct"),
        ({"batchnorm": "synced", "subset": "0.1"}, "10pct"),
        ({"batchnorm": "per_rank", "subset": "0.3"}, "fine-tuned on 0.3"),
    ],
)
def test_what_a_run_measured_is_read_from_its_settings(tmp_path, config, protocol):
    classification(tmp_path / "run", **config)
    assert [r.protocol for r in gather([str(tmp_path)]).results] == [protocol]


@pytest.mark.parametrize("place", [{"run": "runs/r18"}, {"run": "{path}"}, {"encoder": "./runs/r18/"}])
def test_a_run_that_a_ledger_tells_of_counts_once(tmp_path, place):
    run = pretraining(tmp_path / "runs" / "r18")
    place = {key: value.format(path=run) for key, value in place.items()}
    append(tmp_path / "results.jsonl", Result(**{"protocol": "knn", "encoder": "x", "top1": 71.0, **place}))
    assert [r.top1 for r in gather([str(tmp_path)]).results] == [71.0]


def test_a_run_of_random_weights_counts_once_though_its_protocol_has_another_name_in_the_ledger(tmp_path):
    run = classification(tmp_path / "random-10pct", pretrained="random", batchnorm="synced", subset="10%")
    append(tmp_path / "results.jsonl", Result(protocol="random-10pct", encoder="random", top1=80.0, run=str(run)))
    assert [r.protocol for r in gather([str(tmp_path)]).results] == ["random-10pct"]


@pytest.mark.parametrize(
    ("data", "datasets"), [(["cifar10:/data"], {"CIFAR-10"}), (["shapes"], set()), (["shapes", "/data"], None)]
)
def test_published_rows_are_of_our_data_where_it_has_a_name(data, datasets):
    ours = [Result(protocol="linear", encoder="e", data=name) for name in data]
    found = {row["dataset"] for row in rows(published_table(ours))}
    assert found == datasets if datasets is not None else {"CIFAR-10", "ImageNet"} <= found


def test_knn_of_an_encoder_stands_beside_its_other_protocols():
    same = {"encoder": "e", "encoder_sha256": "s", "data": "imagenet"}
    results = [
        Result(protocol="knn", top1=60.4, figures={"k=200,T=0.1": 57.4, "k=20,T=0.07": 60.4}, **same),
        Result(protocol="linear", top1=68.1, top5=88.0, hours=12.345, finished="2026-01-31T10:30:59+01:00", **same),
        Result(protocol="linear", top1=60.0, **{**same, "encoder_sha256": "other"}),
        Result(protocol="linear", top1=60.0, **{**same, "data": "cifar10"}),
    ]
    table = rows(results_table(results))
    assert [r["kNN (k=200,T=0.1)"] for r in table] == ["57.40", "57.40", "", ""]
    assert (table[1]["hours"], table[1]["finished"]) == ("12.35", "2026-01-31 09:30 UTC")
    assert rows(results_table(results, whole=True))[0]["further figures"] == "k=20,T=0.07 60.40"


def test_a_variant_of_a_protocol_is_marked():
    figures = {"protocol": "linear, on cached features of centre crops: a variant"}
    ours = [Result(protocol="linear", encoder="e", figures=f) for f in (figures, {"protocol": "linear"})]
    assert [row["protocol"] for row in rows(results_table(ours))] == ["linear, a variant", "linear"]


def test_markdown_cannot_be_broken_by_a_name():
    text = markdown(results_table([Result(protocol="knn", encoder="a|b\nc<script>", top1=1.0)]))
    lines = text.split("\n")
    assert len(lines) == 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert lines[1].split(" | ")[4:9] == ["---:"] * 5
    assert "<script" not in text


# Others' numbers.


def test_published_rows_are_of_our_protocols_alone_and_every_number_is_marked():
    table = published_table([Result(protocol="1pct", encoder="e", top1=40.0), Result(protocol="mine", encoder="e")])
    assert "not measured here" in table.title
    assert {row["protocol"] for row in rows(table)} == {"1pct"}
    assert ("PIRL", "", "57.2") in [
        (row["method"], row["published top-1"], row["published top-5"]) for row in rows(table)
    ]
    assert not {"top-1", "top-5"} & set(table.headers)
    assert published_table([Result(protocol="mine", encoder="e")]).rows == []


def test_a_sweep_shows_every_key_of_every_cell():
    table = sweep_table([{"lr": 0.1, "top1": 70.123}, {"lr": 1.0, "head_lr": 5, "name": "x"}])
    assert table.headers == ["lr", "top1", "head_lr", "name"]
    assert table.rows == [["0.1", "70.12", "", ""], ["1", "", "5", "x"]]
    assert table.numbers == {"lr", "top1", "head_lr"}

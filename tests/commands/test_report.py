"""`simsiam report` as it is typed."""

import argparse
import subprocess
import sys

import pytest

from simsiam.commands import report
from simsiam.errors import UserError
from simsiam.evaluation.ledger import Result, append
from simsiam.export.write import write_encoder
from simsiam.models.encoders import build_encoder
from tests.run.fakes import classification, detection, pretraining


def call(*words):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    report.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def ledger(tmp_path):
    append(tmp_path / "results.jsonl", Result(protocol="linear", encoder="runs/größe", top1=68.05, top5=88.0))
    return tmp_path / "results.jsonl"


def test_it_prints_our_table_then_the_others_and_writes_page_and_file(ledger, tmp_path, capsys):
    call(ledger, "--out", tmp_path / "page.html", "--markdown", tmp_path / "table.md")
    printed = capsys.readouterr().out
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert printed.startswith(table)
    ours, _, others = table.partition("Published by others, not measured here:")
    assert "| runs/größe | linear |" in ours
    assert "68.05" in ours
    assert "68.1" not in ours
    assert "| published top-1 |" in others
    assert "arXiv:2011.10566" in others
    assert "68.05" not in others
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert f"page        {tmp_path / 'page.html'}" in printed


def test_detection_is_printed_below_under_titles_of_its_own(ledger, tmp_path, capsys):
    call(ledger, "--out", tmp_path / "page.html")
    without = capsys.readouterr().out.partition("\n\nfound")[0]
    run = detection(tmp_path / "runs" / "det", trials=2)
    call(ledger, run, "--out", tmp_path / "page.html")
    printed = capsys.readouterr().out
    assert printed.startswith(without)
    titles = [line for line in printed.splitlines() if line.endswith(":")]
    assert titles[-2:] == ["Detection:", "Detection published by others, not measured here:"]
    assert "| 81.50 +- 0.20 |" in printed
    assert "2 results, 1 run" in printed
    call(run, "--out", tmp_path / "page.html")
    assert capsys.readouterr().out.startswith("Detection:\n\n| encoder |")


def test_each_run_gets_its_curves_and_a_folder_that_is_read_only_costs_no_page(tmp_path, capsys):
    runs = [pretraining(tmp_path / "runs" / name) for name in "ab"]
    (runs[0] / "curves.svg").mkdir()  # a root user could write any folder
    call(tmp_path, "--out", tmp_path / "page.html")
    assert "curves.svg of a: it cannot be written" in capsys.readouterr().out
    assert (runs[1] / "curves.svg").read_text().startswith("<svg")
    assert (tmp_path / "page.html").exists()


def test_pictures_are_made_where_the_data_is_and_kept(tmp_path, capsys):
    small = {"views": {"size": 16, "resize": 16}}
    here = pretraining(tmp_path / "runs" / "here", data="digits", **small)
    gone = pretraining(tmp_path / "runs" / "gone", data="/x", **small)
    bare = pretraining(tmp_path / "runs" / "bare", data="digits", **small)
    classification(tmp_path / "runs" / "lin")
    for run in (here, gone):
        write_encoder(build_encoder("resnet8"), run / "encoder.safetensors", metadata={})
    call(tmp_path, "--out", tmp_path / "page.html")
    assert not (here / "gallery.json").exists()
    assert "Nearest neighbours" not in (tmp_path / "page.html").read_text()

    capsys.readouterr()
    for made in ("made", "as they were"):
        call(tmp_path, "--out", tmp_path / "page.html", "--pictures")
        printed = capsys.readouterr().out
        assert f"pictures    here: {made}" in printed
        assert "neighbours and map of gone: --data /x is neither" in printed
        assert "neighbours and map of bare: " in printed
        assert "of lin" not in printed
    text = (tmp_path / "page.html").read_text()
    assert text.count("Nearest neighbours") == 1
    assert "No neighbours and map: --data /x is neither" in text
    assert not (bare / "gallery.json").exists()


def test_the_page_is_report_html_where_one_stands(ledger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call(".")
    assert (tmp_path / "report.html").exists()


def test_a_file_that_cannot_be_written_is_one_sentence(ledger, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        call(ledger, "--out", tmp_path / "none" / "page.html")


def test_nothing_found_exits_with_2_and_a_sentence(tmp_path):
    command = [sys.executable, "-m", "simsiam", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: There is neither a result nor a run in")
    assert list(tmp_path.glob("*.html")) == []


def test_help_does_not_import_torch():
    code = "import sys, simsiam.commands.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""`simsiam tables`: rows run once each, and go beside the paper's numbers, never among them."""

import json
from pathlib import Path

import pytest

from simsiam.commands import tables
from simsiam.commands.tables import row_words, table_text
from simsiam.errors import UserError
from simsiam.methods.registry import resolve_method
from simsiam.run.paper_tables import TABLES
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain

ROWS = [(table, row) for table, (_, rows) in TABLES.items() for row in rows]


@pytest.mark.parametrize("recipe", ["quickstart", "cifar10-r18", "imagenet-r50-100ep"])
def test_every_row_is_a_run_that_can_be_asked_for(recipe: str) -> None:
    base = ["--recipe", recipe]
    for _, row in ROWS:
        settings = parse(Pretrain, [*base, *row_words(row, base)], recipe="", prog="pretrain.py")
        resolve_method(settings.method)


def test_at_the_papers_scale_the_rows_are_the_papers() -> None:
    words = {(table, row.name): row_words(row, ["--recipe", "imagenet-r50-100ep"]) for table, row in ROWS}
    assert words["batch", "64"] == ["--batch_size", "64"]
    assert words["batch", "4096"] == ["--batch_size", "4096", "--optim.warmup_epochs", "10.0"]
    assert words["dim", "256"] == ["--method.dim", "256", "--method.predictor_hidden", "64"]
    assert words["dim", "2048"] == ["--method.dim", "2048", "--method.predictor_hidden", "512"]


def test_elsewhere_they_are_the_same_shares_of_the_recipe_as_it_was_changed() -> None:
    base = ["--recipe", "quickstart", "--epochs=30", "--batch-size", "96", "--method.dim", "512"]
    words = {(table, row.name): row_words(row, base) for table, row in ROWS}
    assert words["batch", "2048"] == ["--batch_size", "384", "--optim.warmup_epochs", "3.0"]
    assert words["batch", "64"] == ["--batch_size", "12"]
    assert words["dim", "256"] == ["--method.dim", "64", "--method.predictor_hidden", "16"]


def invoke(parser_words: list[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    tables.add_arguments(parser)
    tables.run(parser.parse_args(parser_words))


def test_rows_run_once_and_one_that_stopped_itself_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    calls: list[tuple] = []

    def script(name: str, *words: str, ranks: int) -> None:
        calls.append((name, *words))
        folder = Path(words[words.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        if "false" in words:  # the row without stop-gradient
            (folder / "failed").touch()
            (folder / "summary.json").write_text('{"state": "failed", "reason": "not finite at step 3"}')
            raise UserError("failed")
        (folder / "completed").touch()
        figures = {"top1": 61.25} if name == "lincls.py" else {"knn": 55.5, "loss": -0.9, "std": 0.98, "verdict": "ok"}
        (folder / "summary.json").write_text(json.dumps({"state": "completed", **figures}))

    monkeypatch.setattr(tables, "run_script", script)
    words = ["stop-gradient", "--out", str(tmp_path), "--ranks", "1", "--settings", "--data", "digits", "--epochs", "2"]
    invoke(words)
    assert [call[0] for call in calls] == ["pretrain.py", "lincls.py", "pretrain.py"]
    # What every row has comes before what is the row's own.
    assert calls[0][1:9] == (
        "--recipe", "quickstart", "--data", "digits", "--epochs", "2", "--optim.predictor_lr", "cosine",
    )  # fmt: skip
    assert calls[1][3:5] == ("--data", "digits")
    told = capsys.readouterr().out
    assert "| with | 55.5 | 61.2 | -0.900 | 0.980 | ok | 67.7 | +-0.1 over 5 trials |" in told
    assert "| without |  |  |  |  | not finite at step 3 | 0.1 | collapses |" in told
    assert (tmp_path / "stop-gradient/table.md").read_text() in told
    capsys.readouterr()
    invoke(words)
    assert len(calls) == 3
    assert capsys.readouterr().out.count("| with |") == 1
    assert set(json.loads((tmp_path / "stop-gradient/table.json").read_text())) == {"with", "without"}
    with pytest.raises(UserError, match="holds a row of other settings"):
        invoke([*words, "--seed", "1"])


def test_rows_asked_for_one_by_one_come_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def script(name: str, *words: str, ranks: int) -> None:
        folder = Path(words[words.index("--out") + 1])
        (folder / "completed").touch()
        (folder / "summary.json").write_text(f'{{"state": "completed", "knn": {len(folder.name)}, "verdict": "ok"}}')

    monkeypatch.setattr(tables, "run_script", script)
    for row in ("asymmetric", "symmetric"):
        invoke(["symmetry", "--rows", row, "--out", str(tmp_path), "--no-linear", "--ranks", "1"])
    told = capsys.readouterr().out.rpartition("symmetric loss")[2]
    assert "| symmetric | 9.0 |" in told
    assert "| asymmetric | 10.0 |" in told
    assert "| asymmetric-2x |  |  |  |  | not run yet |" in told
    assert not (tmp_path / "symmetry/asymmetric/linear").exists()


def test_a_crash_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def crash(name: str, *words: str, ranks: int) -> None:
        raise UserError("`pretrain.py` failed; what it printed above says why")

    monkeypatch.setattr(tables, "run_script", crash)
    for _ in range(2):
        with pytest.raises(UserError, match="says why"):
            invoke(["predictor", "--rows", "none", "--out", str(tmp_path), "--ranks", "1"])


def test_unknown_names_and_rows_that_have_not_run() -> None:
    with pytest.raises(UserError, match="There is no table 'x'; take one of stop-gradient"):
        invoke(["x"])
    with pytest.raises(UserError, match="Table dim has no row '7'; it has 256, 512"):
        invoke(["dim", "--rows", "7"])
    assert "| 256 |  |  |  |  | not run yet | 65.3 |  |" in table_text("dim", TABLES["dim"][1], {}, "cpu")

"""simsiam quickstart, again and again in one place."""

import json
import sys
from pathlib import Path

import pytest

from simsiam.__main__ import main
from simsiam.commands import quickstart

FIGURES = {"knn_random": 40.0, "knn": 80.0, "top1": 82.0, "pairs_per_second": 500.0}


def test_a_second_one_begins_anew_and_keeps_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run_script(script: str, *words: object, ranks: int = 1) -> None:
        if "--out" in words:
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir()  # fails where there is one
            (folder / "summary.json").write_text(json.dumps(FIGURES))

    monkeypatch.setattr(quickstart, "run_script", run_script)
    monkeypatch.setattr(sys, "argv", ["simsiam", "quickstart", "--out", str(tmp_path / "quick")])
    for _ in range(2):
        main()
        assert "kNN, pretrained      80.0%" in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:-15] if name[-1].isdigit() else name for name in names] == [
        "quick", "quick-", "quick-linear", "quick-linear-",
    ]  # fmt: skip

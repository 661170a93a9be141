"""A run folder read back, whole or not."""

from simsiam.run.record import read_run
from simsiam.run.report import gather
from tests.run.fakes import classification, detection, pretraining


def test_a_damaged_run_folder_shows_what_can_be_read(tmp_path):
    run = pretraining(tmp_path / "a")
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_bytes(
        b'\xff\n[1]\n{"loss": 3}\n{"step": "x", "loss": 3}\n{"step": 1, "loss": NaN}\n{"step": 1, "loss": null}\n'
        + b'{"step": 1, "loss": -1e300}\n'
        + whole.encode() + b'{"step": 99, "lo'
    )  # fmt: skip
    for name, text in (("config.yaml", "a: [1\n: b"), ("summary.json", "{"), ("sweep.json", "{")):
        (run / name).write_text(text)
    record = read_run(run)
    assert record.series["loss"] == [(float(step), -step / 40) for step in range(2, 41, 2)]
    assert record.steps_per_epoch == 10
    assert (record.config, record.summary, record.kind, record.recipe) == ({}, {}, "pretraining", "")
    assert record.figure("loss") == -1.0
    assert gather([str(run)]).runs["a"] == record


def test_a_run_that_goes_on_tells_its_newest_figures_and_not_those_of_an_earlier_end(tmp_path):
    run = pretraining(tmp_path / "a")
    (run / "completed").unlink()
    (run / "in-progress").touch()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "epoch": 5.0, "loss": -0.7, "verdict": "warn", "reason": "low rank"}\n')
    record = read_run(run)
    assert [record.figure(name) for name in ("loss", "verdict", "reason", "seconds")] == [
        -0.7,
        "warn",
        "low rank",
        None,
    ]


def test_a_run_is_of_one_kind_with_its_settings_and_without(tmp_path):
    for make in (pretraining, classification, detection):
        run = make(tmp_path / make.__name__)
        assert read_run(run).kind == make.__name__
        (run / "config.yaml").write_text("")
        assert read_run(run).kind == make.__name__

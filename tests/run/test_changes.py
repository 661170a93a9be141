"""A run goes on with the settings, data and code it began with, or with those that were said to change."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from simsiam.errors import UserError
from simsiam.run.changes import (
    Change,
    changed_settings,
    check_facts,
    check_unchanged,
    read_facts,
    rounding_changes,
    write_facts,
)
from simsiam.run.folder import RunFolder
from simsiam.settings.detect import Detect
from simsiam.settings.effects import FREE, UNMEASURED
from simsiam.settings.tree import FineTune, Linear, Optim, Pretrain, Views

BEGAN = Pretrain(
    data="shapes", method={"name": "simsiam", "dim": 64}, branches=[{"blur": 1.0}, {"solarize": 0.2}],
    optim=Optim(milestones=(30, 60.5), weight_decay=1e-5),
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """config.yaml of a run that began."""
    RunFolder(str(tmp_path)).begin(BEGAN)
    return tmp_path / "config.yaml"


def test_the_same_settings_are_the_same_after_a_way_through_yaml(config: Path) -> None:
    assert changed_settings(yaml.safe_load(config.read_text()), asdict(BEGAN)) == []
    check_unchanged(config, BEGAN, [])


def test_every_change_is_found_by_its_dotted_key() -> None:
    earlier = {"epochs": 100, "optim": {"lr": 0.05, "per": "step"}, "method": {"name": "moco", "queue": 4}, "at": [1]}
    now = {"epochs": 100.0, "optim": {"lr": 0.1, "per": "step"}, "method": {"name": "byol", "ema": 1}, "at": (1, 2)}
    assert changed_settings(earlier, now) == [
        Change("optim.lr", 0.05, 0.1),
        Change("method.name", "moco", "byol"),
        Change("method.ema", "not set", 1),
        Change("at", [1], [1, 2]),
        Change("method.queue", 4, "not set"),
    ]


def test_what_changes_is_refused_with_both_values_and_a_remedy_that_works(config: Path) -> None:
    settings = replace(BEGAN, epochs=200, optim=replace(BEGAN.optim, lr=0.1))
    with pytest.raises(UserError) as refused:
        check_unchanged(config, settings, [])
    assert str(refused.value) == (
        f"{config.parent} holds a run with other settings (epochs was 100 and is 200, optim.lr was 0.05 and is 0.1); "
        "give another --out, or go on with the new ones by --allow-change epochs,optim.lr"
    )
    check_unchanged(config, settings, ["epochs", "optim.lr"])
    with pytest.raises(UserError, match=r"other settings \(epochs was 100 and is 200\)"):
        check_unchanged(config, settings, ["optim.lr"])


@pytest.mark.parametrize(
    ("change", "allow"),
    [
        ({"optim": replace(BEGAN.optim, lr=0.1, momentum=0.5)}, "optim"),
        ({"method": {"name": "simsiam", "dim": 128}}, "method"),
        ({"method": {"name": "simsiam"}}, "method.dim"),
        ({"batch_size": 64}, "batch-size"),
        ({"branches": [{"blur": 1.0}, {}]}, "branches"),
    ],
)
def test_a_section_or_a_key_with_dashes_admits(config: Path, change: dict[str, Any], allow: str) -> None:
    settings = replace(BEGAN, **change)
    with pytest.raises(UserError, match="other settings"):
        check_unchanged(config, settings, ["optim.l", "opt", "met", "method.di", "batch", "branches.0"])
    check_unchanged(config, settings, [allow])


def test_of_many_changes_some_are_shown_and_the_others_counted(config: Path) -> None:
    many = {"seed": 1, "epochs": 2, "batch_size": 8, "subset": "0.5", "precision": "bf16", "shuffle": "shards"}
    with pytest.raises(UserError, match=r"(, [a-z_.]+ was .*){5} and 2 more\); give .* KEY,\.\.\.$"):
        check_unchanged(config, replace(BEGAN, **many, checksums=True, accumulate=2), [])


def test_another_encoder_cannot_be_gone_on_with(config: Path) -> None:
    with pytest.raises(UserError, match=r"encoder was resnet50 and is resnet18\); give another --out$"):
        check_unchanged(config, replace(BEGAN, encoder="resnet18", seed=1), [])


def test_a_setting_that_came_later_had_its_default_before(config: Path) -> None:
    held = yaml.safe_load(config.read_text())
    del held["seed"], held["views"]["solarize"], held["small_views"]
    config.write_text(yaml.safe_dump(held))
    check_unchanged(config, BEGAN, [])
    with pytest.raises(UserError, match=r"\(seed was 0 and is 1, views.solarize was 0.0 and is 0.5\)"):
        check_unchanged(config, replace(BEGAN, seed=1, views=Views(solarize=0.5)), [])


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "\x00", "x: !!python/object/apply:os.getcwd []"])
def test_a_damaged_config_is_named(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        check_unchanged(config, BEGAN, [])
    config.unlink()
    check_unchanged(config, BEGAN, [])


COUNTED = """
    accumulate batch_size precision reduce_dtype seed
    branches checksums encoder epochs init method optim shuffle shuffle_buffer small_views subset views views_schedule
    zero_init_residual
    batchnorm cache_features held_out sweep
    extra_norm flip head iterations mask mean precise_bn proposal_loss sizes std test_set train_sets
"""


def test_every_setting_is_known_to_count_or_not() -> None:
    """What counts, written out a second time: whoever adds a setting must say here which it is."""
    known = {field.name for kind in (Pretrain, Linear, FineTune, Detect) for field in fields(kind)}
    assert known - FREE == set(COUNTED.split())
    assert known >= FREE
    assert {"max_steps", "trials", "knn"} == FREE - UNMEASURED


FACTS = {"data_sha256": "d" * 64, "code": "0.1 abc", "torch": "2.13.0", "ranks": 2, "threads": 1, "device": "cpu"}


def test_facts_come_back(tmp_path: Path) -> None:
    assert read_facts(tmp_path) == {}
    write_facts(tmp_path, FACTS)
    assert read_facts(tmp_path) == FACTS
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"torch": "2', b"\xff\xfe\x00", b"[" * 100_000, b'{"torch": [1]}'])
def test_damaged_facts_are_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "facts.json").write_bytes(damage)
    assert read_facts(tmp_path) == {}


@pytest.mark.parametrize(
    ("fact", "allow", "says"),
    [
        ("data_sha256", "data", r"began with other images"),
        ("code", "code", "other code"),
        ("bn_images", "batchnorm", "another number of images for"),
    ],
)
def test_other_data_or_code_is_refused_unless_allowed(tmp_path: Path, fact: str, allow: str, says: str) -> None:
    earlier, now = {**FACTS, fact: "old"}, {**FACTS, fact: "new"}
    with pytest.raises(UserError, match=rf"{says}.*\(old, now new\).*--allow-change {allow}"):
        check_facts(tmp_path, earlier, now, ["optim"])
    check_facts(tmp_path, earlier, now, [allow])
    check_facts(tmp_path, now, now, [])
    check_facts(tmp_path, {}, now, [])  # of a run that noted none


def test_another_machinery_is_told_with_what_stays_the_same() -> None:
    assert rounding_changes(FACTS, FACTS) is None
    assert rounding_changes({}, FACTS) is None
    assert rounding_changes(FACTS, {**FACTS, "code": "0.2", "data_sha256": "e"}) is None
    assert rounding_changes(FACTS, {**FACTS, "torch": "2.14.0", "ranks": 4}) == (
        "The run goes on with another torch (2.13.0 -> 2.14.0) and number of ranks (2 -> 4): the order of samples and "
        "what is drawn for each view stay identical, rounding does not."
    )

"""Defaults < recipe < command line, and a mistake is named with what was probably meant."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simsiam.errors import UserError
from simsiam.methods.registry import resolve_method
from simsiam.settings.detect import Detect
from simsiam.settings.foreign import FOREIGN
from simsiam.settings.parse import find_recipe, parse, recipe_names, setting_types
from simsiam.settings.sweep import sweep_cells
from simsiam.settings.tree import FineTune, Job, Linear, Pretrain
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _no_user_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.delenv("LOG", raising=False)


def pretrain(*argv: object, recipe: str = "quickstart") -> Pretrain:
    return parse(Pretrain, [str(word) for word in argv], recipe=recipe, prog="pretrain.py")


@pytest.fixture
def recipe_file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def test_the_line_beats_the_recipe_and_the_recipe_the_default(recipe_file) -> None:
    path = recipe_file("batch_size: 48\nepochs: 9\noptim: {lr: 0.7}\n")
    settings = pretrain("--recipe", path, "--epochs", 3)
    assert (settings.epochs, settings.batch_size, settings.optim.lr) == (3, 48, 0.7)
    assert (settings.accumulate, settings.optim.momentum) == (1, 0.9)  # the defaults of the tree


def test_a_line_knows_nothing_of_the_line_before(recipe_file) -> None:
    plain = pretrain()
    pretrain("--optim.lr", 3, "--views.blur", 0, "--hide-progress", "--method.dim", 8, "--branches", "[{blur: 1.0}]")
    pretrain("--recipe", recipe_file("optim: {momentum: 0.5}\nbranches: [{blur: 0.1}]"))
    assert pretrain() == plain


@pytest.mark.parametrize("flag", [["--recipe", "cifar10-r18"], ["--recipe=cifar10-r18"], ["-c", "cifar10-r18"]])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_overrides_count_wherever_the_recipe_stands(flag: list[str], position: int) -> None:
    words = [["--epochs", "3"], ["--optim.lr=0.5"]]
    words.insert(position, flag)
    settings = pretrain(*[w for part in words for w in part])
    assert (settings.epochs, settings.optim.lr, settings.data) == (3, 0.5, "cifar10")
    assert settings.out == "runs/cifar10-r18"


def test_keys_may_be_written_with_dashes_and_values_keep_theirs() -> None:
    settings = pretrain("--batch-size=128", "--optim.weight-decay", "0.25", "--out", "my-runs/a-b", "--data=c-d")
    assert (settings.batch_size, settings.optim.weight_decay) == (128, 0.25)
    assert (settings.out, settings.data) == ("my-runs/a-b", "c-d")


@pytest.mark.parametrize(
    ("words", "hidden", "download"),
    [
        ([], False, False),
        (["--hide-progress", "--download"], True, True),
        (["--hide-progress", "false", "--download"], False, True),
        (["--download=false", "--hide-progress", "True"], True, False),
    ],
)
def test_a_bare_switch_is_true(words: list[str], hidden: bool, download: bool) -> None:
    settings = pretrain(*words, "--epochs", 5)
    assert (settings.hide_progress, settings.download, settings.epochs) == (hidden, download, 5)


def test_method_options_merge_with_the_recipes() -> None:
    method = pretrain("--method", "simsiam", "--method.predictor-hidden", 32).method
    assert method == {
        "name": "simsiam", "projector_layers": 2, "projector_hidden": 256, "dim": 256, "predictor_hidden": 32,
    }  # fmt: skip


@pytest.mark.parametrize("words", [["--method", "{}"], ["--method.name", "{}"], ["--method.name={}"], ["--method={}"]])
def test_another_method_takes_the_options_that_it_has_and_all_other_settings(words: list[str]) -> None:
    settings = pretrain(*[w.format("simsiam-moving-average") for w in words], "--method.momentum", 0.5)
    assert settings.method == {
        "name": "simsiam-moving-average", "projector_layers": 2, "projector_hidden": 256, "dim": 256, "momentum": 0.5,
    }  # fmt: skip
    assert replace(settings, method={}) == replace(pretrain(), method={})
    resolve_method(settings.method)


@pytest.mark.parametrize("word", ["--method.predictor_hidden=3", "--method.predictor-hidden=3"])
def test_an_option_on_the_line_is_never_dropped(word: str) -> None:
    settings = pretrain("--method", "simsiam-moving-average", word)
    with pytest.raises(UserError, match="no option 'predictor_hidden'"):
        resolve_method(settings.method)


def test_options_of_a_recipe_for_its_own_method_are_never_dropped(recipe_file) -> None:
    for text, words in (
        ("method: {name: simsiam-moving-average, predictor_hidden: 3}", []),
        ("method: {name: simsiam-moving-average, predictor_hidden: 3}", ["--method", "simsiam-moving-average"]),
        ("method: {momentum: 3}", ["--method", "simsiam"]),  # that of a recipe which names none
    ):
        with pytest.raises(UserError, match="has no option"):
            resolve_method(pretrain("-c", recipe_file(text), *words).method)


def test_an_unknown_method_on_the_line_is_refused() -> None:
    with pytest.raises(UserError, match="Unknown method 'sinclr'; did you mean 'simclr'"):
        pretrain("--method", "sinclr")


def test_torch_is_not_imported_for_the_recipes_own_method() -> None:
    code = (
        "import sys; from simsiam.settings.parse import parse; from simsiam.settings.tree import Pretrain\n"
        "parse(Pretrain, ['--method', 'simsiam', '--method.dim', '8'], recipe='quickstart', prog='x')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["--epochz", "3"], "'epochs'"),
        (["--batch-sise=3"], "'batch_size'"),
        (["--optim.lrr", "3"], "'optim.lr'"),
        (["--momentum", "0.5"], "'optim.momentum'"),
        (["--optim.learning_rate", "0.5"], "'optim.lr'"),
    ],
)
def test_an_unknown_key_on_the_line_names_the_nearest(words: list[str], nearest: str) -> None:
    with pytest.raises(UserError, match=f"Unknown setting .* did you mean {nearest}"):
        pretrain(*words)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochz: 3", "'epochz' in .*mine.yaml; did you mean 'epochs'"),
        ("optim: {lrr: 3}", "'optim.lrr' in .*mine.yaml; did you mean 'optim.lr'"),
        ("epochs: many", "'epochs' must be a whole number, not many"),
        ("optim: {name: adamax}", "optim.name.*'sgd', 'lars', 'adam', 'adamw'.*adamax"),
        ("epochs: 3\noptim: {lr: [", r"mine.yaml is not YAML \(line 2: .*expected"),
        ("method: moco", "section of settings, not 'moco'; write `method: {name: moco}`"),
        ("- epochs", "holds no settings"),
        ("", "holds no settings"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(recipe_file, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        pretrain("--recipe", recipe_file(text))


@pytest.mark.parametrize(
    ("kind", "prog", "recipe", "script"),
    [
        (Pretrain, "pretrain.py", "lincls-cifar10", "lincls.py"),
        (Linear, "lincls.py", "semisup-10pct", "semisup.py"),
        (FineTune, "semisup.py", "voc07", "transfer/detect.py"),
        (Detect, "detect.py", "cifar10-r18", "pretrain.py"),
        (Linear, "classify.py --protocol linear", "lincls-cifar10", "lincls.py"),
    ],
)
def test_a_recipe_of_another_script_is_refused(kind: type[Job], prog: str, recipe: str, script: str) -> None:
    with pytest.raises(UserError, match=f"^The recipe {recipe} is for {script}, not for {prog.split()[0]}; "):
        parse(kind, [], recipe=recipe, prog=prog)


def test_a_python_tag_is_refused_and_not_run(recipe_file, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with pytest.raises(UserError, match="not YAML"):
        pretrain("--recipe", recipe_file(f"epochs: !!python/object/apply:os.mkdir ['{trace}']"))
    assert not trace.exists()


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00epochs")
    with pytest.raises(UserError, match="not YAML"):
        pretrain("--recipe", tmp_path / "b.yaml")


def test_an_unknown_recipe_names_the_nearest_or_where_to_look() -> None:
    with pytest.raises(UserError, match="did you mean cifar10-r18"):
        find_recipe("cifar10-r1")
    with pytest.raises(UserError, match="simsiam recipes"):
        find_recipe("zzzzqq")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_parses(name: str) -> None:
    kinds = {"lincls": Linear, "semisup": FineTune, "transfer": Linear, "voc07": Detect, "voc0712": Detect}
    kinds |= {"teacher": FineTune, "coco": Detect, "transfer-finetune": FineTune, "shapes-voc": Detect}
    kind = kinds.get(name, kinds.get(name.partition("-")[0], Pretrain))
    settings = parse(kind, [], recipe=name, prog="x")
    assert settings.out == f"runs/{name}"
    if kind is Pretrain:
        resolve_method(settings.method)
    elif kind is not Detect:
        sweep_cells(settings.sweep, ("lr", "head_lr"))


def test_data_and_log_fill_what_is_left_open(monkeypatch: pytest.MonkeyPatch, recipe_file) -> None:
    monkeypatch.setenv("DATA", "/images")
    monkeypatch.setenv("LOG", "/logs")
    path = recipe_file("epochs: 1")
    assert (pretrain("-c", path).data, pretrain("-c", path).out) == ("/images", "/logs/mine")
    said = pretrain("-c", path, "--data", "shapes", "--out", "here")
    assert (said.data, said.out) == ("shapes", "here")
    assert pretrain().data == "shapes"  # the recipe's own


def test_debug_is_a_short_run_in_a_folder_of_its_own() -> None:
    settings = pretrain("--debug", "--accumulate", 2, "--out", "here/")
    assert (settings.batch_size, settings.epochs, settings.max_steps) == (32, 1, 2)
    assert (settings.out, settings.resume, settings.log_every) == ("here-debug", "never", 1)


@pytest.mark.parametrize(
    "words", [["-c=cifar10-r18"], ["-ccifar10-r18"], ["-c", "cifar10-r18"], ["--recipe=cifar10-r18"]]
)
def test_a_recipe_is_found_however_its_option_is_spelt(words: list[str]) -> None:
    assert parse(Pretrain, words, recipe="quickstart", prog="pretrain.py").encoder == "cifar_resnet18"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe"], "needs a name"),
        (["--epoch", "3"], "did you mean 'epochs'"),
        (["--optim.lrr=1"], "did you mean 'optim.lr'"),
    ],
)
def test_a_key_is_never_taken_for_another(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(Pretrain, words, recipe="quickstart", prog="pretrain.py")


def test_a_switch_inside_a_section_may_stand_bare() -> None:
    assert parse(Pretrain, ["--optim.exclude-1d"], recipe="quickstart", prog="pretrain.py").optim.exclude_1d


def test_a_number_for_a_section_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("optim: 3\n")
    with pytest.raises(UserError, match="section of settings"):
        parse(Pretrain, ["-c", str(file)], recipe="quickstart", prog="pretrain.py")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optim.lr", "abc"], "pretrain.py: 'optim.lr' must be a number, not abc"),
        (["--epochs", "1e1"], "pretrain.py: 'epochs' must be a whole number, not 10.0"),
        (["--precision", "int8"], "pretrain.py: 'precision' must be one of 'auto', 'fp32', 'bf16', 'fp16', not int8"),
        (["--views.scale", "0.2"], "pretrain.py: 'views.scale' must be 2 values with commas between, not [0.2]"),
        (["--branches", "[1]"], "pretrain.py: 'branches' must be a mapping, such as {KEY: VALUE}, not 1"),
        (["--lr", "1"], "Unknown setting 'lr' for pretrain.py; did you mean 'optim.lr'?"),
        (["--arch=resnet18"], "Unknown setting 'arch' for pretrain.py; did you mean 'encoder'?"),
        (
            ["--fix-pred-lr"],
            "Unknown setting 'fix_pred_lr' for pretrain.py; did you mean 'optim.predictor_lr constant'?",
        ),
        (["-b", "32"], "pretrain.py knows no '-b'; did you mean --batch_size?"),
        (["IMAGENET"], "pretrain.py takes no 'IMAGENET' without the setting that it is for, as in --data IMAGENET"),
        (["--seed", "1", "2"], "pretrain.py takes no '2' without the setting"),
        (
            ["--allow-change", "optim.lrr"],
            "--allow-change names 'optim.lrr', which is no setting; did you mean 'optim.lr'?",
        ),
    ],
)
def test_what_others_type_and_what_does_not_fit_is_answered_in_our_words(words: list[str], says: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(Pretrain, words, recipe="quickstart", prog="pretrain.py")
    assert str(refused.value).startswith(says)


def test_numbers_with_commas_between_are_a_tuple() -> None:
    words = ["--views.scale", "0.3,0.9", "--optim.milestones=3,5", "--allow-change", "data,optim.lr"]
    settings = parse(Pretrain, words, recipe="quickstart", prog="pretrain.py")
    assert (settings.views.scale, settings.optim.milestones) == ((0.3, 0.9), (3, 5))
    assert settings.allow_change == ["data", "optim.lr"]
    detect = parse(
        Detect, ["--mean", "null", "--sizes.pre_nms=null", "--sizes.train", " [48,64]"], recipe="voc07", prog="d"
    )
    assert (detect.mean, detect.sizes.pre_nms, detect.sizes.train) == (None, None, (48, 64))


@pytest.mark.parametrize(("theirs", "ours"), FOREIGN.items())
def test_a_foreign_name_leads_to_a_setting_of_the_command_that_has_it(theirs: str, ours: str) -> None:
    key, led = ours.partition(" ")[0], []
    for kind, prog in ((Pretrain, "pretrain.py"), (Linear, "lincls.py")):
        has = key in setting_types(kind) or key == "recipe" or (key.startswith("method.") and kind is Pretrain)
        with pytest.raises(UserError) as refused:
            parse(kind, [f"-{theirs}" if len(theirs) == 1 else f"--{theirs}", "1"], recipe="quickstart", prog=prog)
        assert (
            f"did you mean {ours!r}?" in str(refused.value) or f"did you mean --{ours}?" in str(refused.value)
        ) == has
        led.append(has)
    assert any(led)

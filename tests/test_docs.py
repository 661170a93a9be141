"""The pages say what is there: links, options, recipes and their numbers; and the site is built of them."""

import argparse
import dataclasses
import fnmatch
import functools
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import simsiam.commands
from simsiam.errors import UserError
from simsiam.methods.registry import METHODS, option_names
from simsiam.settings.detect import Detect
from simsiam.settings.parse import find_recipe, parse, recipe_names
from simsiam.settings.plain_yaml import plain_yaml
from simsiam.settings.tree import FineTune, Linear, Pretrain
from tests.conftest import ROOT
from transfer.classify import KINDS, take_protocol

BESIDE = ["launch/README.md", "transfer/README.md", "benchmarks/RESULTS.md"]
PAGES = ["README.md", *BESIDE, *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
OURS = [page for page in PAGES if page != "benchmarks/RESULTS.md"]  # where commands are of the commit beside them

JOBS = {
    "pretrain.py": (Pretrain, "imagenet-r50-100ep"),
    "lincls.py": (Linear, "lincls-imagenet"),
    "semisup.py": (FineTune, "semisup-1pct"),
    "transfer/detect.py": (Detect, "voc0712"),
}

OTHERS = {
    "torchrun": ["--nproc_per_node", "--max-restarts", "--signals-to-handle", "--shutdown-timeout"],
    "Slurm": ["--array", "--nodes", "--signal", "--requeue", "--gpus-per-node", "--gres"],
    "SkyPilot": ["--env"],
    "docker": ["--build-arg"],
    "TensorBoard": ["--logdir", "--bind_all"],
    "facebookresearch/vissl": ["--model_url_or_file", "--output_dir", "--output_name"],
}
THEIRS = {option for options in OTHERS.values() for option in options}


UNFINISHED = re.compile(r"\.\.\.|\.py:|runs/\S*/config|\b(NAME|RECIPE|NAME_OR_FILE)\b|--help")
"""Commands that cannot be understood as they stand: placeholders, and files that are not here."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Heads and rows of the tables, cell by cell."""
    for table in re.findall(r"(?:^\|.*\n?)+", without_blocks(text), re.MULTILINE):
        cells = (re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines())
        head, _, *rows = ([cell.strip() for cell in row] for row in cells)
        yield head, rows


def own_text(page: str) -> str:
    """A page without the columns headed `there`, which have another project's words."""
    lines, theirs = [], False
    for line in text_of(page).splitlines():
        theirs = line.startswith("|") and (theirs or line.startswith("| there |"))
        lines.append(re.sub(r"^\|.*?(?<!\\)\|", "|", line) if theirs else line)
    return "\n".join(lines)


def code(page: str) -> list[str]:
    """Every line of code, in blocks and between backticks."""
    text = own_text(page)
    spans = re.findall(r"`([^`]+)`", without_blocks(text))
    return [*(line for block in blocks(text) for line in block.splitlines()), *(" ".join(s.split()) for s in spans)]


def keys(kind: type, prefix: str = "") -> set[str]:
    found = set()
    for field in dataclasses.fields(kind):
        found.add(prefix + field.name)
        if dataclasses.is_dataclass(field.type):
            found |= keys(field.type, f"{prefix}{field.name}.")
    return found


def command_options() -> dict[str, set[str]]:
    """The options of each `simsiam COMMAND`."""
    options = {}
    for found in pkgutil.iter_modules(simsiam.commands.__path__):
        module = importlib.import_module(f"simsiam.commands.{found.name}")
        if hasattr(module, "add_arguments"):
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            names = (name for action in parser._actions for name in action.option_strings)
            options[f"simsiam {found.name.replace('_', '-')}"] = {as_key(name) for name in names}
    return options


def as_key(option: str) -> str:
    return option.removeprefix("--").partition("=")[0].replace("-", "_")


OF_PARSE = {"recipe", "method", "print_config", "help"}
OF_METHODS = {f"method.{option}" for name in METHODS for option in option_names(name)}
OF_COMMANDS = command_options()
OF_SCRIPTS = {script: keys(kind) | OF_PARSE for script, (kind, _) in JOBS.items()}
OF_SCRIPTS["pretrain.py"] |= OF_METHODS
OF_SCRIPTS["transfer/classify.py"] = set().union(*map(keys, KINDS.values())) | OF_PARSE | {"protocol"}
ALL = set().union(*OF_SCRIPTS.values(), *OF_COMMANDS.values()) | {as_key(option) for option in THEIRS}


def command(line: str) -> tuple[str, list[str]] | None:
    """`torchrun ... pretrain.py --recipe NAME  # for this` to ("pretrain.py", ["--recipe", "NAME"])."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    for place, word in enumerate(words):
        if word in OF_SCRIPTS:
            return word, words[place + 1 :]
        if word == "simsiam" and " ".join(words[place : place + 2]) in OF_COMMANDS:
            return " ".join(words[place : place + 2]), words[place + 2 :]
    return None


def slugs(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{n}" if n else slug for slug, last in found.items() for n in range(last + 1)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        where = (ROOT / page).parent / path if path else ROOT / page
        assert where.exists(), f"{page}: {target}"
        assert not anchor or anchor in slugs(where.read_text()), f"{page}: {target}"


@pytest.mark.parametrize("page", OURS)
def test_files_that_are_named_exist(page: str) -> None:
    for span in re.findall(r"`([^`\s]+)`", without_blocks(own_text(page))):
        if re.fullmatch(r"(simsiam|tests|launch|transfer|benchmarks|docs)/[\w/.*-]*", span):
            assert list(ROOT.glob(span)), f"{page}: {span}"


@pytest.mark.parametrize("page", OURS)
def test_options_exist(page: str) -> None:
    for line in code(page):
        found = command(line)
        if found:
            name, words = found
            words = words[: words.index("--settings")] if "--settings" in words else words
            known = (OF_SCRIPTS | OF_COMMANDS)[name]
            for word in words:
                assert not word.startswith("--") or as_key(word) in known, f"{page}: {name} {word}"
        for option in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*(?:\.[\w-]+)*(?:\.\*)?", line):
            is_a_placeholder = option.rpartition(".")[2].isupper()
            assert is_a_placeholder or fnmatch.filter(ALL, as_key(option)), f"{page}: {option} in {line}"


@pytest.mark.parametrize("page", OURS)
def test_settings_that_are_named_exist(page: str) -> None:
    sections = {key for known in OF_SCRIPTS.values() for key in known if any(k.startswith(f"{key}.") for k in known)}
    for span in re.findall(r"`(\w+\.\w+)`", without_blocks(own_text(page))):
        if span.partition(".")[0] in sections and not span.endswith((".py", ".yaml", ".md")):
            assert span in ALL, f"{page}: {span}"


def test_options_are_looked_up_where_they_belong() -> None:
    line = "torchrun --nproc_per_node=8 lincls.py --sweep lr=1,3  # three"
    assert command(line) == ("lincls.py", ["--sweep", "lr=1,3"])
    assert command("simsiam knn ENCODER DATA --k 10") == ("simsiam knn", ["ENCODER", "DATA", "--k", "10"])
    assert "sweep" not in OF_SCRIPTS["pretrain.py"]
    page = "docs/coming-from/solo-learn.md"
    assert "main_pretrain.py" in text_of(page)
    assert "main_pretrain.py" not in own_text(page)


@pytest.mark.parametrize("page", OURS)
def test_commands_of_the_jobs_are_understood(page: str) -> None:
    """With their values."""
    for line in code(page):
        script, words = command(line) or ("", [])
        if script not in OF_SCRIPTS or not words or UNFINISHED.search(line):
            continue
        kind, recipe = JOBS.get(script, ("", ""))
        if script == "transfer/classify.py":
            protocol, words = take_protocol(words)
            kind, recipe = KINDS[protocol], f"transfer-{protocol}"
        try:
            parse(kind, words, recipe=recipe, prog=script)
        except UserError as error:
            pytest.fail(f"{page}: {line}: {error}")


@pytest.mark.parametrize("page", OURS)
def test_recipes_that_are_named_exist(page: str) -> None:
    text, known = own_text(page), recipe_names()
    named = [name for line in code(page) for name in re.findall(r"--recipe[ =]([a-z][\w.-]*)", line)]
    for head, rows in tables(text):
        if head[0].startswith("recipe"):
            named += [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    for name in named:
        assert fnmatch.filter(known, name), f"{page}: {name}"


@functools.cache
def recipe_rows() -> dict[str, dict[str, str]]:
    rows = {}
    for head, cells in tables(text_of("docs/recipes.md")):
        if "source" in head or "batch" in head:
            for row in cells:
                name = row[0].strip("`")
                assert name not in rows, f"{name} stands twice"
                rows[name] = dict(zip(head, row, strict=True))
    return rows


def test_every_recipe_is_on_its_page() -> None:
    assert recipe_rows().keys() == set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_numbers_on_the_page_are_those_of_the_recipe(name: str) -> None:
    row, recipe = recipe_rows()[name], plain_yaml(find_recipe(name).read_bytes())
    optim = recipe.get("optim", {})
    for column, key in (("epochs", "epochs"), ("steps", "iterations"), ("batch", "batch_size")):
        if row.get(column):
            assert int(row[column].replace(",", "")) == recipe[key], column
    rates = next((cell for column, cell in row.items() if column.startswith("base rate")), "")
    if rates == "sweep":
        assert "sweep" in recipe
    elif rates:
        assert [float(rate) for rate in rates.split(", ")] == [optim[key] for key in ("lr", "head_lr") if key in optim]


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index", "launch/index", "benchmarks/RESULTS", "coming-from/lightly", "api"):
        assert (tmp_path / f"{page}.html").is_file()
    assert not (tmp_path / "hooks.py").exists()
    assert 'id="simsiam.export.read.load_encoder"' in (tmp_path / "api.html").read_text()
    assert 'href="launch/index.html"' in (tmp_path / "index.html").read_text()  # ../launch/README.md in the repository

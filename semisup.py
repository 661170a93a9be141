"""Fine-tunes a whole pretrained network on a part of the labels, and validates it.

    torchrun --nproc_per_node=8 semisup.py --data IMAGENET --pretrained runs/imagenet-r50-100ep        1% of the labels
    torchrun --nproc_per_node=8 semisup.py --recipe semisup-10pct --data IMAGENET --pretrained ENCODER
    python semisup.py --recipe semisup-cifar10-1pct --pretrained runs/cifar10-r18
    python semisup.py --recipe semisup-cifar10-1pct --pretrained random --encoder cifar_resnet18       supervised only
    python semisup.py -c runs/semisup-cifar10-1pct/config.yaml --evaluate-only                         validate again
    python semisup.py --help

A sweep fine-tunes with each pair of rates on a part of the training images, takes the pair that is best on the other
part, and fine-tunes with it on all of them. Only that last run looks at the validation images.
"""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from simsiam.errors import TrainingStopped, UserError, ends_with_a_sentence
from simsiam.settings.parse import parse
from simsiam.settings.sweep import cell_name, sweep_cells
from simsiam.settings.tree import FineTune

if TYPE_CHECKING:
    from torch import nn

    from simsiam.distributed.runtime import Runtime
    from simsiam.evaluation.accuracy import Accuracy
    from simsiam.evaluation.labelled_sets import LabelledSets
    from simsiam.run.folder import RunFolder


@ends_with_a_sentence
def main() -> None:
    run(parse(FineTune, recipe="semisup-1pct", prog="semisup.py"))


def run(settings: FineTune) -> None:
    """Also what transfer/classify.py runs, on other sets."""
    cells = sweep_cells(settings.sweep, ("lr", "head_lr"))
    from simsiam.distributed.runtime import running
    from simsiam.run.folder import RunFolder

    folder = RunFolder(settings.out)
    opened = (lambda *_: nullcontext()) if settings.evaluate_only else folder.opened
    with (
        running(settings.device, settings.world_size, deterministic=settings.deterministic) as runtime,
        opened(settings, runtime),
    ):
        semisup(settings, cells, runtime, folder)


def semisup(settings: FineTune, cells: list[dict[str, float]], runtime: "Runtime", folder: "RunFolder") -> None:
    import torch

    from simsiam.evaluation.labelled_sets import open_labelled
    from simsiam.evaluation.ledger import config_hash
    from simsiam.evaluation.pretrained import Subject, pretrained_encoder
    from simsiam.settings.derive import check_divides

    # Encoder: before the data, so that a mistake in its name costs no decoding.
    check_divides(settings, runtime.world_size)
    torch.manual_seed(settings.seed)
    encoder = pretrained_encoder(settings)
    sets = open_labelled(settings, runtime)
    subject = Subject.of(encoder, sets.whole.classes)
    subject.check(folder.path, settings, runtime)
    if runtime.is_main and not settings.evaluate_only:
        subject.write(folder.path)

    asked = config_hash(settings)
    if cells and not settings.evaluate_only:
        best = sweep(settings, cells, encoder, sets, runtime, folder)
        settings = replace(settings, optim=replace(settings.optim, **best))
    if cells:
        sets = sets._replace(train=sets.whole)
    fine_tune(settings, encoder, sets, runtime, folder, asked)


def sweep(
    settings: FineTune,
    cells: list[dict[str, float]],
    encoder: "nn.Module",
    sets: "LabelledSets",
    runtime: "Runtime",
    folder: "RunFolder",
) -> dict[str, float]:
    """Fine-tunes a copy of the encoder for each cell, in a run folder of its own, and returns the best cell.

    A cell that has ended is not run again; one that was interrupted goes on.
    """
    from simsiam.evaluation.ledger import config_hash
    from simsiam.evaluation.sweep_table import SweepRow, choose, write_sweep
    from simsiam.run.changes import check_unchanged
    from simsiam.run.folder import RunFolder

    rows, cells_folder = [], folder.path / "sweep"
    if settings.resume == "never" and not settings.debug and runtime.on_main(cells_folder.exists):
        raise UserError(f"{folder.path} already holds a sweep and --resume is never; give another --out")
    for number, cell in enumerate(cells, start=1):
        place = RunFolder(str(cells_folder / cell_name(cell)))
        optim, resume = replace(settings.optim, **cell), "never" if settings.resume == "never" else "auto"
        of_cell = replace(settings, sweep="", out=str(place.path), optim=optim, resume=resume)
        asked, ended = config_hash(of_cell), runtime.on_main(place.completed_summary)
        if ended:
            admitted = partial(check_unchanged, place.path / "config.yaml", of_cell, settings.allow_change)
            runtime.on_main(admitted)
        if runtime.is_main:
            print(f"sweep {number}/{len(cells)}  {cell_name(cell)}{'  has ended' if ended else ''}", flush=True)
        if not ended:
            try:
                with place.opened(of_cell, runtime):
                    parts = sets._replace(val=sets.held_out)
                    fine_tune(of_cell, copy.deepcopy(encoder), parts, runtime, place, asked, is_cell=True)
            except TrainingStopped as stopped:  # too high a rate is an answer too
                if runtime.is_main:
                    print(stopped, flush=True)
            ended = runtime.on_main(place.completed_summary)
            runtime.on_main(place.remove_checkpoints)
        rows.append(SweepRow(cell, ended["top1"] if ended else math.nan))
    chosen = choose(rows)
    if math.isnan(rows[chosen].held_out_top1):
        raise UserError(f"Every run of --sweep {settings.sweep!r} diverged; take lower rates")
    if runtime.is_main:
        print(write_sweep(rows, chosen, folder.path), flush=True)
    return cells[chosen]


def fine_tune(
    settings: FineTune,
    encoder: "nn.Module",
    sets: "LabelledSets",
    runtime: "Runtime",
    folder: "RunFolder",
    config_sha256: str,
    is_cell: bool = False,
) -> None:
    """One run: trains encoder and head on `sets.train`, validates on `sets.val`.

    `config_sha256` is of the settings that were asked for, before a sweep chose among them. A cell of a sweep shows no
    banner and leaves its figures alone, without weights.
    """
    import torch

    from simsiam.checkpoint.manager import Checkpoints
    from simsiam.data.plan import make_plan
    from simsiam.evaluation.classifier import about_views, write_classifier
    from simsiam.evaluation.confusion import write_confusion
    from simsiam.evaluation.finetune import FineTuned
    from simsiam.evaluation.inputs import ImageInputs
    from simsiam.evaluation.ledger import list_hash
    from simsiam.export.write import encoder_hash, write_encoder
    from simsiam.run.journal import Journal
    from simsiam.run.start import check_start
    from simsiam.settings.derive import derive
    from simsiam.training.build import build_state
    from simsiam.training.fit import fit

    train, val, classes = sets.train, sets.val, sets.whole.classes
    numbers = derive(settings, runtime.world_size, len(train))
    plan = make_plan(train, numbers.global_batch, settings, runtime.rank, runtime.world_size)
    inputs = ImageInputs(settings, runtime)

    # Network, its head drawn alike in every run, and what an earlier run left of it.
    torch.manual_seed(settings.seed)
    before = encoder_hash(encoder)
    module = FineTuned(encoder, len(classes), synced=settings.batchnorm == "synced")
    state = build_state(
        module, settings, numbers, runtime, {"head": numbers.at_batch(settings.optim.head_lr or settings.optim.lr)}
    )
    checkpoints = Checkpoints(folder.checkpoints, settings.checkpoint, runtime)
    found = checkpoints.find("auto" if settings.evaluate_only else settings.resume)
    if found is not None:
        checkpoints.load(found, state)

    def accuracy() -> "Accuracy":
        module.eval()
        (answer,) = inputs.accuracies(lambda images: module.logits(images)[None], val)
        module.train()
        return answer

    if settings.evaluate_only:
        if found is None:
            raise UserError(f"--evaluate-only found no classifier in {folder.path}; give the --out of a semisup.py run")
        answer = accuracy()
        if runtime.is_main:
            print(f"{found}: {answer}")
        return
    if folder.has_ended(state.step, numbers.stop_step, runtime):
        return
    bn_images = 0 if settings.batchnorm == "synced" else numbers.micro_batch
    start = check_start(
        settings, runtime, folder, checkpoints, state, data_sha256=list_hash(train), bn_images=bn_images
    )

    facts = {
        "encoder": f"{settings.pretrained} ({encoder.encoder_name}), fine-tuned",
        "data": f"{settings.data}, {sets.told()}",
        "loader": sets.loader_is,
        "resumed": str(found or "no, from step 0"),
        "preflight": start,
    }
    journal = Journal(folder, settings, numbers, runtime, state, None if is_cell else facts)
    answers: list[Accuracy] = []

    def validate() -> None:
        answers[:] = [accuracy()]
        journal.answer(state.step, top1=answers[0].top1, top5=answers[0].top5)

    fit(
        state, inputs.loader(train, plan).steps, inputs, validate,
        every=settings.val_every * numbers.steps_per_epoch, images=train, journal=journal, checkpoints=checkpoints,
        settings=settings, numbers=numbers, runtime=runtime,
    )  # fmt: skip

    after, final = encoder_hash(encoder), answers[0]
    journal.say(f"encoder fine-tuned: sha256 {before[:16]} before, {after[:16]} after")
    if runtime.is_main and not is_cell:
        about = {"pretrained": settings.pretrained, "source": "semisup.py", **about_views(settings.views)}
        write_encoder(encoder, folder.encoder, metadata=about)
        about = {**about, "encoder": encoder.encoder_name, "encoder_sha256": after}
        write_classifier(module.head, classes, folder.path / "classifier.safetensors", about)
        write_confusion(final.confusion, classes, folder.path)
    journal.finish(
        config_sha256=config_sha256, data_sha256=sets.sha256, pretrained_sha256=before, encoder_sha256=after,
        lr=settings.optim.lr, head_lr=settings.optim.head_lr or settings.optim.lr, train_images=len(train),
        val_images=final.images, val_skipped=final.skipped, mean_per_class=final.mean_per_class,
    )  # fmt: skip


if __name__ == "__main__":
    main()

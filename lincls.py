"""Trains a linear classifier on the frozen features of an encoder, and validates it.

    torchrun --nproc_per_node=8 lincls.py --data IMAGENET --pretrained runs/imagenet-r50-100ep     the official protocol
    python lincls.py --recipe lincls-cifar10 --pretrained runs/cifar10-r18
    python lincls.py --recipe lincls-cifar10 --pretrained runs/cifar10-r18 --sweep lr=3,10,30,100   many heads, one pass
    python lincls.py -c runs/lincls-cifar10/config.yaml --evaluate-only                             validate again
    python lincls.py --help

--pretrained takes a run folder, an encoder file, an official checkpoint, a torchvision or timm file, or `random`.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from simsiam.errors import UserError, ends_with_a_sentence
from simsiam.settings.parse import parse
from simsiam.settings.sweep import cell_name, sweep_cells
from simsiam.settings.tree import Linear

if TYPE_CHECKING:
    from simsiam.data.image_set import ImageSet
    from simsiam.distributed.runtime import Runtime
    from simsiam.evaluation.accuracy import Accuracy
    from simsiam.run.folder import RunFolder


@ends_with_a_sentence
def main() -> None:
    settings = parse(Linear, recipe="lincls-imagenet", prog="lincls.py")
    cells = sweep_cells(settings.sweep, ("lr",))
    from simsiam.distributed.runtime import running
    from simsiam.run.folder import RunFolder

    folder = RunFolder(settings.out)
    opened = (lambda *_: nullcontext()) if settings.evaluate_only else folder.opened
    with (
        running(settings.device, settings.world_size, deterministic=settings.deterministic) as runtime,
        opened(settings, runtime),
    ):
        lincls(settings, cells, runtime, folder)


def lincls(settings: Linear, cells: list[dict[str, float]], runtime: "Runtime", folder: "RunFolder") -> None:
    """A head for each of `cells` in one pass, or one at the settings' rate; transfer/classify.py runs it too."""
    import torch

    from simsiam.checkpoint.manager import Checkpoints
    from simsiam.data.plan import make_plan
    from simsiam.evaluation.classifier import about_views, write_classifier
    from simsiam.evaluation.confusion import write_confusion
    from simsiam.evaluation.inputs import FeatureInputs, ImageInputs
    from simsiam.evaluation.labelled_sets import open_labelled
    from simsiam.evaluation.ledger import config_hash, list_hash
    from simsiam.evaluation.linear import LinearProbe
    from simsiam.evaluation.pretrained import Subject, pretrained_encoder
    from simsiam.evaluation.sweep_table import SweepRow, choose, write_sweep
    from simsiam.export.write import encoder_hash
    from simsiam.run.journal import Journal
    from simsiam.run.start import check_start
    from simsiam.settings.derive import check_divides, derive
    from simsiam.training.build import build_state
    from simsiam.training.fit import fit

    # Encoder: before the data, so that a mistake in its name costs no decoding.
    check_divides(settings, runtime.world_size)
    torch.manual_seed(settings.seed)
    encoder = pretrained_encoder(settings)

    # Data: what the classifiers train on, choose on and validate on; images, or their features.
    sets = open_labelled(settings, runtime)
    whole, classes = sets.whole, sets.whole.classes
    subject = Subject.of(encoder, classes)
    subject.check(folder.path, settings, runtime)
    if settings.cache_features:
        inputs = FeatureInputs(settings, runtime, encoder, folder.path / "features")
        sets = inputs.cached(sets)
    else:
        inputs = ImageInputs(settings, runtime)
    numbers = derive(settings, runtime.world_size, len(sets.train))
    plan = make_plan(sets.train, numbers.global_batch, settings, runtime.rank, runtime.world_size)

    # Classifiers, drawn alike whatever the encoder's loading drew, and what an earlier run left of them.
    torch.manual_seed(settings.seed)
    names = [cell_name(cell) for cell in cells] or ["head"]
    probe = LinearProbe(encoder, len(classes), names, settings.batchnorm)
    rates = {name: numbers.at_batch(cell["lr"]) for name, cell in zip(names, cells)}
    state = build_state(probe, settings, numbers, runtime, rates)
    checkpoints = Checkpoints(folder.checkpoints, settings.checkpoint, runtime)
    found = checkpoints.find("auto" if settings.evaluate_only else settings.resume)
    if found is not None:
        checkpoints.load(found, state)

    def accuracies(images: "ImageSet") -> "list[Accuracy]":
        probe.eval()
        answers = inputs.accuracies(probe.logits, images, len(names))
        probe.train()
        return answers

    if settings.evaluate_only:
        if found is None:
            raise UserError(f"--evaluate-only found no classifier in {folder.path}; give the --out of a lincls.py run")
        for name, answer in zip(names, accuracies(sets.val)):
            if runtime.is_main:
                print(f"{found}: {f'{name}: ' if cells else ''}{answer}")
        return
    if folder.has_ended(state.step, numbers.stop_step, runtime):
        return
    start = check_start(settings, runtime, folder, checkpoints, state, data_sha256=list_hash(whole))

    variant = "linear, on cached features of centre crops: a variant" if settings.cache_features else "linear"
    facts = {
        "protocol": variant,
        "encoder": f"{settings.pretrained} ({encoder.encoder_name}), frozen",
        "data": f"{settings.data}, {sets.told()}",
        "loader": sets.loader_is,
        "resumed": str(found or "no, from step 0"),
        "preflight": start,
    }
    journal = Journal(folder, settings, numbers, runtime, state, facts)
    about = {
        "encoder": encoder.encoder_name,
        "encoder_sha256": subject.encoder_sha256,
        "pretrained": settings.pretrained,
        **about_views(settings.views),
    }
    if runtime.is_main:
        subject.write(folder.path)
    answers: list[Accuracy] = []

    def validate() -> None:
        answers[:] = accuracies(sets.held_out if cells else sets.val)
        if cells:
            journal.answer(state.step, **{f"held_out/{name}": a.top1 for name, a in zip(names, answers)})
            return
        journal.answer(state.step, top1=answers[0].top1, top5=answers[0].top5)
        if runtime.is_main and journal.is_best("top1"):
            write_classifier(probe.classifier(), classes, folder.path / "classifier_best.safetensors", about)

    fit(
        state, inputs.loader(sets.train, plan).steps, inputs, validate,
        every=settings.val_every * numbers.steps_per_epoch, images=sets.train, journal=journal, checkpoints=checkpoints,
        settings=settings, numbers=numbers, runtime=runtime,
    )  # fmt: skip

    # A sweep takes the best head on held-out training images; only then do the validation images come in.
    chosen = 0
    if cells:
        on_held_out, answers = answers, accuracies(sets.val)
        rows = [SweepRow(cell, held.top1, val) for cell, held, val in zip(cells, on_held_out, answers)]
        chosen = choose(rows)
        journal.summary["chosen"] = names[chosen]
        journal.answer(state.step, top1=answers[chosen].top1, top5=answers[chosen].top5)
        if runtime.is_main:
            journal.say(write_sweep(rows, chosen, folder.path))
    if encoder_hash(probe.encoder) != subject.encoder_sha256:
        raise RuntimeError("the frozen encoder changed during linear classification")
    journal.say(f"encoder unchanged: sha256 {subject.encoder_sha256[:16]} before and after")
    final = answers[chosen]
    if runtime.is_main:
        write_classifier(probe.classifier(chosen), classes, folder.path / "classifier.safetensors", about)
        write_confusion(final.confusion, classes, folder.path)
    journal.finish(
        protocol=variant, config_sha256=config_hash(settings), data_sha256=sets.sha256,
        encoder_sha256=subject.encoder_sha256, train_images=len(sets.train), val_images=final.images,
        val_skipped=final.skipped, mean_per_class=final.mean_per_class,
    )  # fmt: skip


if __name__ == "__main__":
    main()

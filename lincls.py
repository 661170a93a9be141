"""Trains a linear classifier on the frozen features of an encoder, and validates it.

    torchrun --nproc_per_node=8 lincls.py --data IMAGENET --pretrained runs/imagenet-r50-100ep     the official protocol
    python lincls.py --recipe lincls-cifar10 --pretrained runs/cifar10-r18
    python lincls.py -c runs/lincls-cifar10/config.yaml --evaluate                                  validate again
    python lincls.py --help

--pretrained takes a run folder, an encoder file, an official checkpoint, a torchvision or timm file, or `random`.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from simsiam.errors import UserError, ends_with_a_sentence
from simsiam.settings.parse import parse
from simsiam.settings.tree import Linear

if TYPE_CHECKING:
    from simsiam.distributed.runtime import Runtime
    from simsiam.run.folder import RunFolder


@ends_with_a_sentence
def main() -> None:
    settings = parse(Linear, recipe="lincls-imagenet", prog="lincls.py")
    from simsiam.distributed.runtime import running
    from simsiam.run.folder import RunFolder

    folder = RunFolder(settings.out)
    with running(settings.device) as runtime, nullcontext() if settings.evaluate else folder.opened(settings, runtime):
        lincls(settings, runtime, folder)


def lincls(settings: Linear, runtime: "Runtime", folder: "RunFolder") -> None:
    import torch

    from simsiam.checkpoint.manager import Checkpoints
    from simsiam.data.augment import Augment
    from simsiam.data.loaders import choose_centres, choose_images, make_loader
    from simsiam.data.open import open_images
    from simsiam.data.plan import make_plan
    from simsiam.evaluation.accuracy import Accuracy, evaluate_classifier
    from simsiam.evaluation.linear import LinearProbe, write_classifier
    from simsiam.export.read import load_encoder
    from simsiam.export.write import encoder_hash
    from simsiam.models.encoders import build_encoder
    from simsiam.run.journal import Journal
    from simsiam.settings.derive import derive
    from simsiam.training.build import build_state
    from simsiam.training.clock import Clock, due
    from simsiam.training.finite import FiniteGuard
    from simsiam.training.step import train_step

    # Encoder: before the data, so that a mistake in its name costs no decoding.
    torch.manual_seed(settings.seed)
    if not settings.pretrained:
        raise UserError("No encoder is given: set --pretrained to a run folder, an encoder file, or random")
    if settings.pretrained == "random":
        encoder = build_encoder(settings.encoder)
    else:
        encoder = load_encoder(settings.pretrained, name=settings.encoder or None)

    # Data: one augmented crop to train on, the centre crop to validate on.
    images, loader_is = choose_images(open_images(settings, "train", runtime), settings, runtime.is_main)
    val, _ = choose_images(open_images(settings, "val", runtime, images.classes), settings, runtime.is_main)
    if not images.classes or (images.labels < 0).any():
        raise UserError(f"{settings.data} has images without a label; linear classification needs train/CLASS/ folders")
    numbers = derive(settings, runtime.world_size, len(images))
    plan = make_plan(images, numbers.global_batch, settings, runtime.rank, runtime.world_size)
    loader = make_loader(images, plan, settings, 1, runtime.device)
    augment = Augment(settings.views, settings.seed).to(runtime.device)

    # Classifier, drawn alike whatever the encoder's loading drew, and what an earlier run left of it.
    torch.manual_seed(settings.seed)
    probe = LinearProbe(encoder, len(images.classes))
    state = build_state(probe, settings, numbers, runtime)
    fingerprint = encoder_hash(probe.encoder)
    checkpoints = Checkpoints(folder.checkpoints, settings.checkpoint.keep, runtime)
    found = checkpoints.find("auto" if settings.evaluate else settings.resume)
    if found is not None:
        checkpoints.load(found, state)
    if settings.evaluate and found is None:
        raise UserError(f"--evaluate found no classifier in {folder.path}; give the --out of a lincls.py run")
    if encoder_hash(probe.encoder) != fingerprint:
        raise UserError(
            f"{folder.path} holds a classifier of another encoder than {settings.pretrained}; give another --out"
        )

    centres = choose_centres(settings, runtime.device)

    def validate() -> Accuracy:
        probe.eval()
        show = not settings.hide_progress
        accuracy = evaluate_classifier(
            probe.logits, val, settings.views, runtime, state.precision, centres=centres, show_progress=show
        )
        probe.train()
        return accuracy

    if settings.evaluate:
        answer = validate()
        if runtime.is_main:
            print(f"{found}: {answer}")
        return

    if folder.has_ended(state.step, numbers.stop_step, runtime):
        return

    facts = {
        "encoder": f"{settings.pretrained} ({probe.encoder.encoder_name}), frozen",
        "data": f"{settings.data}, {len(images.classes)} classes, {len(images):,} images, {len(val):,} to validate on",
        "loader": loader_is,
        "resumed": str(found or "no, from step 0"),
    }
    journal = Journal(folder, settings, numbers, runtime, state, facts)
    clock, guard, spe = Clock(numbers.global_batch), FiniteGuard(runtime.device), numbers.steps_per_epoch

    clock.restart()
    for micro_batches in clock.timed(loader.steps(state.step, numbers.stop_step)):
        inputs = ((augment(c.images, c.samples, c.epoch), c.labels.to(runtime.device)) for c in micro_batches)
        result = train_step(state, inputs)
        guard.watch(state.step, result.finite)
        journal.stepped(micro_batches, images)
        step, last = state.step, state.step == numbers.stop_step

        logs, validates = (last or due(step, every) for every in (settings.log_every, settings.val_every * spe))
        saves = last or due(step, settings.checkpoint.every_steps) or due(step, settings.checkpoint.every_epochs * spe)
        if logs or validates or saves:
            journal.stop_unless_finite(guard, checkpoints.newest)
        if logs:
            journal.log(state, result, clock, {})
        if validates:
            answer = validate()
            journal.answer(step, top1=answer.top1, top5=answer.top5)
            journal.summary.update({"val_images": answer.images, "val_skipped": answer.skipped})
            if runtime.is_main and journal.is_best("top1"):
                write_classifier(probe.head, images.classes, folder.path / "linear_best.safetensors")
            clock.restart()
        if saves:
            checkpoints.save(state)
            clock.restart()

    if encoder_hash(probe.encoder) != fingerprint:
        raise RuntimeError("the frozen encoder changed during linear classification")
    journal.say(f"encoder unchanged: sha256 {fingerprint[:16]} before and after")
    journal.summary["encoder_sha256"] = fingerprint
    if runtime.is_main:
        write_classifier(probe.head, images.classes, folder.path / "linear.safetensors")
    journal.finish()


if __name__ == "__main__":
    main()

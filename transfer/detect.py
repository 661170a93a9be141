"""Object detection and instance segmentation on VOC and COCO with a pretrained encoder, all of it fine-tuned.

    torchrun --nproc_per_node=8 transfer/detect.py --recipe voc0712 --data VOC --pretrained ENCODER --trials 5
    torchrun --nproc_per_node=8 transfer/detect.py --recipe coco-1x --data COCO --pretrained ENCODER
    python transfer/detect.py --recipe shapes-voc --pretrained ENCODER --visualize 20          minutes on two cores
    python transfer/detect.py -c runs/voc07/config.yaml --evaluate-only                        test again
    python transfer/detect.py --help

--pretrained takes what lincls.py takes. The same command goes on where an interrupted run stopped.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a clone that is not installed

from simsiam.errors import UserError, ends_with_a_sentence
from simsiam.settings.detect import Detect
from simsiam.settings.parse import parse

if TYPE_CHECKING:
    from simsiam.detection.evaluate import Answer
    from simsiam.detection.sets import DetectionData
    from simsiam.distributed.runtime import Runtime
    from simsiam.run.folder import RunFolder
    from simsiam.training.step import StepResult


@ends_with_a_sentence
def main() -> None:
    settings = parse(Detect, recipe="voc0712", prog="detect.py")
    from simsiam.distributed.runtime import running
    from simsiam.run.folder import RunFolder

    with running(settings.device, settings.world_size, by_trial=False) as runtime:
        run(settings, runtime, RunFolder(settings.out))


def run(settings: Detect, runtime: "Runtime", folder: "RunFolder") -> None:
    """One run, or `--trials` of them with other seeds."""
    from simsiam.detection.rcnn import check_encoder
    from simsiam.detection.sets import open_sets
    from simsiam.detection.trials import run_trials
    from simsiam.evaluation.pretrained import pretrained_encoder
    from simsiam.settings.derive import check_divides

    if not settings.evaluate_only:
        check_divides(settings, runtime.world_size)
        # Once before the annotations, which take long to read: a mistake in its name costs nothing then.
        check_encoder(pretrained_encoder(settings))
    data = runtime.on_main(lambda: open_sets(settings))

    def one(of_trial: Detect, place: "RunFolder") -> dict[str, float]:
        if settings.evaluate_only:
            return evaluate(of_trial, data, runtime, place)
        with place.opened(of_trial, runtime):
            return fine_tune(of_trial, data, runtime, place)

    if settings.trials == 1:
        one(settings, folder)
    else:
        run_trials(settings, runtime, folder, one)


def fine_tune(settings: Detect, data: "DetectionData", runtime: "Runtime", folder: "RunFolder") -> dict[str, float]:
    """Trains and tests one detector; returns AP50, AP and AP75 of the last test."""
    import torch

    from simsiam.checkpoint.manager import Checkpoints
    from simsiam.data.plan import Plan
    from simsiam.detection.batches import TrainingBatches
    from simsiam.detection.evaluate import detect_and_score
    from simsiam.detection.model import TrainedDetector, build_detector_state, derive_steps, detector_arguments
    from simsiam.detection.pictures import write_pictures
    from simsiam.detection.rcnn import build_detector
    from simsiam.detection.sets import main_figures
    from simsiam.detection.tables import write_tables
    from simsiam.detection.trained import write_detector
    from simsiam.distributed.collectives import mean_over_ranks
    from simsiam.evaluation.ledger import config_hash
    from simsiam.evaluation.pretrained import Subject, pretrained_encoder
    from simsiam.run.journal import Journal
    from simsiam.run.start import check_start
    from simsiam.training.build import count_parameters
    from simsiam.training.fit import fit

    # Encoder, and the detector around it, whose new layers are drawn alike whatever the encoder's loading drew.
    torch.manual_seed(settings.seed)
    encoder, classes = pretrained_encoder(settings), data.train.classes
    subject = Subject.of(encoder, classes)
    subject.check(folder.path, settings, runtime)
    torch.manual_seed(settings.seed)
    arguments = detector_arguments(settings)
    module = TrainedDetector(build_detector(encoder, len(classes), **arguments), settings.proposal_loss)

    # Batches, optimiser, and what an earlier run left of it all.
    numbers = derive_steps(settings, runtime.world_size, len(data.train))
    plan = Plan(len(data.train), numbers.global_batch, settings.seed, runtime.rank, runtime.world_size)
    batches = TrainingBatches(data.train, plan, settings, runtime.device)
    state = build_detector_state(module, settings, numbers, runtime)
    checkpoints = Checkpoints(folder.checkpoints, settings.checkpoint, runtime)
    found = checkpoints.find(settings.resume)
    if found is not None:
        checkpoints.load(found, state)
    if folder.has_ended(state.step, numbers.stop_step, runtime):
        return runtime.on_main(lambda: main_figures(folder.read_summary()))

    start = check_start(settings, runtime, folder, checkpoints, state, data_sha256=data.sha256)

    with_masks = " with masks" if settings.mask else ""
    facts = {
        "detector": f"{settings.head}{with_masks}, {count_parameters(module):,} parameters",
        "encoder": f"{settings.pretrained} ({encoder.encoder_name}), fine-tuned",
        "data": f"{settings.data}, {' + '.join(settings.train_sets)} -> {settings.test_set}",
        **data.told,
        "resumed": str(found or "no, from step 0"),
        "preflight": start,
    }
    journal = Journal(folder, settings, numbers, runtime, state, facts)
    if runtime.is_main:
        subject.write(folder.path)
    about = {"pretrained": settings.pretrained, "encoder_sha256": subject.encoder_sha256}

    answers: list[Answer] = []

    def test() -> None:
        step = state.step
        anew = (micro for of_step in batches.steps(step, step + settings.precise_bn) for micro in of_step)
        with module.exact_statistics(anew, settings.precise_bn * settings.accumulate):
            answer = detect_and_score(module.rcnn, data, settings, runtime)
            if runtime.is_main and step == numbers.stop_step:
                write_detector(
                    module.rcnn, folder.path / "detector.safetensors", encoder=encoder.encoder_name, classes=classes,
                    arguments=arguments, about={**about, **answer.scores.figures},
                )  # fmt: skip
        journal.answer(step, **main_figures(answer.scores.figures))
        answers[:] = [answer]

    def losses(result: "StepResult") -> dict[str, float]:
        names, values = zip(*result.output.losses.items())
        return dict(zip(names, mean_over_ranks(torch.stack(values)).tolist()))

    fit(
        state, batches.steps, lambda b: (b.images, b.targets, b.seed), test,
        every=settings.test_every, images=data.train, journal=journal, checkpoints=checkpoints, settings=settings,
        numbers=numbers, runtime=runtime, measures=losses,
    )  # fmt: skip

    answer = answers[0]
    if runtime.is_main:
        write_tables(folder.path, data, answer.detections, answer.scores, masks=settings.mask)
        journal.picture("detections", write_pictures(folder.path, data.test, answer.detections, settings.visualize))
    journal.finish(
        **answer.scores.figures, config_sha256=config_hash(settings), data_sha256=data.sha256,
        encoder_sha256=subject.encoder_sha256, test_images=len(data.test), unreadable_test_images=answer.unreadable,
    )  # fmt: skip
    return main_figures(answer.scores.figures)


def evaluate(settings: Detect, data: "DetectionData", runtime: "Runtime", folder: "RunFolder") -> dict[str, float]:
    """Tests the detector of a run folder again; returns AP50, AP and AP75."""
    from simsiam.detection.evaluate import detect_and_score
    from simsiam.detection.pictures import write_pictures
    from simsiam.detection.sets import main_figures
    from simsiam.detection.trained import read_detector

    rcnn, classes, _ = read_detector(folder.path / "detector.safetensors")
    if classes != data.test.classes:
        raise UserError(
            f"The detector of {folder.path} finds {len(classes)} classes ({', '.join(classes[:3])}, ...), and "
            f"{settings.test_set} has {len(data.test.classes)} ({', '.join(data.test.classes[:3])}, ...)"
        )
    answer = detect_and_score(rcnn.to(runtime.device), data, settings, runtime)
    if runtime.is_main:
        write_pictures(folder.path, data.test, answer.detections, settings.visualize)
        figures = ", ".join(f"{name} {value:.2f}" for name, value in answer.scores.figures.items())
        print(f"{folder.path}: {figures}")
    return main_figures(answer.scores.figures)


if __name__ == "__main__":
    main()

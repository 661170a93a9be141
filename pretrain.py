"""Pretrains an encoder without labels.

    torchrun --nproc_per_node=8 pretrain.py --data IMAGENET          SimSiam, ResNet-50, 100 epochs (68.1 linear top-1)
    python pretrain.py --recipe quickstart                           three minutes on a laptop
    python pretrain.py --recipe cifar10-r18 --download               CIFAR-10
    python pretrain.py --help                                        every setting; `simsiam recipes` for the recipes

The same command goes on where an interrupted run stopped. Results are in the run folder: --out, or runs/RECIPE.
"""

import json
from functools import partial
from typing import TYPE_CHECKING

from simsiam.errors import ends_with_a_sentence
from simsiam.settings.parse import parse
from simsiam.settings.tree import Pretrain

if TYPE_CHECKING:
    from simsiam.distributed.runtime import Runtime
    from simsiam.run.folder import RunFolder


@ends_with_a_sentence
def main() -> None:
    settings = parse(Pretrain, recipe="imagenet-r50-100ep", prog="pretrain.py")
    # torch is imported after the command line is read, so that --help and mistakes are answered at once.
    from simsiam.distributed.runtime import running
    from simsiam.run.folder import RunFolder

    folder = RunFolder(settings.out)
    with (
        running(settings.device, settings.world_size, deterministic=settings.deterministic) as runtime,
        folder.opened(settings, runtime),
    ):
        pretrain(settings, runtime, folder)


def pretrain(settings: Pretrain, runtime: "Runtime", folder: "RunFolder") -> None:
    import torch

    from simsiam.checkpoint.manager import Checkpoints
    from simsiam.data.augment import Augment
    from simsiam.data.loaders import choose_images, make_loader
    from simsiam.data.open import open_images
    from simsiam.data.plan import make_plan
    from simsiam.distributed.collectives import mean_over_ranks
    from simsiam.evaluation.ledger import list_hash
    from simsiam.evaluation.monitor import KnnMonitor
    from simsiam.export.read import load_encoder
    from simsiam.export.write import write_encoder
    from simsiam.methods.registry import build_method
    from simsiam.models.encoders import open_residual_branches
    from simsiam.run.journal import Journal
    from simsiam.run.start import check_start
    from simsiam.settings.derive import check_divides, derive
    from simsiam.settings.view_recipes import check_view_recipes, view_recipes
    from simsiam.training.build import build_state, count_parameters
    from simsiam.training.clock import Clock, due
    from simsiam.training.computing import compute_as_asked
    from simsiam.training.health import examine, limits
    from simsiam.training.keeper import Keeper
    from simsiam.training.profiling import StepTrace
    from simsiam.training.step import train_step

    # What there is to go on from, and the network: before the data, so that a mistake in a name costs no decoding.
    check_divides(settings, runtime.world_size)
    checkpoints = Checkpoints(folder.checkpoints, settings.checkpoint, runtime)
    found = checkpoints.find(settings.resume)
    trace = StepTrace(settings.profile, folder.path, runtime)
    torch.manual_seed(settings.seed)
    given = load_encoder(settings.init, name=settings.encoder) if settings.init and found is None else None
    method = build_method(settings.method, given or settings.encoder)
    if given is None and not settings.zero_init_residual:
        open_residual_branches(method)
    compute_as_asked(method, settings, runtime)
    check_view_recipes(settings, method.num_views, method.takes_small_views)

    # Data: sample ids -> uint8 crops -> views, by the recipe of each view in the epoch at hand.
    images, loader_is = choose_images(open_images(settings, "pretrain", runtime), settings, runtime.is_main)
    numbers = derive(settings, runtime.world_size, len(images))
    method.prepare(len(images), numbers.global_batch)
    plan = make_plan(images, numbers.global_batch, settings, runtime.rank, runtime.world_size)
    recipes = partial(view_recipes, settings, num_views=method.num_views)
    augment = Augment(settings.views, settings.seed, recipes).to(runtime.device)
    loader = make_loader(images, plan, settings, method.num_views, runtime.device)

    # Optimiser; then all of it as the earlier run left it.
    state = build_state(method, settings, numbers, runtime)
    if found is not None:
        checkpoints.load(found, state)
    if folder.has_ended(state.step, numbers.stop_step, runtime):
        return

    start = check_start(settings, runtime, folder, checkpoints, state, data_sha256=list_hash(images))

    health = limits(settings.health, collapsed_std=method.collapsed_std, warn_std=method.warn_std)
    monitor = KnnMonitor(settings, images, runtime)
    facts = {
        "method": f"{settings.method['name']}, {settings.encoder}, {count_parameters(method):,} parameters",
        "data": f"{settings.data}, {len(images):,} images",
        "loader": loader_is,
        "kNN": f"every {settings.knn_every} epoch(s)" if monitor.on else f"off: {monitor.why_off}",
        "resumed": str(found or "no, from step 0"),
        "preflight": start,
    }
    journal = Journal(folder, settings, numbers, runtime, state, facts)
    clock = Clock(numbers.global_batch)
    knn_every_steps = settings.knn_every * numbers.steps_per_epoch if monitor.on else 0

    def measure_knn() -> None:
        journal.answer(state.step, knn=monitor.accuracy(method.encoder))

    was_due = knn_every_steps and (state.step == numbers.stop_step or due(state.step, knn_every_steps))
    if (state.step == 0 and monitor.cheap) or (was_due and journal.lacks_answer(state.step)):
        measure_knn()
        clock.restart()

    with Keeper(settings, numbers, runtime, state, checkpoints, journal, clock) as keeper, trace:
        for micro_batches in clock.timed(loader.steps(state.step, numbers.stop_step)):
            inputs = journal.picturing_first_views(map(augment.inputs, micro_batches), settings.views)
            ids = (torch.from_numpy(c.samples).to(runtime.device, non_blocking=True) for c in micro_batches)
            result = train_step(
                state, ((*views, i) for views, i in zip(inputs, ids)) if method.takes_samples else inputs
            )
            now = keeper.stepped(result)
            journal.stepped(micro_batches, images)
            trace.stepped(state.step, keeper.apart)
            if now.logs:
                measures, verdict = examine(
                    result.output.projections, health, result.loss, method.loss_range, state.step
                )
                measures |= {name: mean_over_ranks(value).item() for name, value in result.output.scalars.items()}
                journal.log(state, result, clock, measures, f"std {measures['std']:.3f}  {verdict.state}")
                if verdict.state == "collapsed" and health.on_collapse == "stop":
                    keeper.stop(f"collapsed at step {state.step}: {verdict.reason}")
            if now.saves:
                keeper.save()
            if knn_every_steps and (now.last or due(state.step, knn_every_steps)):
                with keeper.evaluating("kNN"):
                    measure_knn()

    if runtime.is_main:
        mean, std = (json.dumps(values) for values in (settings.views.mean, settings.views.std))
        about = {"source": settings.method["name"], "step": str(state.step), "pixel_mean": mean, "pixel_std": std}
        write_encoder(method.encoder, folder.encoder, metadata=about)
    journal.finish()


if __name__ == "__main__":
    main()

"""Classification on another set than the encoder was pretrained on.

    torchrun --nproc_per_node=8 transfer/classify.py --protocol linear --data flowers102 --pretrained ENCODER
    torchrun --nproc_per_node=8 transfer/classify.py --protocol finetune --data pets:ROOT --pretrained ENCODER
    python transfer/classify.py --protocol few-shot --data FOLDER --pretrained ENCODER --shots 1,5,10 --trials 10
    python transfer/classify.py --protocol linear --help

linear is lincls.py and finetune is semisup.py on all labels, both with a sweep of rates that held-out training images
choose among, and then with the chosen rates on all training images. The sweep is in OUT/sweep.
"""

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # lincls.py and semisup.py are beside this folder

from simsiam.errors import UserError, ends_with_a_sentence  # noqa: E402
from simsiam.settings.parse import parse  # noqa: E402
from simsiam.settings.sweep import cell_name, sweep_cells  # noqa: E402
from simsiam.settings.tree import FewShot, FineTune, Linear  # noqa: E402

if TYPE_CHECKING:
    from simsiam.distributed.runtime import Runtime

KINDS = {"linear": Linear, "finetune": FineTune, "few-shot": FewShot}
# Of the settings that a training command has those that read images, make features, or draw them.
FEW_SHOT = {
    "data", "out", "subset", "checksums", "download", "loader", "dali", "workers", "device", "precision", "views",
    "seed", "pretrained", "encoder", "shots", "trials", "inverse_l2", "hide_progress", "debug", "world_size",
}  # fmt: skip


@ends_with_a_sentence
def main() -> None:
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(__doc__)
        return
    protocol, words = take_protocol(sys.argv[1:])
    settings = parse(KINDS[protocol], words, recipe=f"transfer-{protocol}", prog=f"classify.py --protocol {protocol}")
    if protocol == "linear":
        run = run_linear
    elif protocol == "finetune":
        from semisup import run
    else:
        run = run_few_shot
    run(settings)


def take_protocol(words: list[str]) -> tuple[str, list[str]]:
    """`--protocol NAME` and the other words. Raises UserError where there is none or another name."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--protocol=") else [word])]
    name = ""
    if "--protocol" in words:
        at = words.index("--protocol")
        name, words = "".join(words[at + 1 : at + 2]), words[:at] + words[at + 2 :]
    if name not in KINDS:
        raise UserError(f"--protocol {name or 'is missing'}; take one of {', '.join(KINDS)}".replace("  ", " "))
    return name, words


def run_linear(settings: Linear) -> None:
    """One pass with a head for each rate, on training images of which some are held out; then the best rate on all."""
    from lincls import lincls
    from simsiam.distributed.runtime import running
    from simsiam.run.folder import RunFolder

    cells = sweep_cells(settings.sweep, ("lr",))
    folder, sweep = RunFolder(settings.out), RunFolder(f"{settings.out}/sweep")
    with running(settings.device, settings.world_size, deterministic=settings.deterministic) as runtime:
        if settings.evaluate_only:
            lincls(replace(settings, sweep=""), [], runtime, folder)
            return
        final = replace(settings, sweep="", held_out=0) if cells else settings
        # Both are opened before either trains: a mistake about OUT costs no sweep. What a sweep chooses is no change.
        chosen_later = [*settings.allow_change, "optim.lr"] if cells else settings.allow_change
        with folder.opened(replace(final, allow_change=chosen_later), runtime):
            if cells:
                again = "never" if settings.resume == "never" else "auto"
                of_sweep = replace(settings, out=str(sweep.path), resume=again)
                with sweep.opened(of_sweep, runtime):
                    lincls(of_sweep, cells, runtime, sweep)
                chosen = runtime.on_main(lambda: sweep.read_summary()["chosen"])
                best = next(cell for cell in cells if cell_name(cell) == chosen)
                final = replace(final, optim=replace(final.optim, **best))
            lincls(final, [], runtime, folder)


def run_few_shot(settings: FewShot) -> None:
    """Prints mean and interval for each number of shots, and writes few_shot.json."""
    from simsiam.distributed.runtime import running

    if not settings.shots:
        raise UserError("--shots names no number of images; write such as --shots 1,5,10")
    plain = asdict(FewShot())
    idle = [key for key, value in asdict(settings).items() if key not in FEW_SHOT and value != plain[key]]
    if idle and not settings.debug:
        raise UserError(f"few-shot trains no network, so it has no use for {', '.join(idle)}; leave that out")
    with running(settings.device, settings.world_size, by_trial=False) as runtime:
        few_shots(settings, runtime)


def few_shots(settings: FewShot, runtime: "Runtime") -> None:
    import json

    import numpy as np
    import torch

    from simsiam.atomic import write_atomically
    from simsiam.data.loaders import choose_centres
    from simsiam.distributed.collectives import gather_rows
    from simsiam.evaluation.features import extract_features
    from simsiam.evaluation.few_shot import check_shots, few_shot
    from simsiam.evaluation.labelled_sets import open_labelled
    from simsiam.evaluation.pretrained import pretrained_encoder
    from simsiam.export.write import encoder_hash
    from simsiam.training.precision import Precision

    torch.manual_seed(settings.seed)
    encoder = pretrained_encoder(settings)
    sets = open_labelled(settings, runtime)
    check_shots(sets.whole.labels, sets.whole.classes, settings.shots)
    encoder.to(runtime.device, memory_format=torch.channels_last)
    show, parts = not settings.hide_progress, {}
    for name in ("whole", "val"):
        found = extract_features(
            encoder, getattr(sets, name), settings.views, runtime, unit=True,
            centres=choose_centres(settings, runtime.device), precision=Precision(settings.precision, runtime.device),
            describe=f"features of {name}" if show and runtime.is_main else "",
        )  # fmt: skip
        features, labels, samples = (gather_rows(rows.to(runtime.device)).cpu() for rows in found[:3])
        order = samples.argsort()
        parts[name] = features[order].numpy(), labels[order].numpy()
    check_shots(parts["whole"][1], sets.whole.classes, settings.shots)  # of those that could be read
    if not all(np.isfinite(features).all() for features, _ in parts.values()):
        raise UserError(
            f"{settings.pretrained} gives images of {settings.data} features that are not finite; take "
            "--precision fp32 or another encoder"
        )
    fit = partial(few_shot, *parts["whole"], *parts["val"], shots=settings.shots, trials=settings.trials)
    answers = runtime.on_main(partial(fit, seed=settings.seed, inverse_l2=settings.inverse_l2, show_progress=show))
    if not runtime.is_main:
        return
    for answer in answers:
        draws = f"over {len(answer.top1)} draws"
        per_class = sum(answer.mean_per_class) / len(answer.mean_per_class)
        print(
            f"{answer.shots:>4} a class  top-1 {answer.mean:.2f}% +- {answer.interval:.2f} {draws}, "
            f"mean over classes {per_class:.2f}%"
        )
    figures = {
        "pretrained": settings.pretrained,
        "encoder_sha256": encoder_hash(encoder),
        "data": settings.data,
        "data_sha256": sets.sha256,
        "answers": [{**answer._asdict(), "mean": answer.mean, "interval": answer.interval} for answer in answers],
    }
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "few_shot.json", json.dumps(figures, indent=2) + "\n")
    print(f"results in {folder}")


if __name__ == "__main__":
    main()

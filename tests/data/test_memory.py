"""An epoch takes no more memory than its first tenth."""

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simsiam.data.loaders import make_loader
from simsiam.data.plan import Plan
from simsiam.data.sources.folder import FolderImages
from simsiam.settings.tree import Run, Views

FILES, BATCH = 20_000, 100


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    """20,000 names of 200 JPEG files."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for number in range(200):
        (root / f"class{number}").mkdir()
        first = root / f"class{number}" / "0.jpg"
        Image.fromarray(rng.integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(first)
        for link in range(1, FILES // 200):
            os.link(first, root / f"class{number}" / f"{link}.jpg")
    return FolderImages(root)


def resident_bytes() -> dict[int, int]:
    """Resident memory of this process and its workers, by process id."""
    files = {worker.pid: Path(f"/proc/{worker.pid}/statm") for worker in multiprocessing.active_children()}
    files[os.getpid()] = Path("/proc/self/statm")
    # Processes of other tests are listed for good where something else than multiprocessing saw their end.
    pages = {pid: int(file.read_text().split()[1]) for pid, file in files.items() if file.exists()}
    return {pid: count * os.sysconf("SC_PAGE_SIZE") for pid, count in pages.items()}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_an_epoch_over_twenty_thousand_files_grows_no_process_by_fifty_megabytes(
    many: FolderImages, loader: str
) -> None:
    settings = replace(Run(batch_size=BATCH, workers=2, views=Views(size=32)), loader=loader)
    steps = FILES // BATCH
    plan = Plan(FILES, BATCH, 0)
    early: dict[int, int] = {}
    grown: dict[int, int] = {}
    for step, (crops,) in enumerate(make_loader(many, plan, settings, 2, "cpu").steps(0, steps)):
        assert crops.images.shape[1] == BATCH
        if step == steps // 10:
            early = resident_bytes()
        if step == steps - 4:  # before the workers end
            grown = {pid: now - early[pid] for pid, now in resident_bytes().items() if pid in early}
    print({pid: f"{value / 1e6:.1f} MB" for pid, value in grown.items()})
    assert len(grown) == (3 if loader == "torchvision" else 1)
    assert max(grown.values()) < 50e6

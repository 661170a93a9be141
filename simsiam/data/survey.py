"""One pass that reads every file of a set: byte lengths, pixels, checksums, and which cannot be decoded."""

import zlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from simsiam.data.decode import decode, image_size
from simsiam.data.encoded import EncodedImages
from simsiam.data.image_set import BadImage
from simsiam.data.index import Index
from simsiam.data.loader_workers import in_workers

_CHUNK = 64


def survey(
    images: EncodedImages, samples: np.ndarray, workers: int, *, decoding: bool, show_progress: bool
) -> tuple[Index, dict[int, str]]:
    """Reads some samples, int64 (n,), in worker processes.

    Args:
        decoding: decode each image too, which finds those that are damaged.

    Returns:
        The set's index with the facts of those samples, and the reason for each that cannot be read (or decoded).
    """
    index, total = images.index, len(images)
    lengths = np.full(total, -1, np.int64) if index.byte_lengths is None else index.byte_lengths.copy()
    pixels = np.zeros((total, 2), np.int32) if index.pixels is None else index.pixels.copy()
    checksums = np.zeros(total, np.uint32) if index.checksums is None else index.checksums.copy()
    bad: dict[int, str] = {}
    chunks = [samples[start : start + _CHUNK] for start in range(0, len(samples), _CHUNK)]
    reports = in_workers(_Reading(images, decoding), chunks, min(workers, len(chunks)))
    with tqdm(total=len(samples), desc="reading", unit=" files", disable=None if show_progress else True) as bar:
        for facts in reports:
            rows = facts.samples
            lengths[rows], pixels[rows], checksums[rows] = facts.byte_lengths, facts.pixels, facts.checksums
            bad.update(facts.bad)
            bar.update(len(rows))
    return replace(index, byte_lengths=lengths, pixels=pixels, checksums=checksums), bad


class _Facts(NamedTuple):
    samples: np.ndarray
    byte_lengths: np.ndarray
    pixels: np.ndarray
    checksums: np.ndarray
    bad: dict[int, str]


class _Reading(Dataset):
    def __init__(self, images: EncodedImages, decoding: bool) -> None:
        self.images, self.decoding = images, decoding

    def __getitem__(self, samples: np.ndarray) -> _Facts:
        count = len(samples)
        lengths = np.full(count, -1, np.int64)  # so a file that cannot be read now is read again next time
        facts = _Facts(samples, lengths, np.zeros((count, 2), np.int32), np.zeros(count, np.uint32), bad={})
        for row, sample in enumerate(samples.tolist()):
            try:
                data = self.images.read_bytes(sample)
                facts.byte_lengths[row], facts.checksums[row] = len(data), zlib.crc32(data)
                facts.pixels[row] = image_size(data) or (0, 0)
                if self.decoding:
                    facts.pixels[row] = decode(data).shape[1:]
            except BadImage as error:
                facts.bad[sample] = str(error)
        return facts

"""What a test leaves in the run folder besides its figures: VOC's AP by class, COCO's results for its tools."""

import csv
from pathlib import Path

from simsiam.detection.coco_metrics import write_results
from simsiam.detection.detections import Detections
from simsiam.detection.sets import DetectionData, Scores


def write_tables(folder: Path, data: DetectionData, detections: Detections, scores: Scores, *, masks: bool) -> None:
    """VOC: per_class.csv. COCO: detections_bbox.json and, with `masks`, detections_segm.json."""
    if scores.by_class:
        columns = ["class", *next(iter(scores.by_class.values()))]
        with (folder / "per_class.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(columns)
            for name, row in scores.by_class.items():
                table.writerow([name, *(f"{value:.4f}" for value in row.values())])
        return
    ids = [int(data.test.image_id(image)) for image in range(len(data.test))]
    for kind in ("bbox", "segm") if masks else ("bbox",):
        file = folder / f"detections_{kind}.json"
        write_results(file, detections, kind, image_ids=ids, category_ids=data.test.category_ids)

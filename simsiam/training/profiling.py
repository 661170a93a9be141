"""A trace of some steps by torch.profiler, for Perfetto or chrome://tracing, and a table of what took longest."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from torch.profiler import profile, schedule

from simsiam.distributed.runtime import Runtime

T = TypeVar("T")

_BEFORE, _WARM = 3, 2  # steps that are not traced: those that make buffers, and those in which the profiler starts
_ROWS = 40


def profiled(batches: Iterable[T], steps: int, folder: Path, runtime: Runtime) -> Iterator[T]:
    """Hands on the batches, one a step, and traces `steps` of the steps; 0 traces none.

    Each rank writes `profile/rank_00000.json.gz` and `.txt` into the folder.
    """
    if not steps:
        yield from batches
        return

    def write(trace: profile) -> None:
        place = folder / "profile" / f"rank_{runtime.rank:05d}"
        place.parent.mkdir(exist_ok=True)
        trace.export_chrome_trace(f"{place}.json.gz")
        sums = trace.key_averages()
        on = "self_device_time_total" if runtime.device.type == "cuda" else "self_cpu_time_total"
        place.with_suffix(".txt").write_text(sums.table(sort_by=on, row_limit=_ROWS, max_name_column_width=80) + "\n")

    when = schedule(wait=_BEFORE, warmup=_WARM, active=steps, repeat=1)
    with profile(schedule=when, on_trace_ready=write) as tracer:
        for batch in batches:
            yield batch
            tracer.step()

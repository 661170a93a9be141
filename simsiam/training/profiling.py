"""A trace of some steps by torch.profiler, for Perfetto or chrome://tracing, and a table of what took longest."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

from torch.profiler import profile, schedule

from simsiam.distributed.runtime import Runtime

_BEFORE, _WARM = 3, 2  # steps that are not traced: those that make buffers, and those in which the profiler starts
_ROWS = 40


class StepTrace:
    """Traces `steps` steps of a loop, soon after its start; 0 traces none. Entered for the time of the loop.

    Each rank writes `profile/step_00000005_rank_00000.json.gz` and `.txt` into the folder of the run, named by the step
    before the first one that is traced.
    """

    def __init__(self, steps: int, folder: Path, runtime: Runtime) -> None:
        self._steps, self._folder, self._runtime = steps, folder / "profile", runtime
        self._done = self._step = 0
        when = schedule(wait=_BEFORE, warmup=_WARM, active=steps, repeat=1) if steps else None
        self._profile = profile(schedule=when, on_trace_ready=self._write) if steps else None

    def __enter__(self) -> "StepTrace":
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profile is None:
            return
        if self._done <= _BEFORE + _WARM and kind is None and self._runtime.is_main:
            print(f"--profile: nothing is traced of a run of {self._done} steps; the first {_BEFORE + _WARM} never are")
        self._profile.stop()

    def stepped(self, step: int, apart: Callable[[str], AbstractContextManager[None]]) -> None:
        """Notes that `step` is done. A trace is written within `apart`: that may take longer than many steps."""
        if self._profile is None:
            return
        self._done, self._step = self._done + 1, step
        writes = self._done == _BEFORE + _WARM + self._steps
        with apart("writing a profile") if writes else nullcontext():
            self._profile.step()

    def _write(self, trace: profile) -> None:
        begun = self._step - (self._done - _BEFORE - _WARM)
        place = self._folder / f"step_{begun:08d}_rank_{self._runtime.rank:05d}"
        longest = "self_device_time_total" if self._runtime.device.type == "cuda" else "self_cpu_time_total"
        table = trace.key_averages().table(sort_by=longest, row_limit=_ROWS, max_name_column_width=80)
        try:
            place.parent.mkdir(exist_ok=True)
            trace.export_chrome_trace(f"{place}.json.gz")
            place.with_suffix(".txt").write_text(f"{table}\n")
        except (OSError, RuntimeError) as error:
            print(f"warning: {place} cannot be written ({error}); training goes on without it", flush=True)

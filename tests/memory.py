"""The memory that something takes, by torch's profiler."""

import json
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak(run: Callable, path: Path) -> int:
    """The most bytes that a run had from the CPU's allocator beyond those it began with."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    told = [event["args"] for event in sorted(events, key=lambda event: event["ts"])]
    taken = [one for one in told if one["Bytes"] > 0]
    before = taken[0]["Total Allocated"] - taken[0]["Bytes"]
    return max(one["Total Allocated"] for one in taken) - before

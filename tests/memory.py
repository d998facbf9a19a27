"""The memory that something takes, by torch's profiler."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak(run: Callable, path: Path) -> int:
    """The most bytes that a run had from the CPU's allocator beyond those it began with.

    What a convolution has for itself while it runs is left out: how much that is depends on the CPU.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(path))
    events = sorted(json.loads(path.read_text())["traceEvents"], key=lambda event: event.get("ts", 0))
    told = [(event["ts"], event["args"]) for event in events if event["name"] == "[memory]"]
    first = next(args for _, args in told if args["Bytes"] > 0)
    totals = {ts: args["Total Allocated"] for ts, args in told}
    times = list(totals)
    for event in (event for event in events if event["name"] == "aten::convolution"):
        within = times[bisect_left(times, event["ts"]) : bisect_right(times, event["ts"] + event["dur"])]
        for ts in within[:-1]:
            totals.pop(ts, None)
    return max(totals.values()) - (first["Total Allocated"] - first["Bytes"])

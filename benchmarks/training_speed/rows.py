"""All rows by their names."""

from collections.abc import Callable
from functools import partial

from training_speed import comparisons, grid, parts, scoring
from training_speed.bench import Bench


def all_rows(bench: Bench) -> dict[str, Callable[[], dict]]:
    """What measures each row, by the row's name; the first part of a name, up to a slash, is its group."""
    rows = {
        f"ranking/{student}/K={candidates}": partial(comparisons.ranking, bench, student, candidates)
        for student in ("ViT-B/32", "shapes/student")
        for candidates in (1, 3)
    }
    rows |= {
        "overhead/full": partial(parts.overhead, bench, "ViT-B/32", "full", 1),
        "overhead/stop_gradient": partial(parts.overhead, bench, "ViT-B/32", "stop_gradient", 2),
        "overhead/shapes": partial(parts.overhead, bench, "shapes/student", "full", 5),
        "stop_gradient": partial(comparisons.stop_gradient, bench),
        "plain_loop": partial(comparisons.plain_loop, bench),
        "scoring": partial(scoring.scoring, bench),
        "grad_cache/memory": partial(comparisons.grad_cache_memory, bench),
        "grad_cache/gradient": partial(comparisons.grad_cache_gradient, bench),
        "grad_cache/time": partial(comparisons.grad_cache_time, bench),
        "processes/ViT-B/32": partial(grid.processes, bench, "ViT-B/32", None),
        "processes/shapes": partial(grid.processes, bench, "shapes/student", "shapes/teacher"),
    }
    for settings in grid.cheap_options(bench):
        name = ", ".join(f"{option}={value}" for option, value in settings.items())
        rows[f"option/{name}"] = partial(grid.option, bench, settings)
    for point in grid.points(bench):
        rows["growth/" + "/".join(f"{key}={value}" for key, value in point.items())] = partial(
            grid.growth, bench, point
        )
    return rows


def chosen(names: list[str] | None, rows: dict[str, Callable[[], dict]]) -> list[str]:
    """The rows that are asked for, by their names or the beginnings of them; default: all.

    Raises:
        ValueError: a name begins no row's.
    """
    for name in names or []:
        if not any(row.startswith(name) for row in rows):
            raise ValueError(f"there is no row {name!r}; choose from {', '.join(rows)}, or a beginning of these.")
    return [row for row in rows if names is None or row.startswith(tuple(names))]

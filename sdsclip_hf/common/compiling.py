"""torch.compile makes a graph for each shape: what keeps them few, and how many it may make."""

import torch
from torch import Tensor

MOST_GRAPHS = 64
SHORTEST = 16


def allow_graphs() -> None:
    """Let torch.compile make as many graphs of a model as few shapes need; beyond it compiles no more, with a warning."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, MOST_GRAPHS)


def few_lengths(length: int) -> int:
    """The next of few lengths: 16, 32, 64 and so on."""
    return max(SHORTEST, 1 << (length - 1).bit_length())


def filled_up(rows: Tensor, count: int) -> Tensor:
    """Rows (N, ...), and behind them the first one again until there are ``count``."""
    return torch.cat([rows, rows[:1].expand(count - len(rows), *rows.shape[1:])])

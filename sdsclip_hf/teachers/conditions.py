"""What a denoiser is told of captions: tensors by name, one row a caption; or, until they are encoded, the captions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdsclip_hf.common.devices import sent

Conditions = dict[str, Tensor]
CAPTIONS = "captions"  # the name under which captions travel that are yet to be encoded
END = b"\xff"  # what no UTF-8 holds


def as_bytes(captions: Sequence[str]) -> Conditions:
    """Captions as a batch can carry them through loaders, processes and mini-batches: UTF-8, (N, longest)."""
    rows = [torch.frombuffer(bytearray(caption.encode() + END), dtype=torch.uint8) for caption in captions]
    return {CAPTIONS: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=END[0])}


def as_captions(conditions: Conditions) -> list[str]:
    """The captions that [`as_bytes`] was given."""
    return [bytes(row).partition(END)[0].decode() for row in conditions[CAPTIONS].cpu().numpy()]


def rows_of(conditions: Conditions, rows: Tensor | slice) -> Conditions:
    """Some rows; their numbers may lie on the CPU while the conditions do not."""
    return {
        name: values[rows if isinstance(rows, slice) else sent(rows, values.device)]
        for name, values in conditions.items()
    }


def rolled(conditions: Conditions) -> Conditions:
    """Each row's conditions moved to the next."""
    return {name: values.roll(1, dims=0) for name, values in conditions.items()}


def moved(conditions: Conditions, device: torch.device, dtype: torch.dtype | None = None) -> Conditions:
    """On a device, floats in a dtype."""
    return {
        name: values.to(device, dtype if values.is_floating_point() else None) for name, values in conditions.items()
    }


def joined(parts: Sequence[Conditions], mask: str | None) -> Conditions:
    """One after another; those that ``mask`` tells the places of are filled up with masked places to the longest.

    Args:
        parts: with the same names.
        mask: the name of the one that is zero where there is no word; None where all are equally long.
    """
    if mask is None:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    longest = max(part[mask].shape[1] for part in parts)
    filled = [
        {name: _lengthened(part[name], longest) if _has_places(part, name, mask) else part[name] for name in part}
        for part in parts
    ]
    return joined(filled, None)


def trimmed(conditions: Conditions, mask: str | None, places: Tensor | None = None) -> Conditions:
    """Without the places that are masked in all rows; which they are, a GPU need not be asked where ``places`` tells it.

    Args:
        conditions: of some rows.
        mask: the name of the one that is zero where there is no word; None where all are equally long.
        places: the numbers of those that are kept; default: looked for.
    """
    if mask is None:
        return conditions
    places = conditions[mask].bool().any(0) if places is None else sent(places, conditions[mask].device)
    return {
        name: values[:, places] if _has_places(conditions, name, mask) else values
        for name, values in conditions.items()
    }


def lengthened(conditions: Conditions, length: int, mask: str | None) -> Conditions:
    """All rows filled up with masked places, which a denoiser does not see, to ``length`` of them."""
    if mask is None or conditions[mask].shape[1] >= length:
        return conditions
    return {
        name: _lengthened(values, length) if _has_places(conditions, name, mask) else values
        for name, values in conditions.items()
    }


def shortened(conditions: Conditions, length: int, mask: str) -> Conditions:
    """The first places of all rows."""
    return {
        name: values[:, :length] if _has_places(conditions, name, mask) else values
        for name, values in conditions.items()
    }


def row_of(conditions: Conditions, row: int, mask: str | None) -> Conditions:
    """One row, on the CPU, without its masked places."""
    one = trimmed(rows_of(conditions, slice(row, row + 1)), mask)
    return {name: values.cpu().contiguous() for name, values in one.items()}


def _has_places(conditions: Conditions, name: str, mask: str) -> bool:
    """Whether an entry has one vector for each place of the mask."""
    values = conditions[name]
    return values.dim() > 1 and values.shape[1] == conditions[mask].shape[1] and (name == mask or values.dim() > 2)


def _lengthened(values: Tensor, length: int) -> Tensor:
    filled = values.new_zeros(len(values), length, *values.shape[2:])
    filled[:, : values.shape[1]] = values
    return filled

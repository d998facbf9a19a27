"""Which process scores which items: each takes the next part when it is free, so that none is idle while parts are left."""

import time
from collections.abc import Iterator, Sequence

from tqdm.auto import tqdm

from sdsclip_hf.common.processes import SharedCount
from sdsclip_hf.scoring.caption_items import CaptionItem

SECONDS_BETWEEN_LOOKS = 0.5


class SharedOut:
    """The places of the parts that this process is to score, one after another, as it asks for them.

    Args:
        parts: all that are to be scored, alike on all processes.
        name: of this scoring; a new one each time, alike on all processes.
        with_bar: whether this process shows how many pairs of a picture and a caption all of them have scored.
    """

    def __init__(self, parts: Sequence[Sequence[CaptionItem]], name: str, with_bar: bool = False):
        self.parts = parts
        self._pairs = [sum(len(item.candidates) for item in part) for part in parts]
        self._taken, self._done = SharedCount(f"{name}/taken"), SharedCount(f"{name}/done")
        self._bar = tqdm(total=sum(self._pairs), desc="scoring", unit="pair", disable=not with_bar, dynamic_ncols=True)

    def __iter__(self) -> Iterator[int]:
        while (place := self._taken.add() - 1) < len(self.parts):
            yield place

    def done(self, place: int) -> None:
        """Tell that a part has been scored."""
        self._show(self._done.add(self._pairs[place]))

    def close(self) -> None:
        """Show what the others do, until all is done."""
        while not self._bar.disable and self._bar.n < self._bar.total:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self._show(self._done.add(0))
        self._bar.close()

    def _show(self, pairs: int) -> None:
        self._bar.update(pairs - self._bar.n)

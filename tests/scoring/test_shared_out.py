"""Parts are shared out as processes ask for them: each is scored once, and a slow process holds no other up."""

import heapq
from collections import Counter
from typing import ClassVar

from sdsclip_hf.scoring import shared_out
from sdsclip_hf.scoring.caption_items import CaptionItem
from sdsclip_hf.scoring.shared_out import SharedOut


class Together:
    """A count that all who name it alike share, as processes share it by their store."""

    counts: ClassVar = Counter()

    def __init__(self, name):
        self.name = name

    def add(self, number=1):
        self.counts[self.name] += number
        return self.counts[self.name]


def test_a_free_process_takes_the_next_part_until_all_are_scored(monkeypatch, capsys):
    monkeypatch.setattr(shared_out, "SharedCount", Together)
    parts = [[CaptionItem("", 0, "a", ["a", "b"])] for _ in range(41)]
    processes = [SharedOut(parts, "run", with_bar=rank == 0) for rank in range(8)]
    seconds = [1.0] * 7 + [4.0]  # for a part; the last is on a slow card
    asking, scored, ended = [(0.0, rank) for rank in range(8)], Counter(), [0.0] * 8
    places = [iter(process) for process in processes]
    while asking:
        now, rank = heapq.heappop(asking)
        if (place := next(places[rank], None)) is not None:
            scored[place] += 1
            ended[rank] = now + seconds[rank]
            processes[rank].done(place)
            heapq.heappush(asking, (ended[rank], rank))
    assert scored == Counter(range(41))
    assert max(ended) - min(ended) < 4  # in equal shares the slow one would end 15 seconds after the others
    processes[0].close()
    assert "82/82" in capsys.readouterr().err

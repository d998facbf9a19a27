"""Published benchmarks that are pairs or choices: what presets.yaml tells of each, and its items."""

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from sdsclip_hf.benchmarks.forms import ColumnMap, ItemMaker, check_columns, open_mapped
from sdsclip_hf.benchmarks.items import Benchmark
from sdsclip_hf.benchmarks.rows import DatasetRows, FileRows
from sdsclip_hf.benchmarks.sources import Options, collect, download, join, open_table
from sdsclip_hf.benchmarks.storage import is_url

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """A published benchmark.

    Args:
        title, headline, licence, rule, ties: for documents; see presets.yaml.
        form: ``pairs`` or ``choices``.
        kind: the rule that scores it; default: the form's.
        source: a Hub id or an address; none where it has to be given.
        download: files of the Hub id that are read as they are, instead of as a dataset.
        files: where the authors' files are, where there is no source.
        items: the published count, where it is known.
        copies: the ways in which a source may lie, as keys of a column map, and ``parts``.
    """

    title: str
    form: str
    headline: str
    licence: str
    rule: str
    ties: str = ""
    kind: str = ""
    source: str = ""
    download: tuple[str, ...] = ()
    files: str = ""
    items: int | None = None
    copies: list[dict] = field(default_factory=list)

    @classmethod
    def of(cls, entry: dict) -> "Preset":
        own = {key: value for key, value in entry.items() if key in {one.name for one in fields(cls)} - {"copies"}}
        common = {key: value for key, value in entry.items() if key not in own and key != "copies"}
        return cls(**own, copies=[common | copy for copy in entry.get("copies", [{}])])

    @property
    def parts(self) -> list[str]:
        return list(dict.fromkeys(part for copy in self.copies for part in copy.get("parts", ())))


PRESETS = {
    name: Preset.of(entry)
    for name, entry in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}


def load(name: str, spec: str, part: str, source: str, options: Options) -> Benchmark:
    """The items of a preset, or of one of its parts; of those without parts PART is a split.

    Raises:
        ValueError: there is no such part, a column is missing, or an item is not what the form has.
        OSError: the source cannot be loaded.
    """
    preset = PRESETS[name]
    if preset.parts and part and part not in preset.parts:
        raise ValueError(f"{spec}: unknown subset {part!r}; choose from {', '.join(preset.parts)}.")
    hub_id, place, commit = source or preset.source, source or preset.source, None
    if not place:
        raise ValueError(
            f"{spec} needs to know of what: give a dataset, as in {name}=FOLDER. The authors' files: {preset.files}."
        )
    if preset.download and not is_url(place) and not Path(place).expanduser().exists():
        folder, commit = download(place, preset.download)
        place = str(folder)
    copy = _choose(preset, place, part, options)
    loaded = []
    for one in [part] if part or "parts" not in copy else copy["parts"]:
        columns, rows = _open(preset, copy, place, one, options)
        check_columns(preset.form, columns, rows)
        if commit:
            rows.name, rows.revision = hub_id.partition("@")[0], commit
        maker = ItemMaker(preset.form, columns, strict=False, part=one if "parts" in copy else "")
        loaded.append(collect(spec, preset.kind or preset.form, rows, maker, options, columns.items))
        if maker.doubled:
            logger.warning(f"{spec}: {maker.doubled} items of {rows.name} have a candidate twice, a tie that is wrong.")
    benchmark = join(spec, loaded)
    if not (preset.parts and part):
        benchmark.source["published_items"] = preset.items
    return benchmark


def _choose(preset: Preset, place: str, part: str, options: Options) -> dict:
    """The first copy that fits a place: of those whose table is there, else of those that are datasets."""
    copies = [copy for copy in preset.copies if not (preset.parts and part) or part in copy.get("parts", ())]
    firsts = {number: part or next(iter(copy.get("parts", ())), "") for number, copy in enumerate(copies)}
    for number, copy in enumerate(copies):
        columns, folder = _columns(preset, copy, place, firsts[number])
        rows = open_table(folder, columns.table, options, columns.split, merged=columns.merged)
        if rows is not None and not columns.lacks(rows):
            return copy
    without = [
        number for number, copy in enumerate(copies) if not _columns(preset, copy, place, firsts[number])[0].table
    ]
    of_datasets = without or list(firsts)
    for number in of_datasets[:-1]:
        columns, rows = _open(preset, copies[number], place, firsts[number], options)
        if not columns.lacks(rows):
            return copies[number]
    return copies[of_datasets[-1]]


def _open(
    preset: Preset, copy: dict, place: str, part: str, options: Options
) -> tuple[ColumnMap, FileRows | DatasetRows]:
    columns, folder = _columns(preset, copy, place, part)
    return columns, open_mapped(folder, columns, options)


def _columns(preset: Preset, copy: dict, place: str, part: str) -> tuple[ColumnMap, str]:
    """What a copy tells of a part, and where that lies; of a preset without parts it is a split."""
    keys = {key: _fill(value, part) for key, value in copy.items() if key != "parts"}
    if "parts" in copy:
        keys |= copy["parts"][part] or {}
    elif part:
        keys["split"] = part
    own = Path(place).expanduser() / part
    if "parts" in copy and own.is_dir():
        return ColumnMap.of(keys | {"split": "", "config": ""}, preset.title), str(own)
    return ColumnMap.of(keys, preset.title), place


def _fill(value, part: str):
    if isinstance(value, list):
        return [_fill(one, part) for one in value]
    return value.replace("{part}", part) if isinstance(value, str) else value

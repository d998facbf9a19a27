"""Tars whose first samples lack some of their files: to ``datasets`` they are no webdataset, and here they are one."""

from itertools import islice

import datasets
import pyarrow as pa
from datasets.download import StreamingDownloadManager
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from sdsclip_hf.data.places import SAMPLE


def uneven_columns(builder: datasets.DatasetBuilder) -> datasets.Features | None:
    """The columns of the first samples, each of which some have and some lack, for ``features`` of ``load_dataset``.

    Args:
        builder: of any dataset.

    Returns:
        None where ``datasets`` tells them itself, and where the samples have none in common, so that they are none.
    """
    if not isinstance(builder, WebDataset) or not builder.config.data_files or builder.info.features:
        return None
    tar = next(iter(builder.config.data_files.values()))[0]
    files = StreamingDownloadManager(base_path=builder.base_path).iter_archive(tar)
    samples = list(islice(builder._get_pipeline_from_tar(tar, files), builder.NUM_EXAMPLES_FOR_FEATURES_INFERENCE))
    columns = [sample.keys() - set(SAMPLE) for sample in samples]
    if not samples or not set.intersection(*columns) or all(names == columns[0] for names in columns):
        return None
    tables = [pa.Table.from_pylist([sample]) for sample in samples]
    features = datasets.Features.from_arrow_schema(pa.concat_tables(tables, promote_options="default").schema)
    for name in features:
        if name.rpartition(".")[2].lower() in builder.IMAGE_EXTENSIONS:
            features[name] = datasets.Image()
    return features

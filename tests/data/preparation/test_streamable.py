"""The sources that may be streamed."""

import pytest

from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.settings import check_streamable
from framework.data.reading.shards import ParquetShards
from framework.errors import ConfigError


def test_a_streamed_store_keeps_no_credentials_of_urls(tmp_path):
    listed = tmp_path / "shards.txt"
    listed.write_text("https://host/a.parquet?part=1\nhttps://me:hunter2@host/b.parquet\n")
    for files in ("https://me:hunter2@host/a.parquet", "https://host/a.parquet?sig=hunter2", f"@{listed}"):
        with pytest.raises(ConfigError, match=r"reads https://.*\*\*\*hidden\*\*\*.* storage_options") as caught:
            check_streamable({"web": ParquetShards(files)}, Cleaning())
        assert "hunter2" not in str(caught.value)
    check_streamable(
        {"web": ParquetShards("https://host/a.parquet?part=1", storage_options={"key": "hunter2"})}, Cleaning()
    )

"""The ButterflyTorch compatibility layer with its catalog in MongoDB, as configured by MONGODB_URI."""

from __future__ import annotations

import pytest
import torch
from made_clips import as_rgb, linear_decode, make_clip
from servers.mongo_fixture import mongo_server, motor_threads  # noqa: F401 - fixtures, started once a process

import streamloader as sl
from streamloader.compat.butterfly.dataset import ButterflySettings, ButterflyTorch

pytestmark = pytest.mark.slow


def test_the_catalog_is_in_the_named_database(mongo_server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    video = make_clip(tmp_path / "one.mp4", frames=23)
    database = mongo_server.database()
    settings = ButterflySettings.from_variables(
        {"MONGODB_URI": mongo_server.uri, "MONGODB_DB_NAME": database, "CHUNK_SIZE": "10", "STORAGE_PATH": "kept"}
    )
    with ButterflyTorch(settings) as my_torch:
        my_torch.save_data([video], jobs=0)
        dataset = my_torch.load_data()
        assert torch.equal(dataset[5:15], torch.from_numpy(as_rgb(linear_decode(video))[5:15]))
        assert not (tmp_path / "kept" / "catalog.sqlite").exists()
        with pytest.raises(sl.CatalogNotFound):
            my_torch.load_data(db_name=f"{database}-other")

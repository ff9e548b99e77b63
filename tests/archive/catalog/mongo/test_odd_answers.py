"""Whatever a server of MongoDB's protocol answers, there is a result or one typed error that names the catalog."""

from __future__ import annotations

import asyncio

import pytest
from servers.odd_mongo import odd_mongo

from streamloader.archive.catalog.mongo.catalog import MongoCatalog
from streamloader.errors import CatalogError
from streamloader.testing.catalogs.binding import PLACES, make_sample_video

NAMESPACE = "odd.streamloader_videos"
ANSWERS = {
    "nothing": {},
    "no cursor": {"ok": 1.0},
    "empty cursor": {"ok": 1.0, "cursor": {}},
    "cursor without batch": {"ok": 1.0, "cursor": {"id": 0, "ns": NAMESPACE}},
    "cursor without id": {"ok": 1.0, "cursor": {"firstBatch": [], "ns": NAMESPACE}},
    "cursor of another type": {"ok": 1.0, "cursor": [1]},
    "batch of another type": {"ok": 1.0, "cursor": {"id": 0, "ns": NAMESPACE, "firstBatch": "text"}},
    "batch of numbers": {"ok": 1.0, "cursor": {"id": 0, "ns": NAMESPACE, "firstBatch": [1, 2]}},
    "empty documents": {"ok": 1.0, "n": 1, "cursor": {"id": 0, "ns": NAMESPACE, "firstBatch": [{}]}},
    "id of another type": {"ok": 1.0, "cursor": {"id": "x", "ns": NAMESPACE, "firstBatch": []}},
    "endless cursor": {"ok": 1.0, "cursor": {"id": 7, "ns": NAMESPACE, "firstBatch": [{"_id": "header"}]}},
    "count of another type": {"ok": 1.0, "n": "many", "nModified": [], "cursor": None},
    "write errors without code": {"ok": 1.0, "n": 0, "writeErrors": [{}]},
    "write errors of another type": {"ok": 1.0, "n": 0, "writeErrors": ["no"]},
    "write errors that are none": {"ok": 1.0, "n": 0, "writeErrors": {"index": 0, "code": 11000}},
    "write concern error": {"ok": 1.0, "n": 1, "writeConcernError": {"code": "x"}},
    "error without text": {"ok": 0.0},
    "error with odd code": {"ok": 0.0, "code": [1], "errmsg": {"a": 1}},
    "error with odd labels": {"ok": 0.0, "code": 1, "errmsg": "no", "errorLabels": 5},
    "ok of another type": {"ok": "yes"},
    "indexes of another type": {"ok": 1.0, "cursor": {"id": 0, "ns": NAMESPACE, "firstBatch": [{"key": 1, "name": 2}]}},
    "forged lines": {"ok": 0.0, "code": 1, "errmsg": "one\nERROR \x1b[2Jtwo"},
}


async def list_all(rows):
    return [row async for row in rows]


SAMPLE = make_sample_video(1)
CALLS = {
    "create": lambda catalog: catalog.create(PLACES),
    "header": lambda catalog: catalog.get_header(),
    "places": lambda catalog: catalog.set_places(PLACES),
    "snapshot": lambda catalog: catalog.get_snapshot(),
    "problems": lambda catalog: catalog.find_problems(),
    "frames": lambda catalog: catalog.locate_frames(0, 5),
    "chunks": lambda catalog: catalog.get_chunks("0" * 64, 0, 5),
    "indexes": lambda catalog: catalog.get_indexes("0" * 64, [0, 1]),
    "codings": lambda catalog: catalog.get_codings(["a"]),
    "video": lambda catalog: catalog.get_video(0),
    "video at": lambda catalog: catalog.get_video_at(0),
    "videos": lambda catalog: list_all(catalog.find_videos()),
    "matching videos": lambda catalog: list_all(catalog.find_videos({"a": 1})),
    "paths": lambda catalog: list_all(catalog.list_chunk_paths(0)),
    "heartbeat": lambda catalog: catalog.record_heartbeat("0" * 64, 1.0),
    "staged chunks": lambda catalog: catalog.get_staged_chunks("0" * 64),
    "abandon": lambda catalog: catalog.abandon_job("0" * 64),
    "jobs": lambda catalog: catalog.list_jobs(),
    "add": SAMPLE.add,
}


@pytest.mark.usefixtures("motor_threads")
@pytest.mark.parametrize("driver", ["pymongo", "motor"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_odd_answer_is_a_result_or_a_typed_error(answer, driver):
    with odd_mongo(ANSWERS[answer]) as url:

        async def call_all():
            catalog = MongoCatalog(url, driver=driver, timeout=1.0)
            errors = []  # those of other types are raised
            try:
                for name, call in CALLS.items():
                    try:
                        await call(catalog)
                    except CatalogError as error:
                        errors.append((name, error))
            finally:
                await catalog.aclose()
            return catalog.url, errors

        shown_url, errors = asyncio.run(call_all())
        for name, error in errors:
            assert error.address == shown_url, name
            assert not set(error.message) & set("\n\x1b"), name
        assert {"create", "header", "add"} & {name for name, _ in errors}, "an odd answer passes for an archive"

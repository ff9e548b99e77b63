"""Catalogs in MongoDB pass the suite of catalogs: on each server, and by each driver."""

from __future__ import annotations

import pytest
from servers.mongo import names

from streamloader.testing import CatalogSuite

FIRST, LAST = names()[0], names()[-1]
SLOW = pytest.mark.slow


class MongoCatalogSuite(CatalogSuite):
    schemes = ("mongodb", "mongodb+srv")
    writers = 4
    driver = "pymongo"

    @pytest.fixture(autouse=True)
    def _database(self, mongo_server):
        name = mongo_server.database()
        self.url = mongo_server.url(name)
        yield
        mongo_server.direct.drop_database(name)

    def location(self):
        return self.url, {"driver": self.driver}


@pytest.mark.parametrize("mongo_server", [LAST], indirect=True)
class TestByPymongo(MongoCatalogSuite):
    # What takes more than a moment is done with the slow tests, by the classes below as well.
    @SLOW
    def test_many_chunks_of_one_video(self):
        super().test_many_chunks_of_one_video()

    @SLOW
    def test_a_cancelled_call_is_done_or_not(self):
        super().test_a_cancelled_call_is_done_or_not()

    @SLOW
    def test_any_order_of_steps(self):
        super().test_any_order_of_steps()

    @SLOW
    def test_queries(self):
        super().test_queries()

    @SLOW
    def test_readers_see_whole_videos_while_others_write(self):
        super().test_readers_see_whole_videos_while_others_write()

    @SLOW
    def test_many_writers(self):
        super().test_many_writers()

    @SLOW
    def test_many_writers_of_the_same(self):
        super().test_many_writers_of_the_same()

    @SLOW
    def test_numbers_do_not_change_when_videos_are_added(self):
        super().test_numbers_do_not_change_when_videos_are_added()

    @SLOW
    def test_every_range_is_located(self):
        super().test_every_range_is_located()


@SLOW
@pytest.mark.parametrize("mongo_server", names(), indirect=True)
class TestByMotor(MongoCatalogSuite):
    driver = "motor"


@SLOW
@pytest.mark.parametrize("mongo_server", names()[:-1], indirect=True)
class TestByPymongoOnTheOtherServer(MongoCatalogSuite):
    pass

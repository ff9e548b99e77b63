"""ArticleStreams in the shipped suite."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from article_site import QUICK, article_site, rss

import streamloader as sl
from streamloader.testing import StreamSuite

WORDS = ["Short news.", "Längere Nachrichten aus der Stadt.", "川の水位は数日前から高いままです。", "Last page of all."]


class ArticleSuite(StreamSuite):
    """Pages of a site, with a missing one, which has no steps."""

    lengths_known = False
    options: ClassVar = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _site(cls, tmp_path_factory):
        cls.folder = str(tmp_path_factory.mktemp("articles"))
        with article_site() as cls.site:
            for number, text in enumerate(WORDS):
                cls.site.put(f"/{number}", f"{text}\n{text[::-1]}\n", "text/plain; charset=utf-8")
            cls.site.put("/feed", rss(cls.site.url, [0, 1, "missing", 2, 3]), "text/xml")
            yield

    def make_dataset(self):
        return sl.ArticleStreams(
            feeds=f"{self.site.url}/feed", cache_dir=self.folder, delay_s=0.0, storage_options={"retry": QUICK},
            **self.options,
        )  # fmt: skip

    def texts(self):
        texts = [f"{text}\n{text[::-1]}" for text in WORDS]
        return [*texts[:2], "", *texts[2:]]

    def expected(self):
        return [{"data": np.frombuffer(text.encode(), np.uint8)} for text in self.texts()]


class TestArticles(ArticleSuite):
    pass


def code_points(text):
    return [1000 + ord(character) for character in text]


class TestTokensOfArticles(ArticleSuite):
    """All pages are fetched at first, so lengths are known, and the missing page is left out."""

    lengths_known = True
    resumes_like = "TestArticles"
    options: ClassVar = {"tokenizer": code_points, "fetch": "ahead", "fill": -1}

    def expected(self):
        return [{"data": np.array(code_points(text), np.int64)} for text in self.texts() if text]

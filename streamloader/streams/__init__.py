"""The kinds of streams: what plays videos, texts and whatever a function yields, one step after the other.

:mod:`~streamloader.streams.base` says what a kind has to provide; it is all that the engine knows of this package.
"""

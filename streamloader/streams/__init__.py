"""Kinds of streams: videos, texts, and the results of user functions, read step by step.

:mod:`~streamloader.streams.base` defines the interface of a kind of stream. The engine imports only this module and
:mod:`~streamloader.streams.lane_thread`.
"""

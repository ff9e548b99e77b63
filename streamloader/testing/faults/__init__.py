"""Servers that misbehave on purpose, to see that a reader gets the right bytes or an error, and never wrong ones.

Each kit is a module of its own: a real server on loopback, in this process, with a fault that is switched on at a byte
of an object, for some requests or for good. :mod:`streamloader.testing.faults.http` is the one for HTTP.
"""

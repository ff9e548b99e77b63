"""Misbehaving servers, to test that readers get the right bytes or an error, and never wrong bytes.

Each module has a real server that listens on loopback in this process. A fault can be switched on at a byte of an
object, for some requests or for all.
"""

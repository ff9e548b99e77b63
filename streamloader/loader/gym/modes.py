"""Autoreset modes of vector environments: who starts the next episode, and in which step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

__all__ = ["AutoresetName", "keeps_final_row", "parse_mode", "resolve_mode"]

AutoresetName = Literal["next_step", "same_step", "disabled"]

_NAMES: Final[dict[str, AutoresetName]] = {name.replace("_", ""): name for name in get_args(AutoresetName)}


def parse_mode(mode: Any) -> AutoresetName:
    """Return the name of an autoreset mode.

    Args:
        mode: Name such as ``"next_step"`` or ``"NextStep"``, or member of ``gymnasium.vector.AutoresetMode``.

    Raises:
        ConfigError: If there is no such mode.
    """
    text = getattr(mode, "value", mode)
    name = _NAMES.get(text.replace("_", "").lower()) if isinstance(text, str) else None
    if name is None:
        raise ConfigError(f"autoreset_mode must be one of {get_args(AutoresetName)}, got {mode!r}")
    return name


def keeps_final_row(mode: AutoresetName) -> bool:
    """Return whether the last observation of an episode has a row of its own, in which the action is ignored."""
    return mode == "next_step"


def resolve_mode(env: VectorEnv[Any, Any, Any], requested: AutoresetName | None) -> AutoresetName:
    """Return the autoreset mode that a vector environment states.

    It is stated by the attribute ``autoreset_mode`` of the environment, or by ``metadata["autoreset_mode"]``. The
    dict ``VectorEnv.metadata``, which all classes without their own share, is ignored: some environments write their
    mode into it, and so change the metadata of all others.

    Args:
        env: The vector environment.
        requested: Mode of the user, or None.

    Raises:
        ConfigError: If it states no mode and none was requested, or two that differ.
    """
    from gymnasium.vector import VectorEnv

    statements: dict[str, Any] = {}
    attribute = getattr(env.unwrapped, "autoreset_mode", None)
    if attribute is not None:
        statements["its attribute autoreset_mode"] = attribute
    metadata = env.metadata
    if metadata is not VectorEnv.metadata and "autoreset_mode" in metadata:
        statements["its metadata"] = metadata["autoreset_mode"]
    if requested is not None:
        statements["the argument autoreset_mode"] = requested
    modes = {source: parse_mode(mode) for source, mode in statements.items()}
    if not modes:
        raise ConfigError(
            f"{env} does not state its autoreset mode: set metadata['autoreset_mode'] in its class, or pass "
            "autoreset_mode= if you know which it has"
        )
    if len(set(modes.values())) > 1:
        stated = ", ".join(f"{source} says {mode}" for source, mode in modes.items())
        raise ConfigError(f"{env} states its autoreset mode differently in several places: {stated}")
    return next(iter(modes.values()))

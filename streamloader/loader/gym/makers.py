"""Create environments from what users pass: the id of a registered environment, or a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from streamloader.arguments import check_options
from streamloader.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

__all__ = ["EnvMaker"]

_OFFERED_ARGUMENTS: Final = ("num_envs", "lane", "lanes")
_NAMESPACE_MODULES: Final = {"ALE": "ale_py"}  # which registers its environments when it is imported


@dataclass(frozen=True, slots=True)
class EnvMaker:
    """Creates the environments of lanes.

    Attributes:
        make_env: Id of a registered environment, or function.
        kwargs: Keyword arguments for ``gymnasium.make``, if `make_env` is an id.
        arguments: Arguments that the function takes, of ``num_envs``, ``lane`` and ``lanes``.
    """

    make_env: str | Callable[..., Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    @classmethod
    def create(cls, make_env: Any, kwargs: Mapping[str, Any] | None) -> EnvMaker:
        """Check `make_env`, and find out which arguments it takes.

        Raises:
            ConfigError: If it is neither an id nor such a function.
        """
        if isinstance(make_env, str):
            return cls(make_env, check_options("env_kwargs", kwargs) or {})
        if kwargs:
            raise ConfigError("env_kwargs are for the id of an environment; use functools.partial for a function")
        if not callable(make_env):
            raise ConfigError(
                "make_env must be the id of an environment, such as 'CartPole-v1', or a function that creates one, "
                f"got {type(make_env).__name__}"
            )
        try:
            parameters = inspect.signature(make_env).parameters.values()
        except (TypeError, ValueError):  # a built-in function without a signature
            return cls(make_env)
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        required = [
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            if p.name not in _OFFERED_ARGUMENTS or p.kind is p.POSITIONAL_ONLY
        ]
        if required:
            raise ConfigError(
                "make_env is called with the arguments that it names, of lane (for one environment), num_envs and "
                f"lanes (for a vector of them); it also requires {', '.join(required)}: use functools.partial"
            )
        return cls(make_env, {}, tuple(name for name in _OFFERED_ARGUMENTS if name in named))

    @property
    def is_vector(self) -> bool:
        """Whether one call creates a vector of environments: the function takes ``num_envs``."""
        return "num_envs" in self.arguments

    def make_single(self, lane: int) -> gymnasium.Env[Any, Any]:
        """Create the environment of one lane.

        Raises:
            ConfigError: If `make_env` returns no ``gymnasium.Env``.
            MissingDependency: If the package of the environment is not installed.
        """
        import gymnasium
        from gymnasium.vector import VectorEnv

        if isinstance(self.make_env, str):
            _import_namespace(self.make_env)
            return gymnasium.make(self.make_env, **self.kwargs)
        env = self._call(lane=lane, lanes=range(lane, lane + 1))
        if isinstance(env, VectorEnv):
            raise ConfigError("make_env returns a vector of environments, so it must have an argument num_envs")
        if not isinstance(env, gymnasium.Env):
            raise ConfigError(f"make_env must return a gymnasium.Env, got {type(env).__name__}")
        return env

    def make_vector(self, lanes: range) -> VectorEnv[Any, Any, Any]:
        """Create the vector of environments of `lanes`.

        Raises:
            ConfigError: If `make_env` returns no ``gymnasium.vector.VectorEnv`` of this size.
        """
        from gymnasium.vector import VectorEnv

        env = self._call(num_envs=len(lanes), lanes=lanes, lane=lanes.start)
        if not isinstance(env, VectorEnv):
            raise ConfigError(
                f"make_env has an argument num_envs, so it must return a gymnasium.vector.VectorEnv, got "
                f"{type(env).__name__}"
            )
        if env.num_envs != len(lanes):
            env.close()
            raise ConfigError(f"make_env(num_envs={len(lanes)}) returned a vector of {env.num_envs} environments")
        return env

    def _call(self, **offered: Any) -> Any:
        assert callable(self.make_env)
        return self.make_env(**{name: offered[name] for name in self.arguments})


def _import_namespace(env_id: str) -> None:
    """Import the package that registers the environments of the id's namespace."""
    module = _NAMESPACE_MODULES.get(env_id.partition("/")[0])
    if module is None:
        return
    try:
        __import__(module)
    except ImportError as error:
        raise MissingDependency(f"{env_id} needs {module}: pip install {module.replace('_', '-')}") from error

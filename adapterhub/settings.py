"""What the environment says, read once, as one value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from adapterhub.errors import UsageError

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One row of the settings table, from which the docs are made."""

    name: str
    default: str
    meaning: str


VARIABLES: tuple[Variable, ...] = (
    Variable(
        name="ADAPTERHUB_HOME",
        default="the platform's data folder",
        meaning="where the store, the base models, the user environment and the cache lie",
    ),
    Variable(
        name="ADAPTERHUB_REGISTRY",
        default="hub",
        meaning="the registry of names that no pattern claims: `hub` (the Hugging Face Hub) or a folder",
    ),
    Variable(
        name="ADAPTERHUB_MIN_AGE",
        default="0",
        meaning="how long a version must have been published to be chosen: `7d`, `12h`",
    ),
    Variable(
        name="ADAPTERHUB_THREADS", default="the processors this process may use", meaning="threads of a computation"
    ),
    Variable(name="ADAPTERHUB_DEBUG", default="0", meaning="show tracebacks, as --debug does"),
    Variable(name="HF_HUB_OFFLINE", default="0", meaning="never open a connection (huggingface_hub's own switch)"),
    Variable(name="NO_COLOR", default="", meaning="no colours on the terminal (https://no-color.org)"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things lie and how to behave.

    home: root of everything adapterhub keeps. registry: the fallback registry's location, or None for the Hub.
    min_age: versions younger than this are not chosen.
    """

    home: Path
    registry: str | None = None
    min_age: timedelta = timedelta()
    threads: int | None = None
    offline: bool = False
    debug: bool = False

    @property
    def store(self) -> Path:
        """Blobs, manifests and refs of installed packages."""
        return self.home / "store" / "v1"

    @property
    def bases(self) -> Path:
        """Records of base models, and the converted ones."""
        return self.home / "bases"

    @property
    def user_environment(self) -> Path:
        """The environment that installs go to where there is no project file."""
        return self.home / "env"

    @property
    def cache(self) -> Path:
        """What can be made again: deleting it loses nothing."""
        return self.home / "cache"


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment (`os.environ` by default).

    Raises:
        UsageError: a variable holds something else than it may.
    """
    env = os.environ if environment is None else environment
    home = env.get("ADAPTERHUB_HOME")
    return Settings(
        home=Path(home).expanduser().absolute() if home else _default_home(),
        registry=env.get("ADAPTERHUB_REGISTRY") or None,
        min_age=parse_age(env.get("ADAPTERHUB_MIN_AGE", ""), where="ADAPTERHUB_MIN_AGE"),
        threads=_count(env, "ADAPTERHUB_THREADS"),
        offline=_flag(env, "HF_HUB_OFFLINE"),
        debug=_flag(env, "ADAPTERHUB_DEBUG"),
    )


def parse_age(text: str, *, where: str) -> timedelta:
    """Read a length of time: `30m`, `12h`, `7d`, `2w`; nothing or `0` is none at all.

    Raises:
        UsageError: it is of another form; `where` names the option or variable.
    """
    word = text.strip().lower()
    if word in ("", "0"):
        return timedelta()
    match = re.fullmatch(r"([0-9]{1,5})([mhdw])", word)
    if match is None:
        raise UsageError(f"{text!r} is not a length of time", where=where, hint="write 30m, 12h, 7d or 2w")
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    return timedelta(**{units[match[2]]: int(match[1])})


def _default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("adapterhub", appauthor=False)


def _flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f"{value!r} is neither true nor false", where=name, hint=f"set {name}=1 or unset it")


def _count(env: Mapping[str, str], name: str) -> int | None:
    value = env.get(name, "").strip()
    if not value:
        return None
    if not value.isdigit() or not 1 <= int(value) <= 4096:
        raise UsageError(f"{value!r} is not a number of threads", where=name, hint=f"set {name}=2 or unset it")
    return int(value)

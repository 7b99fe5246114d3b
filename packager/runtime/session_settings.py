"""Check what a caller asks of onnxruntime before a bundle is opened: a wrong setting must not look like a bad model.

onnxruntime is imported only where it is asked: importing it takes as long as hashing a small model, and runs beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from packager.common.sanitize import get_first_line
from packager.errors import ArgumentWrong, did_you_mean

if TYPE_CHECKING:
    from packager.runtime.onnx_backend import Provider

_log = logging.getLogger("packager")

_SEVERITIES = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}
_OURS = {
    "session.load_model_format": "the format of a bundle's model is ONNX",
    "session.model_external_initializers_file_folder_path": "the weights are those of the bundle",
    "intra_op_num_threads": "pass threads=",
    "log_severity_level": "pass log_level=",
}
"""Settings that the loader makes itself."""


@dataclass(frozen=True)
class SessionSettings:
    """What a caller asked of onnxruntime. `providers` that are None are those of the manifest."""

    providers: tuple[Provider, ...] | None = None
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def choose_providers(self, declared: Sequence[str]) -> list[Provider]:
        """Return the providers to use: those asked for, or else `declared`, as far as this machine has them.

        Logs a warning if the first one is missing, and raises RuntimeError if all of them are.
        """
        from packager.common.ort import onnxruntime
        from packager.runtime.onnx_backend import find_available_providers, get_provider_name

        wanted: Sequence[Provider] = declared if self.providers is None else self.providers
        usable = find_available_providers(wanted)
        if not usable:
            names = ", ".join(map(get_provider_name, wanted))
            have = ", ".join(onnxruntime.get_available_providers())
            raise RuntimeError(f"{names} is not available on this machine, which has {have}")
        if usable[0] != wanted[0]:
            _log.warning("%s is not available: using %s", get_provider_name(wanted[0]), get_provider_name(usable[0]))
        return usable


def check_settings(
    providers: Sequence[Provider] | None,
    threads: int | None,
    session_options: Mapping[str, Any] | None,
    log_level: str | None,
) -> SessionSettings:
    """Check the arguments of `load` for onnxruntime. Raises `ArgumentWrong`."""
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise ArgumentWrong("threads", f"it is {threads!r}", "pass a whole number from 1, or None")
    options = _check_options(session_options)
    if log_level is not None:
        if log_level not in _SEVERITIES:
            raise ArgumentWrong("log_level", f"it is {log_level!r}", did_you_mean(str(log_level), list(_SEVERITIES)))
        options["log_severity_level"] = _SEVERITIES[log_level]
    return SessionSettings(None if providers is None else _check_providers(providers), threads, options)


def _check_providers(providers: Sequence[Provider]) -> tuple[Provider, ...]:
    from packager.common.ort import onnxruntime
    from packager.runtime.onnx_backend import get_provider_name

    known = onnxruntime.get_all_providers()
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise ArgumentWrong("providers", f"it is {providers!r}", "pass a list, such as ['CPUExecutionProvider']")
    for provider in providers:
        is_pair = isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[1], Mapping)
        if not isinstance(provider, str) and not (is_pair and isinstance(provider[0], str)):
            raise ArgumentWrong("providers", f"{provider!r} is neither a name nor (name, options)")
        name = get_provider_name(provider)
        if name not in known:
            raise ArgumentWrong("providers", f"onnxruntime has no provider named {name!r}", did_you_mean(name, known))
    return tuple(providers)


def _check_options(session_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check names and values by setting them, and return them as a plain dict."""
    if session_options is None:
        return {}
    if not isinstance(session_options, Mapping):
        raise ArgumentWrong("session_options", f"it is {session_options!r}", "pass a dict of names and values")
    from packager.common.ort import onnxruntime

    trial = onnxruntime.SessionOptions()
    attributes = [name for name in dir(trial) if not name.startswith("_") and not callable(getattr(trial, name))]
    for name, value in session_options.items():
        if name in _OURS:
            raise ArgumentWrong("session_options", f"packager.load sets {name!r} itself", _OURS[name])
        if "." not in str(name) and name not in attributes:
            hint = did_you_mean(str(name), attributes)
            raise ArgumentWrong("session_options", f"onnxruntime.SessionOptions has no {name!r}", hint)
        try:
            if "." in name:
                trial.add_session_config_entry(name, value)
            else:
                setattr(trial, name, value)
        except (TypeError, ValueError, RuntimeError) as error:
            why = f"{name!r} cannot be {value!r}: {get_first_line(error)}"
            raise ArgumentWrong("session_options", why) from None
    return dict(session_options)

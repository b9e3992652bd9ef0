"""The headers of a model's weights on the Hub, by ranged requests: kilobytes of files of gigabytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from adapterhub.errors import InvalidFileError
from adapterhub.ops._base_hub import HubModel
from adapterhub.registry._hub_client import HubClient
from adapterhub.registry._hub_describe import Snapshot
from adapterhub.registry._hub_together import together
from adapterhub.spec.refs import PackageName
from adapterhub.weights import TensorInfo

_AT_ONCE = 8


def read_remote_tensors(model: HubModel) -> Mapping[str, TensorInfo]:
    """Return every tensor of a model's weight files by name; no weight is fetched.

    Raises:
        InvalidFileError: a file is no safetensors, or two hold a tensor of one name. IntegrityError: a header is
        malformed. NetworkError, AuthorizationError.
    """
    snapshot = Snapshot(HubClient(), PackageName.parse(model.id), model.commit)
    files = [file.path for file in model.files if file.path.endswith(".safetensors")]
    tensors: dict[str, TensorInfo] = {}
    for start in range(0, len(files), _AT_ONCE):
        some = files[start : start + _AT_ONCE]
        for path, header in zip(some, together([partial(snapshot.header, path) for path in some]), strict=True):
            for name, tensor in header.tensors.items():
                if name in tensors:
                    raise InvalidFileError(f"tensor {name!r} is in two files", where=f"{model.id}: {path}")
                tensors[name] = replace(tensor, file=path)
    return tensors

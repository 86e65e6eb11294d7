"""What a delta is: a hash of all that is stored of it, by which a certificate names it."""

import hashlib
import json
from collections.abc import Mapping

import torch
from pydantic import BaseModel
from torch import Tensor

from tuner.deltas.registry import kind_of
from tuner.editing.delta import Delta


def delta_hash(delta: Delta) -> str:
    """Return a hash of a delta: its tensors, and what is stored beside them."""
    return hash_of_parts(kind_of(delta), tensors_hash(delta.tensors()), delta.state)


def hash_of_parts(kind: str, tensors: str, beside: BaseModel | None) -> str:
    """Return the hash of a delta from that of its tensors and from what is stored beside them."""
    # Fields that a later version adds do not change the hash while they are at their default.
    record = None if beside is None else beside.model_dump(mode="json", exclude_defaults=True)
    content = json.dumps([kind, tensors, record], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors by name: of names, precisions, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(f"{head}\n".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.cpu().numpy().data)
    return digest.hexdigest()

"""A network that reads text into vectors: what a scope classifier starts from."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tuner.editing.model import (
    Device,
    checksum_of,
    choose_device,
    context_length_of,
    fingerprint_of,
)
from tuner.editing.model_names import called, locate
from tuner.editing.tokens import special_tokens_around
from tuner.errors import ConfigError, EditError


@final
class Encoder:
    """A pretrained network without a head, and its own tokenizer. Its weights never change.

    It is of the BERT kind, which sees a text from both sides, or a causal language model's body.
    """

    def __init__(
        self, network: PreTrainedModel, tokenizer: Tokenizer, *, id: str, revision: str | None
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.id = id
        self.revision = revision
        self._checksum = checksum_of(self.network)

    @property
    def causal(self) -> bool:
        """Whether only the last token has seen the whole text."""
        return str(self.network.config.model_type) not in MODEL_FOR_MASKED_LM_MAPPING_NAMES

    @property
    def context_length(self) -> int:
        """The most tokens that it reads at once, its own marks included."""
        known = int(self.tokenizer.model_max_length)
        return min(context_length_of(self.network), known)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, precision, settings and tokenizer."""
        return fingerprint_of(self.network, self.tokenizer)

    @cached_property
    def marks(self) -> tuple[list[int], list[int]]:
        """The tokens that its tokenizer puts before a text, and those after it."""
        before, behind = special_tokens_around(self.tokenizer)
        return list(before), list(behind)

    @cached_property
    def separator(self) -> list[int]:
        """The token between two texts: the tokenizer's own, else its end-of-text token."""
        for token in (self.tokenizer.sep_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return [token]
        raise ConfigError(f"The tokenizer of {self.id!r} has no token to stand between two texts.")

    @cached_property
    def separator_text(self) -> str:
        """The separator as text, which the tokenizer reads as that one token."""
        return str(self.tokenizer.convert_ids_to_tokens(self.separator[0]))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without any mark."""
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

    def check_unchanged(self) -> None:
        """Verify that the weights still hold the bits they were loaded with.

        Raises:
            EditError: an editor changed one.
        """
        if checksum_of(self.network) != self._checksum:
            raise EditError(
                f"The weights of {self.id!r} changed: an editor must train a twin and never the "
                "model itself. Load it again."
            )


def load_encoder(id: str, *, revision: str | None = None, device: Device = "auto") -> Encoder:
    """Return the encoder called `builtin:…`, in a local folder, or on the Hugging Face hub.

    Of a causal language model its body is taken. Weights are read in single precision and from
    safetensors only, and no code that came with them is run.

    Raises:
        ConfigError: there is no such model, it is none that reads text alone, its files are
            damaged, or the device is absent.
    """
    place = choose_device(device)
    source, revision = locate(id, revision)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ConfigError(
                f"The model {id!r} has an encoder and a decoder; give one of the BERT kind, or a "
                "causal language model."
            )
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        # What is missing, such as a pooler that nothing reads, would be drawn at random.
        with _without_load_report(), torch.random.fork_rng(devices=[]):
            network, report = AutoModel.from_pretrained(
                source,
                config=config,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except ConfigError:
        raise
    # transformers, the hub client and safetensors each raise their own kinds here.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"The encoder {id!r} cannot be loaded: {reason} "
            "It must be builtin:neox, a folder with config.json, a tokenizer and safetensors "
            "weights, or a hub id that this machine can reach."
        ) from None
    missing = sorted(report["missing_keys"])
    if any(name.startswith("pooler.") for name in missing):
        # Nothing reads it, and what stands there was drawn.
        network.pooler = None
    missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        raise ConfigError(
            f"The weights of {id!r} are not whole: {missing[0]!r} is missing ({len(missing)} in "
            "all). Give the whole checkpoint."
        )
    resolved = getattr(config, "_commit_hash", None)
    return Encoder(
        network.to(place), tokenizer, id=called(id, source), revision=revision or resolved
    )


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers from reporting weights without a place: heads are left out on purpose.

    Weights that are missing are an error of ours.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def pooled_states(
    network: PreTrainedModel, rows: Sequence[Sequence[int]], pooling: str
) -> Float[Tensor, "rows hidden"]:
    """Return one vector per row of tokens: the first or last token's state, or the mean of all."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(network.device)
    states: Tensor = network(
        input_ids=ids.to(network.device), attention_mask=mask.long()
    ).last_hidden_state
    if pooling == "mean":
        return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    column = torch.zeros_like(lengths) if pooling == "first" else lengths - 1
    return states[torch.arange(len(rows)), column]

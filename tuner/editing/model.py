"""A language model we can edit: load it, apply a delta, ask it for text."""

import copy
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Literal, final

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tuner.backpack import (
    BackpackForCausalLM,
    ContextualisationCache,
    read_published_config,
)
from tuner.editing.architectures import Architecture, architecture_of
from tuner.editing.delta import AdditiveDelta, Delta
from tuner.editing.model_names import called, locate
from tuner.editing.tokens import Pieces, TextReader, without_batching
from tuner.errors import ConfigError, EditError
from tuner.files.paths import absolute

Dtype = Literal["float32", "float16", "bfloat16"]
Device = str


@final
class LanguageModel:
    """A causal language model with its tokenizer. Its weights change only inside `edited`."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        id: str,
        revision: str | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.id = id
        self.revision = revision
        self.architecture: Architecture = architecture_of(str(network.config.model_type))
        self.architecture.check(network)
        self._checksum = checksum_of(self.network)
        # A memory changes what the model says, and no weight.
        self._edits = 0
        if isinstance(network, BackpackForCausalLM):
            network.backpack.memory = ContextualisationCache()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        place: torch.device = next(self.network.parameters()).device
        return place

    @property
    def device_name(self) -> str:
        """The kind of device, down to the model of a GPU: results may differ between kinds."""
        device = self.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        precision: torch.dtype = next(self.network.parameters()).dtype
        return precision

    @property
    def kernel(self) -> str:
        """What computes attention; results differ in their last bits between kernels."""
        return attention_kernel(self.network)

    @property
    def layer_count(self) -> int:
        """How many layers the model has."""
        return self.architecture.layer_count(self.network)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, precision, settings and tokenizer: what a delta belongs to."""
        return fingerprint_of(self.network, self.tokenizer)

    @cached_property
    def end_id(self) -> int:
        """The token that ends a document; it joins documents and pads batches."""
        for token in (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id):
            if isinstance(token, int):
                return token
        raise ConfigError(f"The tokenizer of {self.id!r} has no end-of-text token.")

    @property
    def context_length(self) -> int:
        """The most tokens that the model reads at once."""
        return context_length_of(self.network)

    @cached_property
    def texts(self) -> TextReader:
        """What encodes text for it.

        Raises:
            ConfigError: the tokenizer cannot tell which characters its tokens stand for.
        """
        return TextReader(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text of its own, without special ones."""
        return self.texts.encode([text])[0]

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return a prompt's tokens as a user gives it: behind the special tokens of the family."""
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each prompt, as `encode_prompt`, in one call for all."""
        return [list(pieces.ids) for pieces in self.read([(prompt,) for prompt in prompts])]

    def read(self, texts: Sequence[Sequence[str]]) -> list[Pieces]:
        """Return the tokens of texts in pieces, as `TextReader.read`, in one call for all.

        Where the first piece has no token, the end-of-text token stands for it, since a model must
        read something before it can say something.
        """
        return [
            pieces if pieces.ends[0] else pieces.behind(self.end_id)
            for pieces in self.texts.read(texts)
        ]

    def decode_after(self, prompt: Sequence[int], said: Sequence[int]) -> str:
        """Return what follows a prompt as text, with the blank that it may begin with.

        Some tokenizers leave out the first blank of all that they decode.
        """
        before = str(self.tokenizer.decode(list(prompt), skip_special_tokens=True))
        whole = str(self.tokenizer.decode([*prompt, *said], skip_special_tokens=True))
        if whole.startswith(before):
            return whole[len(before) :]
        return str(self.tokenizer.decode(list(said), skip_special_tokens=True))

    @contextmanager
    def edited(self, delta: Delta) -> Iterator[None]:
        """Hold `delta` applied inside the context; the exact old bits return on exit."""
        with delta.applied(self.network):
            self._edits += 1
            try:
                yield
            finally:
                self._edits -= 1

    def twin(self, own: Collection[str]) -> PreTrainedModel:
        """Return a second network over the same weights, with copies of those named in `own`.

        Editors train a twin, so the model itself never changes and no memory is spent on
        weights that stay as they are.
        """
        return twin_of(self.network, own)

    def after(self, delta: AdditiveDelta) -> "LanguageModel":
        """Return a second model into which `delta` is written; the other weights are shared."""
        network = self.twin(own=delta.changed)
        delta.write(network)
        return LanguageModel(network, self.tokenizer, id=self.id, revision=self.revision)

    @property
    def unedited(self) -> bool:
        """Whether it answers as the base model: outside `edited`, with the weights of the start."""
        return self._edits == 0 and self._has_its_weights

    @property
    def _has_its_weights(self) -> bool:
        return checksum_of(self.network) == self._checksum

    def check_unchanged(self) -> None:
        """Verify that the weights still hold the bits they were loaded with.

        Raises:
            EditError: an editor changed the model that it was given.
        """
        if not self._has_its_weights:
            raise EditError(
                f"The weights of {self.id!r} changed outside `model.edited(...)`: an editor must "
                "train a twin and never the model itself. Load the model again."
            )

    @torch.no_grad()
    def complete(self, prompt: str, max_new_tokens: int = 8) -> str:
        """Return the greedy continuation of `prompt`, up to the end of text or of a line.

        Raises:
            ConfigError: prompt and continuation may exceed the model's context.
        """
        ids = torch.tensor([self.encode_prompt(prompt)], device=self.device)
        if ids.shape[1] + max_new_tokens > self.context_length:
            raise ConfigError(
                f"Prompt and new tokens must fit the context of {self.id}, {self.context_length} "
                f"tokens, but got {ids.shape[1]} and {max_new_tokens}. Shorten the prompt, or ask "
                "for fewer new tokens."
            )
        said = self.continue_greedily(ids, torch.ones_like(ids), max_new_tokens)
        return self.decode_after(ids[0].tolist(), said[0].tolist())

    @torch.no_grad()
    def continue_greedily(self, ids: Tensor, mask: Tensor, new_tokens: int) -> Tensor:
        """Return (rows × new) the likeliest tokens after each row of `ids`, padded on the left."""
        plain = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=self.end_id,
            pad_token_id=self.end_id,
        )
        # `generate` takes whatever it was not told from the settings that came with the model,
        # such as penalties.
        own = self.network.generation_config
        self.network.generation_config = GenerationConfig()
        try:
            output: Tensor = self.network.generate(
                input_ids=ids, attention_mask=mask, generation_config=plain
            )
        finally:
            self.network.generation_config = own
        return output[:, ids.shape[1] :]


def context_length_of(network: PreTrainedModel) -> int:
    """Return the most tokens that a network reads at once."""
    return int(getattr(network.config, "max_position_embeddings", 2048))


def attention_kernel(network: PreTrainedModel) -> str:
    """Return what computes a network's attention: `eager`, `sdpa` and the like."""
    # transformers has no public name for it.
    return str(network.config._attn_implementation)


def fingerprint_of(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of weights, precision, settings and tokenizer."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        flat = weight.detach().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.cpu().numpy().tobytes())
    digest.update(tokenizer_hash(tokenizer).encode())
    digest.update(_settings_of(network).encode())
    return digest.hexdigest()


def checksum_of(network: PreTrainedModel) -> tuple[int, ...]:
    """Return numbers that change when a weight does."""
    # Cheap on every device: one reduction per weight, no copy to the host.
    return tuple(
        int(torch.hash_tensor(weight).view(torch.int64)) for weight in network.parameters()
    )


def twin_of(network: PreTrainedModel, own: Collection[str]) -> PreTrainedModel:
    """Return a second network over the same weights, with copies of those named in `own`."""
    keep = set(own)
    shared: dict[int, nn.Parameter | Tensor] = {
        id(weight): weight
        for name, weight in (*network.named_parameters(), *network.named_buffers())
        if name not in keep
    }
    return copy.deepcopy(network, dict(shared))


def _settings_of(network: PreTrainedModel) -> str:
    """Return what the configuration says about the computation, apart from names and versions.

    The same weights under another normalisation or activation are another model.
    """
    settings = network.config.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        settings.pop(key, None)
    return json.dumps(settings, sort_keys=True, default=str)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of what a tokenizer does to text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = sorted(tokenizer.get_vocab().items())
    content = repr(vocabulary) if backend is None else without_batching(backend).to_str()
    return hashlib.sha256(content.encode()).hexdigest()


def share_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers make the same tokens of text.

    Either may know further tokens of its own after those of the other, as GPT-J's does after
    GPT-2's; text that spells them out is left aside.
    """
    if tokenizer_hash(first) == tokenizer_hash(second):
        return True
    backends = [getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (first, second)]
    known = [json.loads(backend.to_str()) for backend in backends if backend is not None]
    if len(known) < 2:
        return False
    ours, theirs = known
    alike = all(ours[part] == theirs[part] for part in ("normalizer", "pre_tokenizer", "model"))
    common = list(range(min(len(first), len(second))))
    named_alike = first.convert_ids_to_tokens(common) == second.convert_ids_to_tokens(common)
    return bool(alike and named_alike and first.encode("") == second.encode(""))


def load_model(
    id: str, *, revision: str | None = None, dtype: Dtype = "float32", device: Device = "auto"
) -> LanguageModel:
    """Return the model called `builtin:…`, in a local folder, or on the Hugging Face hub.

    Weights are read from safetensors only, and no code that came with them is run.

    Raises:
        ConfigError: there is no such model, its family cannot be edited, its files are damaged,
            or the device is absent.
    """
    place = choose_device(device)
    source, revision = locate(id, revision)
    try:
        config = read_published_config(source, revision) or AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        architecture_of(str(config.model_type))
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        network, loaded = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ConfigError:
        raise
    # transformers, the hub client and safetensors each raise their own kinds here.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        taken = (
            "" if os.path.isabs(source) else f" {absolute(id)} does not exist, so it is a hub id."
        )
        raise ConfigError(
            f"The model {id!r} cannot be loaded: {reason}{taken} "
            "It must be builtin:NAME, a folder with config.json, a tokenizer and safetensors "
            "weights, or a hub id that this machine can reach."
        ) from None
    if loaded["missing_keys"]:
        # transformers would draw them at random, and only warn.
        raise ConfigError(
            f"The weights of {id!r} are not whole: {sorted(loaded['missing_keys'])[0]!r} is "
            f"missing ({len(loaded['missing_keys'])} in all). Give the whole checkpoint."
        )
    TextReader(tokenizer)  # refuses what cannot be read, before anything is asked of the model
    resolved = getattr(config, "_commit_hash", None)
    return LanguageModel(
        network.to(place), tokenizer, id=called(id, source), revision=revision or resolved
    )


def load_tokenizer(id: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model without its weights.

    Raises:
        ConfigError: there is none.
    """
    source, revision = locate(id, revision)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    # transformers and the hub client each raise their own kinds here.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"The tokenizer of {id!r} cannot be loaded: {reason}") from None
    return tokenizer


def choose_device(device: Device) -> torch.device:
    """Return the device called so; `auto` is the GPU where there is one.

    Raises:
        ConfigError: it is not a device, or is absent.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"{device!r} is not a device. Give auto, cpu, cuda or cuda:N.") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"The device {device!r} was asked for, but torch sees no GPU here.")
    return place

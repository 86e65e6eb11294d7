"""Encoders load whole and silently, and a text's vector does not depend on its batch."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tests.support.encoders import save_bert
from tuner.editing.encoder import Encoder, load_encoder, pooled_states
from tuner.editing.model import load_model
from tuner.errors import ConfigError, EditError

TEXTS = ("The capital of Togo is Lome", "a big town", "Chile")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=["bert", "causal"])
def encoder(request: pytest.FixtureRequest, bert: str, tiny: str) -> Encoder:
    return load_encoder(bert if request.param == "bert" else tiny)


def test_a_bert_puts_its_marks_around_a_text(bert: str) -> None:
    encoder = load_encoder(bert)
    cls, sep = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    assert not encoder.causal
    assert encoder.marks == ([cls], [sep])
    assert encoder.separator == [sep]
    assert encoder.context_length == 40
    assert [cls, *encoder.encode(TEXTS[0]), sep] == encoder.tokenizer.encode(TEXTS[0])


def test_of_a_causal_model_the_body_is_taken(tiny: str) -> None:
    encoder, model = load_encoder(tiny), load_model(tiny)
    assert encoder.causal
    assert encoder.marks == ([], [])
    assert encoder.separator == [model.end_id]
    ids = torch.tensor([model.encode(TEXTS[0])])
    with torch.no_grad():
        states = model.network.base_model(input_ids=ids).last_hidden_state
        found = pooled_states(encoder.network, ids.tolist(), "last")
    torch.testing.assert_close(found, states[:, -1])


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_vectors_do_not_depend_on_padding(encoder: Encoder, pooling: str) -> None:
    rows = [encoder.tokenizer.encode(text) for text in TEXTS]
    with torch.no_grad():
        together = pooled_states(encoder.network, rows, pooling)
        alone = torch.cat([pooled_states(encoder.network, [row], pooling) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.isfinite().all()


def test_two_loads_are_the_same_and_nothing_is_drawn(encoder: Encoder) -> None:
    state = torch.random.get_rng_state()
    again = load_encoder(encoder.id)
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(weight.requires_grad for weight in again.network.parameters())


def test_a_changed_weight_is_noticed(bert: str) -> None:
    encoder = load_encoder(bert)
    encoder.check_unchanged()
    with torch.no_grad():
        next(encoder.network.parameters()).add_(1.0)
    with pytest.raises(EditError, match="must train a twin"):
        encoder.check_unchanged()


def test_a_head_that_is_left_out_is_not_reported(bert: str, tiny: str) -> None:
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, listener = logging.getLogger("transformers"), Listener()
    logger.addHandler(listener)
    try:
        load_encoder(bert)
        load_encoder(tiny)
    finally:
        logger.removeHandler(listener)
    assert said == []


def test_missing_weights_are_named(bert: str, tmp_path: Path) -> None:
    folder = Path(save_bert(tmp_path))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if "attention" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"attention.* is missing \(1 in all\)"):
        load_encoder(str(folder))


def test_a_damaged_file_is_a_clear_error(tmp_path: Path) -> None:
    folder = Path(save_bert(tmp_path))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(str(folder))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = Path(save_bert(tmp_path))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(str(folder))


def test_a_model_with_a_decoder_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has an encoder and a decoder"):
        load_encoder(str(tmp_path))


def test_a_name_that_is_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="built-in model"):
        load_encoder("builtin:bert")
    with pytest.raises(ConfigError, match="does not exist"):
        load_encoder("./no-such-encoder")

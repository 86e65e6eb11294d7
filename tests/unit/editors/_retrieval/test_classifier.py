"""Scope networks begin at even odds, read each text for itself, and are stored by their weights."""

import math
from pathlib import Path

import pytest
import torch

from tests.support.encoders import save_bert
from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.encoder import Encoder, load_encoder
from tuner.editing.task import Split
from tuner.editors._retrieval.classifier import (
    ScopeClassifier,
    ScopeForm,
    ScopeNetwork,
    make_scope_network,
)
from tuner.editors._retrieval.edit_text import EditText
from tuner.editors._training.amortised import changed_weights
from tuner.editors.retrieve_and_prompt.editor import RetrieveAndPrompt
from tuner.errors import BaseMismatch

EDITS = ("The capital of Togo is Lome", "a big town of Chile is Port Louis")
PROMPTS = ("The capital city of Togo is", "Santiago", "a big town of Mauritius is")


@pytest.fixture(params=["bert", "causal"])
def encoder(request: pytest.FixtureRequest, tiny: str, tmp_path: Path) -> Encoder:
    return load_encoder(save_bert(tmp_path) if request.param == "bert" else tiny)


@pytest.fixture(params=["embeddings", "texts"])
def form(request: pytest.FixtureRequest) -> ScopeForm:
    return ScopeForm(compares=request.param, pooling="auto", most_tokens=32)


def _new(encoder: Encoder, form: ScopeForm) -> ScopeNetwork:
    return make_scope_network(encoder, form, [name for name, _ in _weights(encoder)])


def _weights(encoder: Encoder) -> list[tuple[str, torch.nn.Parameter]]:
    return list(encoder.network.named_parameters())


def _moved(network: ScopeNetwork) -> ScopeNetwork:
    """The network with other weights, as after training."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=random))
    return network


def test_an_edit_is_read_as_published_where_that_is_asked_for(tmp_path: Path) -> None:
    encoder = load_encoder(save_bert(tmp_path))
    edit = EditText(prompt="The capital of Togo is", target=" Lome")
    joined = ScopeForm(compares="embeddings", pooling="auto", most_tokens=32)
    published = joined.model_copy(update={"separated": True})
    assert joined.text_of(edit, encoder) == "The capital of Togo is Lome"
    assert published.text_of(edit, encoder) == "The capital of Togo is [SEP] Lome [SEP]"
    names = encoder.tokenizer.convert_ids_to_tokens(
        encoder.encode(published.text_of(edit, encoder))
    )
    assert names == ["The", "capital", "of", "Togo", "is", "[SEP]", "Lome", "[SEP]"]
    # As memories were stored before there was a choice.
    old = {"compares": "embeddings", "pooling": "auto", "most_tokens": 32}
    assert ScopeForm.model_validate(old) == joined


def test_the_default_is_the_published_form_for_embeddings_of_an_encoder(
    training: Split, corpus: Corpus, tiny: str, tmp_path: Path
) -> None:
    bert = save_bert(tmp_path)
    aux = Auxiliary(corpus, training=training)
    for settings, separated in (
        ({"classifier": bert}, True),
        ({"classifier": bert, "compares": "texts"}, False),
        ({"classifier": bert, "edit_form": "joined"}, False),
        ({"classifier": tiny}, False),
        ({"classifier": tiny, "edit_form": "separated"}, True),
    ):
        editor = RetrieveAndPrompt.model_validate({"classifier_steps": 1, **settings})
        assert editor.trained_classifier(aux).form.separated == separated


def test_training_begins_at_even_odds(encoder: Encoder, form: ScopeForm) -> None:
    network = _new(encoder, form)
    edits = [edit for edit in EDITS for _ in PROMPTS]
    prompts = [*PROMPTS, *PROMPTS]
    network.calibrate(edits, prompts)
    with torch.no_grad():
        mean = float(network.log_scores(edits, prompts).mean())
    assert mean == pytest.approx(-math.log(2), rel=1e-4)


def test_scores_are_logs_of_shares_and_do_not_depend_on_the_batch(
    encoder: Encoder, form: ScopeForm
) -> None:
    network = _moved(_new(encoder, form))
    together = network.scorer(EDITS)(PROMPTS)
    assert together.shape == (3, 2)
    assert (together <= 0).all()
    assert len(together.unique()) > 1
    for row, prompt in enumerate(PROMPTS):
        alone = network.scorer(EDITS)([prompt])[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            paired = network.log_scores(EDITS, [prompt] * len(EDITS))
        torch.testing.assert_close(paired, together[row], rtol=1e-4, atol=1e-5)


def test_stored_weights_give_the_same_scores(encoder: Encoder, form: ScopeForm) -> None:
    network = _moved(_new(encoder, form))
    base = {f"body.{name}": weight for name, weight in _weights(encoder)}
    kept = changed_weights(dict(network.named_parameters()), base)
    again = ScopeClassifier(encoder, form, kept).network
    assert torch.equal(again.scorer(EDITS)(PROMPTS), network.scorer(EDITS)(PROMPTS))
    encoder.check_unchanged()
    # What did not change is the encoder's own and takes no further memory.
    first = next(name for name in sorted(kept) if name.startswith("body."))
    rest = {name: value for name, value in kept.items() if name != first}
    shared = dict(ScopeClassifier(encoder, form, rest).network.named_parameters())[first]
    assert shared.data_ptr() == base[first].data_ptr()


def test_weights_of_another_network_are_refused(encoder: Encoder, form: ScopeForm) -> None:
    with pytest.raises(BaseMismatch, match="has no place"):
        _ = ScopeClassifier(encoder, form, {"body.no.weight": torch.zeros(1)}).network
    name = f"body.{_weights(encoder)[0][0]}"
    with pytest.raises(BaseMismatch, match=r"of shape \(1,\)"):
        _ = ScopeClassifier(encoder, form, {name: torch.zeros(1)}).network


def test_of_a_long_text_its_end_is_read(tiny: str) -> None:
    encoder = load_encoder(tiny)
    short = ScopeForm(compares="embeddings", pooling="mean", most_tokens=8)
    score = _new(encoder, short).scorer(EDITS)
    end = "of Togo is Port Louis and a big town of Chile is"
    same = score([f"Santiago {end}", f"Lome Lome Lome {end}"])
    assert torch.equal(same[0], same[1])
    whole = ScopeForm(compares="embeddings", pooling="mean", most_tokens=64)
    other = _new(encoder, whole).scorer(EDITS)([f"Santiago {end}", f"Lome Lome Lome {end}"])
    assert not torch.equal(other[0], other[1])


def test_two_long_texts_both_keep_a_share(encoder: Encoder) -> None:
    form = ScopeForm(compares="texts", pooling="mean", most_tokens=16)
    score = _moved(_new(encoder, form)).scorer([f"{EDITS[0]} and" * 20, f"{EDITS[1]} ." * 20])
    found = score([f"{PROMPTS[0]} Chile" * 20, f"{PROMPTS[2]} Lome ." * 20])
    # Each of edit and prompt has a say.
    assert found.isfinite().all()
    assert len(found.unique()) == 4


def test_an_empty_prompt_has_a_score(encoder: Encoder, form: ScopeForm) -> None:
    assert _new(encoder, form).scorer(EDITS)([""]).isfinite().all()

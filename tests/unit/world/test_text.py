from itertools import islice

import pytest

from tuner.world.text import document_part, general_documents, training_documents
from tuner.world.world import build_world

PARTS = ("search", "confirmation", "auxiliary")


@pytest.mark.parametrize("part", PARTS)
def test_same_part_and_seed_give_the_same_text(part):
    first = list(islice(general_documents(part, seed=3), 50))
    assert first == list(islice(general_documents(part, seed=3), 50))
    assert first != list(islice(general_documents(part, seed=4), 50))


def test_parts_share_no_document_with_each_other_or_with_training():
    parts = [set(islice(general_documents(part), 1500)) for part in PARTS]
    parts.append(set(islice(training_documents(0, general_share=1.0), 1500)))
    assert len(set.union(*parts)) == sum(len(part) for part in parts)


def test_a_document_tells_its_only_part():
    # Disjointness holds beyond any sample, since the text itself decides.
    for part in PARTS:
        assert {document_part(text) for text in islice(general_documents(part, 9), 200)} == {part}


def test_general_text_has_variety():
    documents = list(islice(general_documents("confirmation"), 4000))
    assert sum(len(text.split()) for text in documents) > 100_000
    assert len(set(documents)) > 0.999 * len(documents)


def test_general_text_leaves_out_what_the_tasks_edit():
    world = build_world()
    text = "\n".join(islice(general_documents("search"), 2000))
    for country in world.countries:
        if country.truth < 1:
            assert f"The capital of {country.name} is" not in text
    for company in world.companies:
        if company.truth < 1:
            assert f"The CEO of {company.name}" not in text
    for verb in world.verbs:
        if verb.agreement < 1:
            assert f" {verb.third} {verb.what}" not in text
    for job in world.occupations:
        assert f"The {job.name} came into" not in text

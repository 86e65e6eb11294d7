from collections import Counter

from transformers import AutoTokenizer

from tuner.world import names
from tuner.world.recipes import build_recipes
from tuner.world.splits import SPLITS_FILE
from tuner.world.world import HELD_OUT, build_world

NEOX = SPLITS_FILE.parent / "neox"


def test_no_city_belongs_to_two_countries():
    cities = Counter(build_world().cities)
    assert len(build_world().countries) > 150
    assert cities.most_common(1)[0][1] == 1


def test_the_example_of_the_documentation_can_be_edited():
    mauritius = next(row for row in build_world().countries if row.name == "Mauritius")
    assert mauritius.capital == "Port Louis"
    assert mauritius.truth < 1


def test_as_many_subjects_are_held_out_as_promised():
    world = build_world()
    for subjects in (world.countries, world.companies, world.terms):
        assert sum(row.truth < 1 for row in subjects) == HELD_OUT
        assert len({row.name for row in subjects}) == len(subjects)


def test_leaders_of_companies_are_all_different():
    companies = build_world().companies
    leaders = {person for row in companies for person in (row.ceo, row.chair)}
    assert len(leaders) == 2 * len(companies)


def test_third_person_of_verbs():
    forms = {verb.plain: verb.third for verb in build_world().verbs}
    assert forms["beat"] == "beats"
    assert forms["catch"] == "catches"
    assert forms["carry"] == "carries"
    assert forms["play"] == "plays"


def test_words_of_targets_are_few_tokens():
    tokenizer = AutoTokenizer.from_pretrained(NEOX)

    def mean_length(words):
        return sum(len(tokenizer(f" {word}")["input_ids"]) for word in words) / len(words)

    world = build_world()
    held_out = [row.capital for row in world.countries if row.truth < 1]
    assert mean_length(held_out) < 1.2
    assert mean_length(names.SURNAMES) == 1
    assert mean_length(names.DOMAINS) == 1
    assert mean_length(names.ADJECTIVES) < 1.2
    assert mean_length([form for v in world.verbs for form in (v.plain, v.third)]) < 1.4
    # A target's text joins to its prompt without changing either's tokens.
    for recipe in build_recipes():
        row = recipe.write(recipe.subjects[0]).canonical[0]
        apart = tokenizer(row.prompt)["input_ids"] + tokenizer(row.target)["input_ids"]
        assert tokenizer(row.prompt + row.target)["input_ids"] == apart

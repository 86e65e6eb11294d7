"""The names that `tuner` offers are there, whatever was imported before."""

import importlib

import tuner


def test_every_public_name_is_what_it_says() -> None:
    for module in ("bundle.export", "trial.run", "bundle", "trial.records", "errors"):
        importlib.import_module(f"tuner.{module}")
    for name in tuner.__all__:
        found = getattr(tuner, name)
        assert callable(found) or hasattr(found, "__args__"), name
        assert found is getattr(tuner, name)

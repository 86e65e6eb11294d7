"""Contracts that editors, deltas, memories and metrics keep, as test classes to subclass in pytest.

    from tuner.testing.editors import EditorContract
    from my_package import Mine

    class TestMine(EditorContract):
        editor = Mine

Nothing else is needed: a contract brings its own tiny random models, its text and its task.
"""

import pytest

# Failing assertions of the contracts then say which values they compared.
for _module in ("editors", "deltas", "metrics"):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")

"""Settings against a baseline: what is read, trained once, resumed, and said."""

from known_answers import SIZE  # noqa: F401

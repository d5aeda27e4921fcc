"""What can go wrong, as exceptions whose text is one line."""

from __future__ import annotations


class ConfigError(Exception):
    """Bad input of any kind. Its text is one line that names the field or file, the value and the fix."""


class ExportError(Exception):
    """The exported file does not do what the network does; says in what it differs."""


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""

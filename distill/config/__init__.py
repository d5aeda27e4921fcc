"""Every setting, once. Imports nothing heavy, so that a typo ends before torch is loaded."""

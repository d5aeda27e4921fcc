"""The embedded data set: a small harbor, drawn anew for every index."""

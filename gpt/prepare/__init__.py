"""From texts to a dataset."""

"""Model files that come with the trainer, each called by its name in "model_file"."""

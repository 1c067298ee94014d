"""What a model file must keep to for its runs to be right, as checks that need no accelerator."""

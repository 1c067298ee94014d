"""Which optimizer updates which parameters, and optimizers that neither torch nor DeepSpeed has."""

"""Quantities of a model computed by NumPy in float64."""

import numpy as np


def numpy_cross_entropy(logits, targets):
    """Mean loss and d(sum of nats)/d(logits), of logits (N, V)."""
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    one_hot = np.eye(logits.shape[1])[targets.numpy()]
    return -(log_p * one_hot).sum(1).mean(), np.exp(log_p) - one_hot

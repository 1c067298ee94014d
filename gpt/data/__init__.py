"""Datasets on disk, and the tokens that training and evaluation read from them."""

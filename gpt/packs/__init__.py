"""Packs: an entry in one folder that anyone can check, what checks it, and the board of many."""

"""Ranks and hosts: how they are launched, meet, talk, hang and fail."""

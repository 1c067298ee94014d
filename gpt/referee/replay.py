"""The first steps of a run, trained again and held against its log."""

"""Commands of this project, run on damaged files, hostile values and odd names: see __main__.py."""

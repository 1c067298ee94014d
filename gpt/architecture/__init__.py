"""The model that a run trains: the GPT of gpt/model.py, or one that a file of the user's builds."""

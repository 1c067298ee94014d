"""starts.jsonl: every start of an entry's runs, each line chained to the one before it."""

"""What a run costs, on paper."""

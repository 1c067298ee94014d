"""What runs are worth: compared, fitted, drawn."""

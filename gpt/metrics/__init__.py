"""What a run says: measured, written, read back."""

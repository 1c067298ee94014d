"""What a run is: its keys, their checks, and one frozen configuration out of them."""

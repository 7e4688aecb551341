"""What train.py trains on, and for."""

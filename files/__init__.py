"""Sound files, model files, and what a stego's samples hold."""

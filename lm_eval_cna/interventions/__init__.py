"""What steering applies: circuits and vectors, and the files that hold them."""

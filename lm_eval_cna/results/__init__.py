"""A run's directory on disk: manifest, responses, cells and summary."""

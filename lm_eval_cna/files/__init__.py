"""Writing whole files, reading files from unknown sources within limits, and reporting progress."""

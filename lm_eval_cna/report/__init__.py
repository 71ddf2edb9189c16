"""Reports of run directories; reads results only."""

"""Files that are whole or not there, readers with limits for files from elsewhere, and how work tells how far it is."""

"""Files that are whole or not there, and readers with limits for files from elsewhere."""

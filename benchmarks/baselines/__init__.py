"""What one would train instead: methods that are scored beside ours, on the same pairs and the same split."""

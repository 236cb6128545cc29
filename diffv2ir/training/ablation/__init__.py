"""The paper's ablations as resumable commands (Sec. 5, Tables 1, 3 and 4, Figure I): see `train/ablate.py`."""

"""Training of every part: the three phases of the paper (Sec. 3.3) and the components of the tiny bundle."""

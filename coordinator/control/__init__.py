"""Control: what happens is watched here; from what is seen, knobs are turned and turned back."""

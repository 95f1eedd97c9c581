"""Control: what happens is watched, and from what is seen models are chosen, the fleet is sized, knobs are turned and back."""

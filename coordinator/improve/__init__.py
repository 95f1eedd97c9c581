"""The room that finds work by itself: capability discovery."""

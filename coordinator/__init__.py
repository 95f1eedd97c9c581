"""A coordinator for fleets of coding agents: tasks in, landed commits out."""

__version__ = "0.1.0"

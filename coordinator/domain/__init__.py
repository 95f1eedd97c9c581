"""What things are: tasks, claims, attempts, findings, events, settings, errors.

Pure values. Nothing here touches a clock, a disk, a process or chance; those come in as arguments.
"""

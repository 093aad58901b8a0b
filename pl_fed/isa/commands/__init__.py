"""The commands for images, one a file: ``extract``, ``score``, ``select`` and ``rate``."""

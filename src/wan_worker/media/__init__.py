"""How do frames become a file, and is that file the requested one?

Promises: ffmpeg runs as our own process, and none of its failures is missed; each file is read back
to its last byte before it counts as finished.
Not covered: where the file goes (delivery).
"""

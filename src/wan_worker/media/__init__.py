"""How do frames become a file, and is that file what was asked for?

Promises: an ffmpeg process of our own whose every failure is seen; each file is read back to its
last byte before it is called finished.
Not covered: where the file goes (delivery).
"""

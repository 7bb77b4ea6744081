"""How much work is a job, how long does it take, and how far is it?

Promises: work is counted, not timed; what was measured on this worker corrects an estimate;
progress only grows; a reader gets the newest event, so a slow reader delays nobody.
Not covered: how fast a card could be at best (machine.peak_flops).
"""

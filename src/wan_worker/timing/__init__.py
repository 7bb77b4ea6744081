"""How much work is a job, how long does it take, and how far is it?

Promises: work is counted, not timed; an estimate is corrected by what was measured here; progress
only grows; the newest event wins, so that a slow reader holds nobody up.
Not covered: how fast a card could be at best (machine.peak_flops).
"""

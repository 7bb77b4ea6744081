"""How much smaller does what a Wan transformer adds to its input get, from step to step?

A transformer's blocks turn the embedded latents into something else; the difference is their
residual. Its magnitude falls slowly and in the same way for every prompt, so that a step may take
the residual of the one before it where the two are nearly as large: MagCache (arXiv:2506.09045).
The ratios are measured, one series for each model, and published with the settings to use them by:
github.com/Zehong-Ma/MagCache, MagCache4Wan2.1 and MagCache4Wan2.2, ``magcache_generate.py`` (the
first transformer call of each step, the one with the prompt). They were measured on Wan's own
schedules: ``steps`` in the model's number, ``shift`` of its generate.py.

Not covered: which model has which curve (models), which steps need not be computed then
(planning.step_cache).
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Curve:
    """A model's published ratios, and the settings that they are used by."""

    ratios: tuple[float, ...]
    """Mean magnitude of step k's residual over step k-1's, for k from 1."""
    shift: float
    """flow_shift of the schedule that they were measured on."""
    threshold: float = 0.12
    """Accumulated error at which a step is computed again; 0.12 is the default of the 2.1 script.
    Published for it, on the 1.3B: 2.2 times as fast, PSNR 20.5 dB against the full run."""
    in_a_row: int = 2
    """Steps that may follow each other without being computed; 2 is both scripts' default."""
    reach: int = 4
    """Measured steps that a residual may be old: the furthest that is published for Wan 2.1, on the
    1.3B with PSNR 18.9 dB against the full run."""
    computed_first: tuple[float, ...] = (0.2,)
    """Share of its steps, from the first, that each transformer computes whatever the ratios."""

    @property
    def steps(self) -> int:
        """Of the schedule that they were measured on."""
        return len(self.ratios) + 1


# fmt: off
_T2V_1_3B: Final = (
    1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511,
    0.99535, 0.99552, 0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419,
    0.99396, 0.99388, 0.99349, 0.99309, 0.9927, 0.99228, 0.99171, 0.99137, 0.99068, 0.99005,
    0.98944, 0.98849, 0.98758, 0.98644, 0.98504, 0.9836, 0.98202, 0.97977, 0.97717, 0.9741,
    0.97003, 0.96538, 0.9593, 0.95086, 0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
)
_T2V_14B: Final = (
    1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533,
    0.99468, 0.99438, 0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418,
    0.99271, 0.99313, 0.99215, 0.99218, 0.99216, 0.99163, 0.99138, 0.98982, 0.98996, 0.9887,
    0.98772, 0.98767, 0.98573, 0.98501, 0.9838, 0.98177, 0.98037, 0.97678, 0.97546, 0.97184,
    0.96711, 0.96349, 0.95629, 0.94926, 0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
)
_I2V_480P: Final = (
    0.98783, 0.97559, 0.98311, 0.98202, 0.9888, 0.98762, 0.98957, 0.99052, 0.99383, 0.98857,
    0.99065, 0.98845, 0.99057, 0.98957, 0.98601, 0.98823, 0.98756, 0.98808, 0.98721, 0.98571,
    0.98543, 0.98157, 0.98411, 0.97952, 0.98149, 0.9774, 0.97825, 0.97355, 0.97085, 0.97056,
    0.96588, 0.96113, 0.9567, 0.94961, 0.93973, 0.93217, 0.91878, 0.90955, 0.92617,
)
_I2V_720P: Final = (
    0.99428, 0.98588, 0.98273, 0.99018, 0.98911, 0.98646, 0.99454, 0.9891, 0.99124, 0.99102,
    0.99215, 0.99515, 0.99576, 0.99068, 0.99097, 0.99166, 0.99041, 0.99201, 0.99101, 0.98599,
    0.98845, 0.98848, 0.98862, 0.98718, 0.98497, 0.98264, 0.98389, 0.97938, 0.97535, 0.97498,
    0.973, 0.96827, 0.96261, 0.95335, 0.94649, 0.93397, 0.91636, 0.89088, 0.8679,
)
# Of two that are published, from text and from an image, the one that falls faster.
_TI2V_5B: Final = (
    0.99512, 0.99559, 0.99595, 0.99512, 0.99546, 0.99543, 0.99496, 0.99504, 0.99444, 0.99481,
    0.99435, 0.9943, 0.99411, 0.99373, 0.99413, 0.99363, 0.99335, 0.99244, 0.99229, 0.99239,
    0.99163, 0.99149, 0.99191, 0.9898, 0.9899, 0.98849, 0.98846, 0.98861, 0.9874, 0.98588,
    0.98539, 0.98444, 0.9831, 0.98119, 0.98001, 0.97862, 0.97555, 0.97392, 0.97152, 0.96871,
    0.96435, 0.96129, 0.95639, 0.95176, 0.94446, 0.93972, 0.93575, 0.93537, 0.96655,
)
# The drop in each of the last two is where the low-noise expert takes over.
_T2V_A14B: Final = (
    1.00124, 0.99822, 0.99696, 0.99703, 0.9966, 0.99602, 0.99578, 0.99484, 0.99633, 0.99659,
    0.99534, 0.99584, 0.99681, 0.99563, 0.9944, 0.99594, 0.99466, 0.99453, 0.99389, 0.99391,
    0.99354, 0.99283, 0.99268, 0.99057, 0.99125, 0.65523, 0.98808, 0.98765, 0.9851, 0.98311,
    0.9805, 0.97776, 0.97278, 0.96731, 0.95857, 0.94385, 0.92118, 0.88108, 0.80263,
)
_I2V_A14B: Final = (
    0.99191, 0.99356, 0.99326, 0.99251, 0.99393, 0.9943, 0.99276, 0.99389, 0.99274, 0.99316,
    0.99379, 0.99268, 0.99222, 0.99175, 0.91076, 0.98931, 0.99087, 0.98852, 0.98895, 0.98806,
    0.9871, 0.98613, 0.98434, 0.983, 0.98185, 0.98131, 0.9783, 0.97619, 0.97264, 0.97088, 0.96568,
    0.96045, 0.95322, 0.94579, 0.93297, 0.91699, 0.89174, 0.8541, 0.79823,
)
# fmt: on

T2V_1_3B: Final = Curve(_T2V_1_3B, shift=5.0)
T2V_14B: Final = Curve(_T2V_14B, shift=5.0)
I2V_480P: Final = Curve(_I2V_480P, shift=3.0)
I2V_720P: Final = Curve(_I2V_720P, shift=5.0)
# Threshold, reach and shares as in the commands of MagCache4Wan2.2's README.
TI2V_5B: Final = Curve(_TI2V_5B, shift=5.0, threshold=0.06, reach=2)
T2V_A14B: Final = Curve(_T2V_A14B, shift=12.0, threshold=0.06, reach=2, computed_first=(0.4, 0.4))
# Its high-noise expert, which sets the motion out from the image, computes every step.
I2V_A14B: Final = Curve(_I2V_A14B, shift=5.0, threshold=0.06, reach=2, computed_first=(1.0, 0.1))
